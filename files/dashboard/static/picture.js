// The view as one PNG: drawn from the charts on the page, so that it shows what is seen.
import {charts, scheme} from './charts.js';
import {number} from './format.js';

export function picture(view, title, subtitle) {
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const family = getComputedStyle(document.body).fontFamily;
  const [width, height] = [1600, 1130], canvas = Object.assign(document.createElement('canvas'), {width, height}), pen = canvas.getContext('2d');
  const text = (words, x, y, size, colour, weight = 400) => { pen.font = `${weight} ${size}px ${family}`; pen.fillStyle = colour; pen.fillText(words, x, y); };
  pen.fillStyle = css('--page');
  pen.fillRect(0, 0, width, height);
  text(title, 40, 62, 34, css('--text'), 680);
  text(subtitle, 40, 94, 19, css('--dim'));
  [[view.total, 'SYNs to port 22'], [view.sources, 'addresses'], [view.countries.filter(({code}) => code).length, 'countries']].forEach(([count, words], i) => {
    text(number(count), 900 + i * 240, 62, 34, css('--text'), 650);
    text(words, 900 + i * 240, 94, 18, css('--dim'));
  });
  for (const [id, x, y, w, h] of [['map', 40, 125, 1020, 620], ['pie', 1080, 125, 480, 620], ['timeline', 40, 765, 1520, 310]]) {
    pen.fillStyle = css('--card');
    pen.beginPath();
    pen.roundRect(x, y, w, h, 16);
    pen.fill();
    const drawn = charts[id].renderToCanvas({pixelRatio: 2, backgroundColor: 'transparent'}), fit = Math.min((w - 30) / drawn.width, (h - 30) / drawn.height);
    pen.drawImage(drawn, x + (w - drawn.width * fit) / 2, y + (h - drawn.height * fit) / 2, drawn.width * fit, drawn.height * fit);
  }
  text('Places are approximate. knockmap', 40, height - 20, 16, css('--dim'));
  canvas.toBlob(blob => {
    const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(blob), download: `knockmap-${scheme()}.png`});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}
