// Numbers, times and names as they are shown.
import {now, state} from './state.js';

export const number = n => n.toLocaleString('en').replaceAll(',', '\u202f');
export const percent = (part, whole) => whole ? `${(100 * part / whole).toFixed(1)} %` : '–';
const regions = new Intl.DisplayNames(['en'], {type: 'region', fallback: 'none'});
export function country(code) {
  if (!code) return 'unknown';
  try { return regions.of(code) ?? code; } catch { return code; }
}
export const place = (city, code) => city ? `${city}, ${country(code)}` : country(code);

const parts = {year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23'};
const formats = {true: new Intl.DateTimeFormat('sv', {...parts, timeZone: 'UTC'}), false: new Intl.DateTimeFormat('sv', parts)};
export const when = t => formats[state.utc].format(t * 1000);
export const minute = t => when(t).slice(0, 16);
const short = {day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit', hourCycle: 'h23'};
const shorts = [short, {...short, year: 'numeric'}, {hour: '2-digit', minute: '2-digit', hourCycle: 'h23'}].map(parts => ({true: new Intl.DateTimeFormat('en-GB', {...parts, timeZone: 'UTC'}), false: new Intl.DateTimeFormat('en-GB', parts)}));
// From when to when, as short as it is clear: "23 Nov, 21:49 – 24 Nov, 21:49".
export function stretch(from, to) {
  const [plain, year, time] = shorts.map(format => format[state.utc]);
  const [a, b] = [when(from), when(to)], kind = a.slice(0, 4) === b.slice(0, 4) && a.slice(0, 4) === when(now()).slice(0, 4) ? plain : year;
  return `${kind.format(from * 1000)} – ${(a.slice(0, 10) === b.slice(0, 10) ? time : kind).format(to * 1000)}`;
}
const named = new Intl.DateTimeFormat('en', {timeZoneName: 'short'});
export const zoneShort = () => state.utc ? 'UTC' : named.formatToParts().find(({type}) => type === 'timeZoneName').value;
export const zone = () => state.utc ? 'UTC' : Intl.DateTimeFormat().resolvedOptions().timeZone;
// For <input type=datetime-local>, and back.
export const local = t => when(t).replace(' ', 'T');
export const epoch = text => Date.parse(state.utc ? `${text}Z` : text) / 1000;

export function lasting(s) {
  for (const [unit, size] of [['day', 86400], ['hour', 3600], ['minute', 60]]) {
    if (s >= size) { const n = Math.round(s / size); return `${n} ${unit}${n === 1 ? '' : 's'}`; }
  }
  return `${Math.round(s)} s`;
}
