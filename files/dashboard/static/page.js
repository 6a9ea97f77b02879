// Loads what the URL asks for, draws it, and looks for new events.
import {PRESETS, filter, now, onChange, parameters, setClock, setRange, setSpan, setZone, span, state, unfilter} from './state.js';
import {country, epoch, lasting, local, minute, number, stretch, when, zone, zoneShort} from './format.js';
import * as charts from './charts.js';
import * as panels from './panels.js';
import {picture} from './picture.js';

const $ = id => document.getElementById(id);
const PUBLIC = location.pathname.startsWith('/public/');
const LOOK = 1500; // ms between looks for new events
let view = null, chain = null, trouble = null, silence = null, loading = null, took = 0, loadedAt = 0, last = 0, paused = false, stale = false;
let lines = {before: '', next: null, shown: []};

// An answer, or an Error that says what people can do.
async function ask(name, asked, signal) {
  let response;
  try {
    response = await fetch(`api/${name}?${asked}`, {signal, headers: {Accept: 'application/json'}});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('This machine does not answer. Is the network there, and Apache running?', {cause: 'fab -H vps doctor'});
  }
  if (setClock(Date.parse(response.headers.get('date')) / 1000)) stale = true;
  if (response.ok) return response.json();
  let reason = `${response.status} ${response.statusText}`;
  try { reason = (await response.json()).error ?? reason; } catch { /* Apache's own words */ }
  if (response.status === 401) reason = 'The login is no longer valid: load the page again.';
  if (response.status === 502 || response.status === 503) throw new Error(response.headers.get('content-type')?.includes('json') ? reason : 'Apache answers, the dashboard behind it does not.', {cause: 'fab -H vps doctor'});
  throw new Error(reason);
}

async function load() {
  loading?.abort();
  const turn = loading = new AbortController();
  const began = performance.now(), asked = span();
  try {
    const fresh = await ask('view', parameters(asked), turn.signal);
    took = performance.now() - began;
    view = fresh;
    trouble = null;
    document.body.classList.remove('loading');
    panels.figures(view);
    panels.tables(view);
    charts.draw(view);
    describe();
    if (!PUBLIC && !lines.before) await loadLines(turn.signal);
    $('updated').textContent = `Updated ${when(now()).slice(11)} (${zone()})`;
  } catch (error) {
    if (error.name === 'AbortError') return;
    took = performance.now() - began;
    trouble = error;
  }
  document.body.classList.remove('busy');
  loadedAt = Date.now();
  tell();
}

async function loadLines(signal) {
  const asked = parameters(lines.span ?? span());
  if (lines.before) asked.append('before', lines.before);
  const found = await ask('lines', asked, signal);
  const known = new Set(lines.shown.map(({id}) => id));
  const fresh = new Set(known.size && !lines.before ? found.lines.map(({id}) => id).filter(id => !known.has(id)) : []);
  lines = {...lines, next: found.next, shown: found.lines};
  panels.logLines(found.lines, fresh);
  $('older').disabled = !found.next;
  $('newest').disabled = !lines.before;
  $('lines-note').textContent = lines.before ? 'older ones; they stay as they are' : 'newest first';
}

async function page(before) {
  lines = {...lines, before, span: before ? lines.span ?? span() : null, shown: []};
  try { await loadLines(); $('line-table').parentElement.scrollTop = 0; } catch (error) { trouble = error; tell(); }
}

function describe() {
  const bar = lasting(view.step), limit = view.places.length;
  $('timeline-note').textContent = `a bar is ${bar}; ${charts.dragHint()}`;
  $('map-note').textContent = limit ? `${number(limit)} places` : '';
  const none = !view.total;
  $('empty').hidden = !none;
  if (none) {
    const [text, next] = view.first === null ? ['No SYN was seen yet.', PUBLIC ? [] : ['Is TCP 22 reachable from outside? ', panels.element('code', {}, 'fab -H vps doctor'), ' tells.']]
      : state.where.size ? ['Nothing matches these filters in this span.', ['Remove a filter, or choose a longer span.']]
        : ['No SYN in this span.', [`The newest one stored is of ${minute(view.last)}. `, panels.element('button', {type: 'button', onclick: () => setSpan(view.last - 86400, view.last + 1)}, 'Show the day before it')]];
    $('empty').replaceChildren(panels.element('b', {}, text), panels.element('span', {}, ...next));
  }
}

// What is wrong, with the next step.
function tell() {
  const found = [];
  const wrong = silence ?? trouble;
  if (wrong) found.push([wrong.message, PUBLIC ? null : wrong.cause, load]);
  if (chain?.paused) found.push(['The disk is nearly full: the collector waits, and goes on by itself once there is room. Nothing is lost that the log still holds.', 'df -h /var']);
  if (chain?.log_error) found.push([`The log cannot be read: ${chain.log_error}.`, 'fab -H vps doctor']);
  if (chain?.waiting > 15) found.push(['The log has lines that are not stored: the collector is behind, or does not run.', 'fab -H vps doctor']);
  if (chain && !chain.geo.built) found.push(['There is no GeoIP data on this machine, so no country is known: see the setting geo_source.']);
  panels.notices(found);
}

// What the filters leave of a new event, as far as it says that itself: a TTL, say, it does not.
const OF_EVENT = {country: event => event.country, city: event => `${event.country}/${event.city}`, network: event => event.network, address: event => event.address, family: event => event.network.includes(':') ? '6' : '4'};
const inView = event => state.range && [...state.where].every(([name, value]) => OF_EVENT[name]?.(event) === value);

async function look() {
  try {
    const found = await ask('live', new URLSearchParams({after: last}));
    chain = found.chain;
    panels.health(found);
    if (silence) { silence = null; stale = true; }
    if (last && found.last !== last) { stale = true; charts.pulse(found.events.filter(inView)); }
    last = found.last;
    // A span that takes long to answer is asked for less often.
    const due = Date.now() - loadedAt > 4 * took;
    const slides = state.range && Date.now() - loadedAt > 60_000;
    if ((stale && due && state.range) || slides) { stale = false; await load(); }
  } catch (error) { silence = error; }
  tell();
}

async function live() {
  for (;;) {
    if (!paused && !document.hidden) await look();
    await new Promise(done => setTimeout(done, LOOK));
  }
}

function label() {
  const preset = PRESETS.find(([range]) => range === state.range);
  const relative = /^(\d+)([mhdw])$/.exec(state.range), units = {m: 'minutes', h: 'hours', d: 'days', w: 'weeks'};
  $('range-label').textContent = preset ? preset[1] : relative ? `Last ${relative[1]} ${units[relative[2]]}` : stretch(state.from, state.to);
  $('range-zone').textContent = zoneShort();
  for (const choice of $('presets').children) choice.setAttribute('aria-pressed', choice.dataset.range === state.range);
  const [from, to] = span();
  $('from').value = local(state.range === 'all' ? view?.first ?? to - 86400 : from);
  $('to').value = local(to);
  $('zone').value = state.utc ? 'utc' : 'local';
  $('zone-local').textContent = `local, ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
  panels.chips(unfilter);
  for (const kind of ['csv', 'ndjson']) $(`export-${kind}`).onclick = event => { event.currentTarget.href = `api/export?${parameters()}&format=${kind}`; };
  for (const kind of ['csv', 'ndjson']) $(`export-${kind}`).href = `api/export?${parameters()}&format=${kind}`;
}

async function changed() {
  lines = {before: '', next: null, shown: []};
  label();
  document.body.classList.add('busy');
  await load();
  if (view && !trouble) $('said').textContent = `${number(view.total)} SYNs from ${number(view.sources)} addresses`;
}

function controls() {
  for (const [range, text] of PRESETS) {
    const choice = panels.element('button', {type: 'button', onclick: () => { setRange(range); $('picker').open = false; }}, text.replace('Last ', '').replace(/^\w/, letter => letter.toUpperCase()));
    choice.dataset.range = range;
    $('presets').append(choice);
  }
  $('relative').onsubmit = event => { event.preventDefault(); setRange($('amount').value + $('unit').value); $('picker').open = false; };
  $('absolute').onsubmit = event => {
    event.preventDefault();
    const [from, to] = [epoch($('from').value), epoch($('to').value)];
    const problem = !(from >= 0 && to >= 0) ? 'Both times are needed.' : to <= from ? 'The end must be after the start.' : to - from > 3660 * 86400 ? 'At most ten years can be shown.' : '';
    $('absolute-problem').textContent = problem;
    if (!problem) { setSpan(from, to); $('picker').open = false; }
  };
  $('zone').onchange = () => setZone($('zone').value === 'utc');
  $('wider').onclick = () => { const [from, to] = span(), half = (to - from) / 2; setSpan(Math.max(0, from - half), Math.min(to + half, now() + 1)); };
  $('live').onclick = () => {
    paused = !paused;
    $('live').setAttribute('aria-pressed', !paused);
    $('live-label').textContent = paused ? 'Paused' : 'Live';
    if (!paused) look();
  };
  $('theme').onclick = () => {
    const chosen = charts.scheme() === 'dark' ? 'light' : 'dark';
    document.documentElement.dataset.theme = chosen;
    try { localStorage.setItem('theme', chosen); } catch { /* it holds for this visit */ }
    if (view) charts.draw(view);
  };
  matchMedia('(prefers-color-scheme: light)').addEventListener('change', () => view && charts.draw(view));
  $('search').onsubmit = event => { event.preventDefault(); search($('q').value.trim()); };
  $('older').onclick = () => page(lines.next);
  $('newest').onclick = () => page('');
  $('failures').ontoggle = async () => {
    if (!$('failures').open) return;
    try { const [since, until] = span(); panels.unparsedLines(await ask('unparsed', new URLSearchParams({since, until}))); } catch (error) { trouble = error; tell(); }
  };
  $('export-png').onclick = () => { if (view) picture(view, `Who knocks on port 22 of ${location.hostname}`, `${when(Math.max(view.since, view.first ?? 0))} – ${when(view.until)} ${zone()}${[...state.where].map(([, value]) => ` · ${value}`).join('')}`); $('export').open = false; };
  for (const menu of document.querySelectorAll('.menu')) {
    document.addEventListener('click', event => { if (!menu.contains(event.target)) menu.open = false; });
    menu.addEventListener('keydown', event => { if (event.key === 'Escape') { menu.open = false; menu.querySelector('summary').focus(); } });
    menu.addEventListener('toggle', () => menu.open && label());
  }
}

function search(text) {
  const known = charts.countries().map(code => [code, country(code).toLowerCase()]);
  const wanted = text.toLowerCase(), code = known.find(([code, name]) => name === wanted || code.toLowerCase() === wanted)?.[0];
  $('search-problem').textContent = '';
  if (!text) return;
  if (/^[0-9.]+\/24$|^[0-9a-f:]+\/48$/i.test(text)) filter('network', text);
  else if (/^\d{1,3}(\.\d{1,3}){3}$|^[0-9a-f]*:[0-9a-f:.]*$/i.test(text)) filter('address', text);
  else if (code !== undefined && code !== '') filter('country', code);
  else if (/^[a-z]{2}$/i.test(text)) filter('country', text.toUpperCase());
  else { $('search-problem').textContent = 'That is no address, no /24 or /48 network, and no country.'; return; }
  $('q').value = '';
}

async function start() {
  if (PUBLIC) document.body.classList.add('public');
  if (PUBLIC) $('export-csv').hidden = $('export-ndjson').hidden = true;
  if (PUBLIC) $('q').placeholder = 'Network or country';
  $('host').textContent = location.hostname;
  controls();
  label();
  try { await charts.start(); } catch (error) { trouble = error; tell(); }
  onChange(changed);
  await load();
  $('known').replaceChildren(...charts.countries().map(country).sort().map(value => panels.element('option', {value})));
  live();
}

start();
