// Points and lines on two axes, linear or of powers of ten, as SVG.
import { count, h, real, s } from "./dom.js";

const SIZE = { width: 520, height: 320, left: 64, right: 14, top: 12, bottom: 40 };

// lines: [{points: [[x, y]], color, label, dashed}]; dots: [{x, y, label, color, hollow, title}].
export function figure({ lines = [], dots = [], x, y, title }) {
  const all = [...lines.flatMap((line) => line.points), ...dots.map((dot) => [dot.x, dot.y])];
  const across = axis(all.map(([value]) => value), x);
  const up = axis(all.map(([, value]) => value), y);
  const place = ([a, b]) => [
    SIZE.left + across.share(a) * (SIZE.width - SIZE.left - SIZE.right),
    SIZE.height - SIZE.bottom - up.share(b) * (SIZE.height - SIZE.top - SIZE.bottom),
  ];
  const svg = s("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": title, class: "figure" });
  grid(svg, across, up, place, x, y);
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  svg.append(s("clipPath", { id: clip }, s("rect", { x: SIZE.left, y: SIZE.top, width: SIZE.width - SIZE.left - SIZE.right, height: SIZE.height - SIZE.top - SIZE.bottom })));
  for (const line of lines) {
    const points = line.points.map((point) => place(point).map((value) => value.toFixed(1)).join(",")).join(" ");
    svg.append(s("polyline", { points, "clip-path": `url(#${clip})`, class: line.dashed ? "line dashed" : "line", style: { stroke: `var(--${line.color})` } }));
  }
  const taken = []; // Boxes of dots and names, which no other name may cover.
  const named = [];
  for (const dot of dots) {
    const [cx, cy] = place([dot.x, dot.y]);
    const style = dot.hollow ? { stroke: `var(--${dot.color})` } : { fill: `var(--${dot.color})` };
    svg.append(s("circle", { cx, cy, r: dot.radius ?? 4, class: dot.hollow ? "hollow" : null, style }, s("title", {}, dot.title ?? dot.label ?? "")));
    taken.push({ left: cx - 5, right: cx + 5, top: cy - 5, bottom: cy + 5 });
    if (dot.label) named.push([cx, cy, dot.label]);
  }
  for (const one of named) svg.append(name(one, taken));
  const legend = h("div", { class: "legend" }, lines.filter((line) => line.label).map((line) => h("span", {}, h("i", { class: line.dashed ? "dash dashed" : "dash", style: { background: `var(--${line.color})`, color: `var(--${line.color})` } }), line.label)));
  return h("figure", {}, h("figcaption", {}, h("b", {}, title)), legend, svg);
}

// A name beside its dot, where it covers nothing if there is such a place.
function name([cx, cy, text], taken) {
  const width = 6.6 * text.length;
  const places = [[9, 4, 0], [-9, 4, 1], [0, -10, 0.5], [0, 19, 0.5], [9, -10, 0], [9, 19, 0], [-9, -10, 1], [-9, 19, 1]];
  const boxes = places.map(([x, y, share]) => {
    const left = cx + x - share * width;
    return { left, right: left + width, top: cy + y - 10, bottom: cy + y + 2, x: cx + x, y: cy + y, share };
  });
  const free = (box) => box.left > SIZE.left && box.right < SIZE.width && box.bottom < SIZE.height - SIZE.bottom &&
    !taken.some((other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom);
  const box = boxes.find(free) ?? boxes[0];
  taken.push(box);
  const anchor = { 0: "start", 0.5: "middle", 1: "end" }[box.share];
  return s("text", { x: box.x, y: box.y, "text-anchor": anchor, class: "name" }, text);
}

function axis(values, { log = false, pad = 0.06, from = null, to = null }) {
  const scale = log ? Math.log10 : (value) => value;
  const seen = values.filter((value) => Number.isFinite(value) && (!log || value > 0)).map(scale);
  let low = from === null ? Math.min(...seen) : scale(from);
  let high = to === null ? Math.max(...seen) : scale(to);
  if (!Number.isFinite(low + high)) [low, high] = [0, 1];
  const room = high > low ? pad * (high - low) : Math.abs(high) * 0.1 || 1;
  if (from === null) low -= room;
  if (to === null) high += room;
  return { low, high, log, share: (value) => (scale(value) - low) / (high - low) };
}

function ticks({ low, high, log }) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= rough);
  if (log) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step) found.push(log ? 10 ** at : at);
  return found;
}

function grid(svg, across, up, place, x, y) {
  const named = (value, { log, show }) => (show ? show(value) : log ? count(value) : real(value));
  const floor = SIZE.height - SIZE.bottom;
  for (const value of ticks(across)) {
    const [at] = place([value, up.log ? 10 ** up.low : up.low]);
    svg.append(s("line", { x1: at, x2: at, y1: SIZE.top, y2: floor, class: "grid" }));
    svg.append(s("text", { x: at, y: floor + 15, "text-anchor": "middle", class: "tick" }, named(value, x)));
  }
  for (const value of ticks(up)) {
    const [, at] = place([across.log ? 10 ** across.low : across.low, value]);
    svg.append(s("line", { x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: at, y2: at, class: "grid" }));
    svg.append(s("text", { x: SIZE.left - 6, y: at + 4, "text-anchor": "end", class: "tick" }, named(value, y)));
  }
  svg.append(s("text", { x: (SIZE.left + SIZE.width) / 2, y: SIZE.height - 6, "text-anchor": "middle", class: "label" }, x.label));
  svg.append(s("text", { x: 10, y: floor / 2, transform: `rotate(-90 10 ${floor / 2})`, "text-anchor": "middle", class: "label" }, y.label));
}
