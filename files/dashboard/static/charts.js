// Map, pie and timeline. They are canvases; every number of theirs also stands in a table (panels.js).
/* global echarts */
import {filter, now, setSpan, state} from './state.js';
import {country, lasting, number, place, when, zone} from './format.js';

const $ = id => document.getElementById(id);
const still = matchMedia('(prefers-reduced-motion: reduce)');
// Told apart by every common kind of colour vision, next to each other; in both schemes.
const SLICES = {
  dark: ['#4c9df0', '#ffb547', '#35c9a3', '#f2789f', '#a893ff', '#62d0e8', '#e2d171', '#f08f5f', '#94b97a'],
  light: ['#2a72c4', '#d98a00', '#0f8f6e', '#c2417a', '#6b53d6', '#1d93b0', '#9a8410', '#c2551b', '#5c8440'],
};
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const scheme = () => colour('color-scheme') || (matchMedia('(prefers-color-scheme: light)').matches ? 'light' : 'dark');

// "Natural Earth" by Tom Patterson: a polynomial in the latitude, as published; its inverse by Newton's method.
const rad = Math.PI / 180;
const project = ([lon, lat]) => {
  const f = lat * rad, f2 = f * f, f4 = f2 * f2;
  return [lon * rad * (0.8707 - 0.131979 * f2 + f4 * (-0.013791 + f4 * (0.003971 * f2 - 0.001529 * f4))),
    -f * (1.007226 + f2 * (0.015085 + f4 * (-0.044475 + 0.028874 * f2 - 0.005916 * f4)))];
};
const unproject = ([x, y]) => {
  let f = -y;
  for (let i = 0; i < 12; i++) {
    const f2 = f * f, f4 = f2 * f2;
    f -= (f * (1.007226 + f2 * (0.015085 + f4 * (-0.044475 + 0.028874 * f2 - 0.005916 * f4))) + y)
      / (1.007226 + f2 * (3 * 0.015085 + f4 * (7 * -0.044475 + 9 * 0.028874 * f2 - 11 * 0.005916 * f4)));
  }
  const f2 = f * f, f4 = f2 * f2;
  return [x / (0.8707 - 0.131979 * f2 + f4 * (-0.013791 + f4 * (0.003971 * f2 - 0.001529 * f4))) / rad, f / rad];
};

export const charts = {};
export const countries = () => [...onMap].filter(code => /^[A-Z]{2}$/.test(code));
// A finger that moves over the bars scrolls the page; it taps a bar to zoom in.
const coarse = matchMedia('(pointer: coarse)');
export const dragHint = () => coarse.matches ? 'tap a bar to zoom in' : 'drag over bars to zoom in';
const NARROW = 8;  // pixels: less is a click that slipped
let zoom = 1, onMap = new Set(), fresh = [], shown = null;

export async function start() {
  const world = await fetch('vendor/world-2.0.2.json');
  if (!world.ok) throw new Error(`the outlines of the countries did not come: ${world.status} ${world.statusText}`);
  const outlines = await world.json();
  onMap = new Set(outlines.features.map(feature => feature.properties.name));
  echarts.registerMap('world', outlines);
  for (const id of ['map', 'pie', 'timeline']) charts[id] = echarts.init($(id), null, {renderer: 'canvas'});
  charts.map.on('click', ({componentType, name, data}) => {
    if (componentType === 'geo') { if (/^[A-Z]{2}$/.test(name)) filter('country', name); } else if (data?.city) filter('city', `${data.code}/${data.city}`);
    else if (data) filter('country', data.code);
  });
  charts.map.on('georoam', () => { zoom = charts.map.getOption().geo[0].zoom ?? 1; });
  charts.pie.on('click', ({data}) => data.code !== undefined && filter('country', data.code));
  charts.timeline.on('brushEnd', ({areas}) => {
    const [from, to] = areas[0]?.coordRange ?? [];
    charts.timeline.dispatchAction({type: 'brush', areas: []});
    const wide = from && charts.timeline.convertToPixel({xAxisIndex: 0}, to) - charts.timeline.convertToPixel({xAxisIndex: 0}, from);
    if (wide >= NARROW && to - from > 1000) setSpan(from / 1000, to / 1000);
  });
  charts.timeline.on('click', ({data}) => data && setSpan(data.value[0] / 1000, data.value[0] / 1000 + shown.step));
  // A chart fills its box, whatever its neighbours do.
  const observer = new ResizeObserver(entries => entries.forEach(({target}) => charts[target.id].resize()));
  for (const id of Object.keys(charts)) observer.observe($(id));
  $('zoom-in').onclick = () => zoomMap(1.6);
  $('zoom-out').onclick = () => zoomMap(1 / 1.6);
  $('zoom-reset').onclick = () => { zoom = 1; charts.map.setOption({geo: {zoom: 1, center: null, roam: false}}); };
  $('map').addEventListener('wheel', event => { if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoomMap(event.deltaY < 0 ? 1.3 : 1 / 1.3, event); } }, {passive: false});
  charts.map.getZr().on('dblclick', ({event}) => zoomMap(1.8, event));
  still.addEventListener('change', () => shown && draw(shown));
}

// A page that is scrolled must not get caught by the map: it is dragged only once it is larger than its box.
function zoomMap(by, event) {
  const factor = Math.min(16, Math.max(1, zoom * by)) / zoom;
  zoom *= factor;
  const box = $('map').getBoundingClientRect();
  const at = event?.clientX ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
  if (zoom < 1.01) { $('zoom-reset').click(); return; }
  charts.map.dispatchAction({type: 'geoRoam', componentType: 'geo', geoIndex: 0, zoom: factor, originX: at[0], originY: at[1]});
  charts.map.setOption({geo: {roam: 'move'}});
}

// HTML in a tooltip would need inline styles, which our CSP forbids.
const tooltip = () => ({renderMode: 'richText', backgroundColor: colour('--raised'), borderColor: colour('--line'), padding: [8, 12], textStyle: {color: colour('--text'), fontSize: 13}});
const mix = (from, to, part) => echarts.color.lerp(part, [from, to]);
const size = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

export function draw(view) {
  shown = view;
  const common = {animation: !still.matches, animationDurationUpdate: 250, useUTC: state.utc, textStyle: {fontFamily: getComputedStyle(document.body).fontFamily}};
  drawMap(view, common);
  drawPie(view, common);
  drawTimeline(view, common);
}

function drawMap(view, common) {
  const counts = new Map(view.countries.map(({code, count}) => [code, count]));
  const most = Math.max(1, ...counts.values()), largest = Math.max(1, ...view.places.map(p => p[4]));
  const radius = count => size() * (0.35 + Math.min(1.5, $('map').clientWidth / 600) * Math.sqrt(count / largest));
  charts.map.setOption({
    ...common,
    tooltip: {...tooltip(), formatter: ({name, data}) => data ? `${place(data.city, data.code)}\n${number(data.count)} SYNs` : `${country(name)}\n${number(counts.get(name) ?? 0)} SYNs`},
    geo: {
      map: 'world', projection: {project, unproject}, roam: zoom > 1 ? 'move' : false, left: 6, right: 6, top: 6, bottom: 6,
      itemStyle: {areaColor: colour('--land'), borderColor: colour('--card'), borderWidth: 0.6},
      emphasis: {label: {show: false}, itemStyle: {areaColor: colour('--accent')}}, select: {disabled: true}, tooltip: {show: true},
      regions: [...counts].filter(([code]) => onMap.has(code)).map(([name, count]) => ({name, itemStyle: {areaColor: mix(colour('--low'), colour('--high'), (count / most) ** 0.4)}})),
    },
    series: [{
      id: 'places', type: 'scatter', coordinateSystem: 'geo', z: 3, animation: false,  // circles would fly to each other's places
      data: view.places.map(([code, city, latitude, longitude, count]) => ({value: [longitude, latitude], code, city, count, symbolSize: radius(count)})),
      itemStyle: {color: colour('--dot'), opacity: 0.62, borderColor: colour('--card'), borderWidth: 0.5}, emphasis: {scale: 1.25, itemStyle: {opacity: 1}},
    }, pulses()],
  }, {replaceMerge: ['series']});
  const caption = document.createElement('b');
  caption.textContent = 'SYNs by country';  // above, since South America reaches far down
  $('map-scale').replaceChildren(caption, '1', document.createElement('i'), number(most));
}

function pulses() {
  const data = fresh.map(event => ({value: [event.longitude, event.latitude], code: event.country, city: event.city, count: 1}));
  return {
    id: 'pulses', coordinateSystem: 'geo', type: still.matches ? 'scatter' : 'effectScatter', z: 4, silent: true, symbolSize: size() * 0.55, data,
    itemStyle: {color: colour('--dot'), borderColor: colour('--text'), borderWidth: still.matches ? 2 : 0}, rippleEffect: {brushType: 'stroke', scale: 5, period: 2.2, number: 2},
  };
}

// New events: for a few seconds each.
export function pulse(events) {
  const located = events.filter(event => event.latitude !== null);
  if (!located.length) return;
  fresh = [...fresh, ...located].slice(-60);
  charts.map?.setOption({series: [pulses()]});
  setTimeout(() => {
    fresh = fresh.filter(event => !located.includes(event));
    charts.map?.setOption({series: [pulses()]});
  }, 5000);
}

function drawPie(view, common) {
  const top = view.countries.slice(0, 9), rest = view.countries.slice(9), other = rest.reduce((sum, {count}) => sum + count, 0);
  const colours = SLICES[scheme()];
  const data = top.map(({code, name, count}, i) => ({name, value: count, code, itemStyle: {color: colours[i]}}));
  if (other) data.push({name: `${rest.length} others`, value: other, itemStyle: {color: colour('--dim')}});
  charts.pie.setOption({
    ...common, animation: false,  // it would grow from nothing at every update
    tooltip: {...tooltip(), formatter: ({name, value, percent}) => `${name}\n${number(value)} SYNs, ${percent} %`},
    title: {text: number(view.total), subtext: 'SYNs', left: 'center', top: 'middle', itemGap: 6, textStyle: {color: colour('--text'), fontSize: size() * 1.35, fontWeight: 650}, subtextStyle: {color: colour('--dim'), fontSize: size() * 0.85}},
    series: [{
      type: 'pie', radius: ['37%', '57%'], startAngle: 90, minAngle: 1.5, data, avoidLabelOverlap: true, emptyCircleStyle: {color: colour('--land')},
      itemStyle: {borderColor: colour('--card'), borderWidth: 2, borderRadius: 3},
      label: {bleedMargin: 2, color: colour('--text'), fontSize: size() * 0.86, lineHeight: size() * 1.1, formatter: ({name, percent}) => `${name}\n{part|${percent.toFixed(1)} %}`, rich: {part: {color: colour('--dim'), fontSize: size() * 0.8}}},
      labelLine: {length: 8, length2: 8, lineStyle: {color: colour('--dim')}}, emphasis: {scaleSize: 4, label: {show: true}},
    }],
  }, {replaceMerge: ['series']});
}

// Every bar of the span, also the empty ones.
export function bars({since, until, first, step, series}) {
  const counts = new Map(series), found = [];
  for (let t = Math.floor(Math.max(since, Math.min(first ?? since, until - 1)) / step) * step; t < until; t += step) found.push([t, counts.get(t) ?? 0]);
  return found;
}

function drawTimeline(view, common) {
  // The bar that time has not filled yet is a pale one.
  const unfinished = t => t + view.step > Math.min(view.until, now());
  const data = bars(view).map(([t, count]) => ({value: [t * 1000, count], itemStyle: unfinished(t) ? {opacity: 0.5} : {}})), s = size();
  charts.timeline.setOption({
    ...common,
    tooltip: {...tooltip(), trigger: 'axis', axisPointer: {type: 'shadow', shadowStyle: {color: colour('--accent'), opacity: 0.12}},
      formatter: ([bar]) => bar ? `${when(bar.value[0] / 1000)} ${zone()}\n${lasting(view.step)}: ${number(bar.value[1])} SYNs` : ''},
    grid: {left: 6, right: 14, top: 10, bottom: 4, containLabel: true}, toolbox: {show: false},
    brush: {toolbox: [], xAxisIndex: 0, brushStyle: {color: colour('--accent'), opacity: 0.18, borderColor: colour('--accent')}},
    xAxis: {type: 'time', min: data.length ? data[0].value[0] : null, max: view.until * 1000, axisLine: {lineStyle: {color: colour('--line')}}, axisTick: {show: false}, splitLine: {show: false}, axisLabel: {color: colour('--dim'), fontSize: s * 0.82, hideOverlap: true, formatter: {month: '{MMM}', day: '{d} {MMM}'}}},
    yAxis: {type: 'value', minInterval: 1, splitNumber: 3, splitLine: {lineStyle: {color: colour('--line')}}, axisLabel: {color: colour('--dim'), fontSize: s * 0.82, formatter: number}},
    series: [{type: 'bar', data, barWidth: `${Math.max(1, 0.8 * (charts.timeline.getWidth() - 70) / Math.max(1, data.length))}`, itemStyle: {color: colour('--bar'), borderRadius: [2, 2, 0, 0]}, cursor: 'crosshair'}],
  }, {replaceMerge: ['series']});
  if (!coarse.matches) charts.timeline.dispatchAction({type: 'takeGlobalCursor', key: 'brush', brushOption: {brushType: 'lineX', brushMode: 'single'}});
}
