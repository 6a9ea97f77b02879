// What is shown: a range, filters and a time zone. All of it stands in the URL, so that it can be bookmarked and "back" works.

export const PRESETS = [['15m', 'Last 15 minutes'], ['1h', 'Last hour'], ['6h', 'Last 6 hours'], ['24h', 'Last 24 hours'], ['7d', 'Last 7 days'],
  ['30d', 'Last 30 days'], ['90d', 'Last 90 days'], ['365d', 'Last year'], ['all', 'All']];
export const FILTERS = ['country', 'city', 'network', 'address', 'family', 'seen', 'ttl', 'window', 'port'];

// Spans end at the server's present: this machine's clock may be off.
let ahead = 0;  // seconds
export const now = () => Date.now() / 1000 + ahead;
// Takes the time of an answer; true if the clocks are found to differ by more than its rounding and the way here.
export function setClock(server) {
  const found = server - Date.now() / 1000;
  if (!(Math.abs(found - ahead) > 3)) return false;
  ahead = Math.abs(found) > 3 ? found : 0;
  return true;
}

const SECONDS = {m: 60, h: 3600, d: 86400, w: 7 * 86400};
const LONGEST = 3660 * 86400;

export const state = {range: '24h', from: 0, to: 0, utc: false, where: new Map()};
const listeners = [];
export const onChange = listener => listeners.push(listener);

function read() {
  const asked = new URLSearchParams(location.search);
  const number = name => /^\d{1,10}$/.test(asked.get(name) ?? '') ? +asked.get(name) : 0;
  state.from = number('from');
  state.to = number('to');
  const range = asked.get('range') ?? '24h';
  state.range = state.from && state.to > state.from ? '' : (range === 'all' || seconds(range) ? range : '24h');
  state.utc = asked.get('zone') === 'utc';
  state.where = new Map(FILTERS.filter(name => asked.has(name)).map(name => [name, asked.get(name)]));
}

function write() {
  const parts = [];
  if (state.range && state.range !== '24h') parts.push(['range', state.range]);
  if (!state.range) parts.push(['from', state.from], ['to', state.to]);
  parts.push(...state.where);
  if (state.utc) parts.push(['zone', 'utc']);
  const search = new URLSearchParams(parts).toString();
  history.pushState(null, '', search ? `?${search}` : location.pathname);
}

function changed() { write(); listeners.forEach(listener => listener()); }

export function setRange(range) { Object.assign(state, {range, from: 0, to: 0}); changed(); }
export function setSpan(from, to) { Object.assign(state, {range: '', from: Math.floor(from), to: Math.max(Math.floor(from) + 1, Math.ceil(to))}); changed(); }
export function setZone(utc) { state.utc = utc; changed(); }
export function filter(name, value) {
  // A second click takes the filter away again.
  if (state.where.get(name) === value) state.where.delete(name);
  else state.where.set(name, value);
  changed();
}
export function unfilter(name) { if (name) state.where.delete(name); else state.where.clear(); changed(); }

export function seconds(range) {
  const found = /^(\d{1,4})([mhdw])$/.exec(range);
  return found ? Math.min(+found[1] * SECONDS[found[2]], LONGEST) : 0;
}

// The span in epoch seconds. The second that goes on now is part of it.
export function span() {
  if (!state.range) return [state.from, state.to];
  const until = Math.floor(now()) + 1;
  return [state.range === 'all' ? until - LONGEST : until - seconds(state.range), until];
}

export function parameters([since, until] = span()) {
  const asked = new URLSearchParams({since, until});
  for (const [name, value] of state.where) asked.append('where', `${name}:${value}`);
  return asked;
}

addEventListener('popstate', () => { read(); listeners.forEach(listener => listener()); });
read();
