// Curves over steps or time with uPlot: a canvas that follows the theme, and a legend with values.
/* global uPlot */
import { duration, h, real } from "./dom.js";

const HEIGHT = 190;

// The resolved colour of a CSS variable: a canvas knows no variables.
function color(name, alpha = 1) {
  const probe = h("i", { hidden: true, style: { color: `var(--${name})` } });
  document.body.append(probe);
  const parts = getComputedStyle(probe).color.match(/[\d.]+/g);
  probe.remove();
  return `rgba(${parts[0]}, ${parts[1]}, ${parts[2]}, ${alpha})`;
}

function smoothed(values, weight) {
  let total = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    total = weight * total + value;
    mass = weight * mass + 1;
    return total / mass;
  });
}

// series: [{label, color, dashed, x: [], y: []}]; axis: "time" or "step"; zoom: {min, max} of it to
// begin with, or null. Returns {element, redraw, destroy, zoom}.
export function plot({ title, axis, zoom, hint, series, smooth, sync }) {
  const cells = series.map(() => h("b", {}));
  const legend = h("div", { class: "legend" }, series.map((one, i) =>
    h("span", {}, h("i", { class: one.dashed ? "dash dashed" : "dash", style: { background: `var(--${one.color})`, color: `var(--${one.color})` } }), one.label, cells[i])));
  const place = h("div", { class: "plot" });
  const head = h("b", hint ? { title: hint, tabindex: 0, class: "explained" } : {}, title);
  const element = h("figure", { class: "panel" }, h("figcaption", {}, head), legend, place);
  const joined = uPlot.join(series.map((one) => [one.x, one.y.map((value) => value ?? null)]), series.map(() => [0]));
  let chart = null;

  function told(index) {
    series.forEach((one, i) => {
      const values = joined[i + 1];
      let at = index ?? values.length - 1;
      while (at >= 0 && (values[at] === null || values[at] === undefined)) at--;
      cells[i].textContent = at < 0 ? "–" : real(values[at]);
    });
  }

  function zoomed({ min, max }) {
    const [first, last] = [joined[0][0], joined[0].at(-1)];
    zoom = min > first || max < last ? { min, max } : null;
  }

  function redraw(weight = smooth()) {
    const width = place.clientWidth;
    if (!width) return;
    chart?.destroy();
    const before = zoom; // A chart that is made shows all, and says so.
    const data = [joined[0], ...joined.slice(1).map((values, i) => (series[i].y.length < 30 ? values : smoothed(values, weight)))];
    const axisOf = { stroke: color("soft"), font: "11px system-ui, sans-serif", grid: { stroke: color("line"), width: 1 }, ticks: { show: false } };
    chart = new uPlot({
      width, height: HEIGHT, legend: { show: false }, padding: [6, 12, 0, 0], scales: { x: { time: false } },
      cursor: { y: false, points: { size: 6 }, sync: { key: sync } },
      series: [{}, ...series.map((one) => ({
        stroke: color(one.color), width: 1.6, spanGaps: true, dash: one.dashed ? [5, 4] : [],
        points: { show: one.y.filter((value) => value !== null).length < 4, size: 5, fill: color(one.color) },
      }))],
      axes: [
        { ...axisOf, size: 26, space: 64, values: (u, at) => at.map((value) => (axis === "time" ? duration(value) : real(value))) },
        { ...axisOf, size: 52, space: 26, values: (u, at) => at.map((value) => real(value)) },
      ],
      hooks: { setCursor: [(u) => told(u.cursor.idx ?? null)], setScale: [(u, key) => key === "x" && zoomed(u.scales.x)] },
    }, data, place);
    if (before) chart.setScale("x", before);
    told(null);
  }

  return { element, redraw, title, axis, zoom: () => zoom, destroy: () => chart?.destroy() };
}
