// Figures and tables: what the charts say, in numbers and in words, each of them a filter.
import {filter, now, setRange, setSpan, state} from './state.js';
import {country, lasting, minute, number, percent, place, stretch, when, zone} from './format.js';
import {bars} from './charts.js';

const $ = id => document.getElementById(id);

export function element(tag, options = {}, ...children) {
  const {part, key, ...properties} = options;
  const made = Object.assign(document.createElement(tag), properties);
  if (key !== undefined) made.dataset.key = key;
  if (part !== undefined) made.style.setProperty('--part', part);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}
const button = (text, onclick, label) => {
  const made = element('button', {type: 'button', onclick}, text);
  if (label) made.setAttribute('aria-label', label);
  return made;
};
export const link = (name, value, text) => button(text, () => filter(name, value), `${text}: show only these`);

// Makes `old` what `made` is. Nodes that are equal stay, so that focus, a selection and a click under way outlive an update.
function become(old, made) {
  if (old.isEqualNode(made)) return;
  if (old.nodeName !== made.nodeName || old.nodeName === 'BUTTON' || old.nodeType !== Node.ELEMENT_NODE || old.childNodes.length !== made.childNodes.length) { old.replaceWith(made); return; }
  old.className = made.className;
  old.style.cssText = made.style.cssText;
  const children = [...made.childNodes];
  [...old.childNodes].forEach((child, i) => become(child, children[i]));
}

// The rows of a table, each known by its key or by what it says first.
function redraw(id, head, rows) {
  const table = $(id), key = row => row.dataset.key ?? row.querySelector('button')?.getAttribute('aria-label') ?? row.textContent;
  if (!table.tBodies.length) table.append(element('thead', {}, head), element('tbody'));
  else become(table.tHead.rows[0], head);
  const body = table.tBodies[0], focused = document.activeElement;
  const known = new Map([...body.rows].map(row => [key(row), row]));
  let at = body.firstChild;
  for (const made of rows) {
    const old = known.get(key(made)), row = old?.cells.length === made.cells.length ? old : made;
    known.delete(key(made));
    if (row === old) become(old, made);
    if (row === at) at = at.nextSibling;
    else body.insertBefore(row, at);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
  if (focused !== document.activeElement && body.contains(focused)) focused.focus({preventScroll: true});
}

// heads: [text, class]; a row is a list of cells, each a text or an element.
export function table(id, heads, rows, nothing = 'none in this span') {
  const head = element('tr', {}, ...heads.map(([text, kind]) => element('th', {scope: 'col', className: kind ?? ''}, text)));
  const body = rows.map(cells => element('tr', {}, ...cells.map((cell, i) => cell instanceof HTMLTableCellElement ? cell : element('td', {className: heads[i][1] ?? ''}, cell))));
  if (!rows.length) body.push(element('tr', {}, element('td', {colSpan: heads.length, className: 'hint'}, nothing)));
  redraw(id, head, body);
}
const meter = (part, ...children) => element('td', {className: 'wide meter', part}, ...children);

export function figures(view) {
  const hours = (view.until - Math.max(view.since, view.first ?? view.since)) / 3600;
  $('total').textContent = number(view.total);
  $('sources').textContent = number(view.sources);
  $('country-count').textContent = number(view.countries.filter(({code}) => code).length);
  const rate = view.total / Math.max(hours, 1 / 60);
  $('rate').textContent = number(rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate));
  $('new-sources').textContent = number(view.seen.new.sources);
  $('new-part').textContent = `new addresses, ${percent(view.seen.new.sources, view.sources)}`;
  document.title = `(${number(view.total)}) knockmap · ${location.hostname}`;
}

export function tables(view) {
  const {total, countries, places, networks, addresses, packets, seen, families} = view;
  table('country-table', [['Country'], ['SYNs', 'n'], ['Share', 'n']],
    countries.map(({code, name, count}) => [link('country', code, name), number(count), percent(count, total)]));
  table('place-table', [['City'], ['Country'], ['SYNs', 'n']], places.slice(0, 200).map(([code, city, , , count]) =>
    [city ? link('city', `${code}/${city}`, city) : 'unknown', link('country', code, country(code)), number(count)]));
  table('time-table', [[`From (${zone()})`], ['SYNs', 'n']], bars(view).filter(([, count]) => count).reverse().map(([t, count]) =>
    [button(minute(t), () => setSpan(t, t + view.step), `${minute(t)}, ${lasting(view.step)}: show only these`), number(count)]));
  ranking('network-table', 'Network', networks, row => [link('network', row.network, row.network), ' ', element('span', {className: 'hint'}, `${country(row.code)}, ${row.sources === 1 ? '1 address' : `${number(row.sources)} addresses`}`)]);
  ranking('address-table', 'Address', addresses, row => [link('address', row.address, row.address), ' ', element('span', {className: 'hint'}, place(row.city, row.code))]);
  if (packets) fingerprints(packets);
  split('seen-table', 'seen', [['new', 'first seen in this span'], ['returning', 'seen before it']], seen, view.sources, 'sources');
  split('family-table', 'family', [['4', 'IPv4'], ['6', 'IPv6']], families, total, 'count');
}

function fingerprints(packets) {
  $('packets-note').textContent = packets.of ? `of the newest ${number(packets.of)} packets` : '';
  prints('ttl-table', 'ttl', packets, TTL);
  prints('window-table', 'window', packets, WINDOW);
  prints('port-table', 'port', packets, {});
}

function ranking(id, head, rows, words) {
  const most = Math.max(1, ...rows.map(({count}) => count));
  table(id, [[head, 'wide'], ['SYNs', 'n']], rows.map(row => [meter(row.count / most, ...words(row)), number(row.count)]));
}

// What these values usually mean; scanners can set them as they like.
const TTL = {32: 'rare', 64: 'Linux, BSD, macOS', 128: 'Windows', 255: 'scanner or router'};
const WINDOW = {1024: 'as masscan, Nmap', 65535: 'as ZMap, BSD, macOS', 64240: 'Linux', 29200: 'older Linux', 14600: 'old Linux', 5840: 'very old Linux', 8192: 'Windows', 42340: 'Linux, in a cloud', 26883: 'Linux, in a cloud', 62727: 'Linux, in a cloud'};
function prints(id, name, packets, hints) {
  table(id, [[name === 'ttl' ? 'TTL' : name === 'window' ? 'Window' : 'Port', 'wide'], ['SYNs', 'n']], packets[name].slice(0, 6).map(([value, count]) =>
    [meter(count / packets.of, link(name, String(value), String(value)), ' ', element('span', {className: 'hint'}, hints[value] ?? '')), number(count)]));
}

function split(id, name, kinds, counts, whole, what) {
  table(id, [[name === 'seen' ? 'When' : 'Version', 'wide'], [what === 'sources' ? 'Addresses' : 'SYNs', 'n'], ['Share', 'n']], kinds.map(([value, text]) =>
    [meter(counts[value][what] / Math.max(1, whole), link(name, value, text)), number(counts[value][what]), percent(counts[value][what], whole)]));
}

export function logLines(lines, fresh = new Set()) {
  const heads = [[`Time (${zone()})`, 'time'], ['Address'], ['From', 'wide']];
  const head = element('tr', {}, ...heads.map(([text, kind]) => element('th', {scope: 'col', className: kind ?? ''}, text)));
  const rows = lines.flatMap(line => {
    const kind = fresh.has(line.id) ? ' fresh' : '';
    return [
      element('tr', {className: `event${kind}`, key: `event ${line.id}`}, element('td', {className: 'time'}, when(line.ts)), element('td', {}, link('address', line.address, line.address)), element('td', {}, link('country', line.country, place(line.city, line.country)))),
      element('tr', {className: `text${kind}`, key: `text ${line.id}`}, element('td', {colSpan: 3, className: 'raw'}, line.text)),
    ];
  });
  if (!lines.length) rows.push(element('tr', {}, element('td', {colSpan: 3, className: 'hint'}, 'none in this span')));
  redraw('line-table', head, rows);
}

export function unparsedLines(found) {
  table('unparsed-table', [['Time'], ['Reason'], ['Line', 'raw']], found.lines.map(({ts, reason, text}) => [when(ts), reason, text]));
}

// What the licences of free GeoIP data ask for.
const CREDITS = [[/dbip|city ipv/i, 'IP Geolocation by DB-IP', 'https://db-ip.com'], [/ipinfo/i, 'IP address data powered by IPinfo', 'https://ipinfo.io'],
  [/geolite2/i, 'This product includes GeoLite2 data created by MaxMind', 'https://www.maxmind.com']];
// Of the chain: what is well, and what is not with its next step.
export function health({chain}) {
  const {limit, geo, unparsed, unread, log_error: error} = chain;
  const rows = [['Log', error ? error : unread ? `${number(unread)} bytes not read yet` : 'all read']];
  rows.push(['Unparsed lines', number(unparsed)]);
  if (limit) rows.push(['SYNs the kernel saw', number(limit.seen)], ['over the log limit', `${number(limit.over_limit)} (${percent(limit.over_limit, limit.seen)})`], ['counted at', minute(limit.at)]);
  rows.push(['GeoIP data', geo.built ? `${lasting(Math.max(0, now() - geo.built))} old` : 'none']);
  $('health').replaceChildren(...rows.flatMap(([term, text]) => [element('dt', {}, term), element('dd', {}, text)]));
  const credit = CREDITS.find(([kinds]) => kinds.test(geo.kinds));
  $('credit').hidden = !credit;
  if (credit) Object.assign($('credit'), {textContent: credit[1], href: credit[2]});
}

export function notices(found) {
  const known = [...$('notices').children].map(notice => notice.dataset.text).join('\n');
  if (known === found.map(([text]) => text).join('\n')) return;
  $('notices').replaceChildren(...found.map(([text, command, retry]) => {
    const notice = element('p', {className: 'notice'}, text, command ? element('code', {}, command) : null, retry ? button('Try again', retry) : null);
    notice.dataset.text = text;
    return notice;
  }));
}

const NAMES = {country: 'country', city: 'city', network: 'network', address: 'address', family: 'IP version', seen: 'addresses', ttl: 'TTL at the start', window: 'TCP window', port: 'source port'};
const WORDS = {country: country, city: value => place(value.slice(3), value.slice(0, 2)), family: value => `IPv${value}`};
export function chips(unfilter) {
  const made = [...state.where].map(([name, value]) => {
    const text = (WORDS[name] ?? String)(value);
    const chip = element('button', {type: 'button', onclick: () => unfilter(name)}, element('span', {}, `${NAMES[name]} `), text, ' ✕');
    chip.setAttribute('aria-label', `${NAMES[name]} ${text}: remove this filter`);
    return element('li', {}, chip);
  });
  if (!state.range) {
    const text = stretch(state.from, state.to), chip = element('button', {type: 'button', onclick: () => setRange('24h')}, element('span', {}, 'time '), text, ' ✕');
    chip.setAttribute('aria-label', `time ${text}: remove this filter`);
    made.push(element('li', {}, chip));
  }
  if (state.where.size > 1) made.push(element('li', {}, button('Remove all', () => unfilter())));
  $('chips').replaceChildren(...made);
}
