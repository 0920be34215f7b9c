// A chart or a figure of the page as an SVG that needs no page around it, on its own background.
(() => {
  "use strict";
  const { color, resolved, labels, ticks, charts } = globalThis.report;
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif";
  const WIDTH = 640;
  const HEIGHT = 400;
  const SIDES = { left: 64, right: 20, bottom: 46 };

  const escaped = (text) =>
    String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[^\P{Cc}\n\t]/gu, "");

  function tag(name, attributes, ...children) {
    const text = Object.entries(attributes)
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([key, value]) => ` ${key}="${escaped(value)}"`);
    return `<${name}${text.join("")}>${children.join("")}</${name}>`;
  }

  const words = (text, x, y, more = {}) =>
    tag("text", { x, y, fill: color("soft"), "font-size": 12, ...more }, escaped(text));

  // Breaks a text where a line of `width` pixels is full; a letter is half as wide as high.
  function wrapped(text, width, size = 12) {
    const most = Math.floor(width / (size * 0.52));
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      const last = lines.length - 1;
      if (lines[last] && lines[last].length + word.length + 1 > most) lines.push(word);
      else lines[last] = lines[last] ? `${lines[last]} ${word}` : word;
    }
    return lines;
  }

  // Title, lines of notes and entries of a legend; returns them, and how much height they take.
  function heading(width, left, title, notes, entries) {
    const bold = { fill: color("ink"), "font-size": 15, "font-weight": 600 };
    const parts = [words(title, left, 26, bold)];
    let y = 44;
    for (const note of notes.flatMap((text) => wrapped(text, width - left - 16))) {
      parts.push(words(note, left, y));
      y += 16;
    }
    let x = left;
    y += 4;
    for (const entry of entries) {
      const wide = 34 + entry.label.length * 6.6;
      if (x > left && x + wide > width - 12) [x, y] = [left, y + 18];
      const look = { stroke: entry.color, "stroke-dasharray": entry.dash?.join(" ") };
      const line = { x1: x, x2: x + 16, y1: y - 4, y2: y - 4, "stroke-width": 2.5, ...look };
      const dot = { cx: x + 8, cy: y - 4, r: 3.5, fill: entry.color };
      parts.push(entry.dots ? tag("circle", dot) : tag("line", line));
      parts.push(words(entry.label, x + 22, y));
      x += wide;
    }
    return { parts, height: entries.length ? y + 8 : y - 8 };
  }

  function sheet(width, height, title, ...parts) {
    const back = tag("rect", { width, height, fill: color("page") });
    const box = { viewBox: `0 0 ${width} ${height}`, width, height, "font-family": FONT };
    const name = tag("title", {}, escaped(title));
    return tag("svg", { xmlns: "http://www.w3.org/2000/svg", ...box }, name, back, ...parts);
  }

  // The axes, with their grid, of a plot in the box {left, right, top, bottom}.
  function frame(box, scales, model) {
    const parts = [];
    const grid = { stroke: color("line"), "stroke-width": 1 };
    const line = (x1, y1, x2, y2) => parts.push(tag("line", { x1, y1, x2, y2, ...grid }));
    const middle = { "text-anchor": "middle" };
    const up = ticks(scales.y.min, scales.y.max, 6);
    const across = ticks(scales.x.min, scales.x.max, 7, model.log);
    labels(up, model.showY).forEach((label, i) => {
      const y = scales.py(up[i]);
      line(box.left, y, box.right, y);
      parts.push(words(label, box.left - 8, y + 4, { "text-anchor": "end" }));
    });
    labels(across, model.axis.show).forEach((label, i) => {
      const x = scales.px(across[i]);
      line(x, box.top, x, box.bottom);
      parts.push(words(label, x, box.bottom + 18, middle));
    });
    parts.push(words(model.axis.label, (box.left + box.right) / 2, box.bottom + 36, middle));
    return parts;
  }

  function paths(model, scales) {
    const [xs] = model.data;
    return model.layers.flatMap((layer, i) => {
      const stroke = color(layer.color, layer.alpha);
      const points = [];
      model.data[i + 1].forEach((value, at) => {
        const inside = xs[at] >= scales.x.min && xs[at] <= scales.x.max;
        if (value !== null && value !== undefined && inside) {
          points.push([scales.px(xs[at]).toFixed(1), scales.py(value).toFixed(1)]);
        }
      });
      const dash = layer.dash ? layer.dash.join(" ") : null;
      const look = { fill: "none", stroke, "stroke-width": layer.width, "stroke-dasharray": dash };
      const path = { points: points.map((point) => point.join(",")).join(" ") };
      const drawn = [tag("polyline", { ...path, ...look, "stroke-linejoin": "round" })];
      if (layer.dots) {
        drawn.push(...points.map(([cx, cy]) => tag("circle", { cx, cy, r: 2.5, fill: stroke })));
      }
      return drawn;
    });
  }

  function extras(model, box, scales) {
    const parts = [];
    for (const line of model.panel.lines) {
      const y = scales.py(line.value);
      if (y < box.top || y > box.bottom) continue;
      const look = { stroke: color("soft"), "stroke-dasharray": "4 3" };
      parts.push(tag("line", { x1: box.left, x2: box.right, y1: y, y2: y, ...look }));
      const below = y - box.top < 16 ? 14 : -5;
      const small = { "text-anchor": "end", "font-size": 11 };
      parts.push(words(line.label, box.right - 4, y + below, small));
    }
    for (const mark of model.marks) {
      const x = scales.px(mark.x);
      if (x < box.left || x > box.right) continue;
      const look = { y: box.top + 9, fill: color("bad"), "text-anchor": "middle", "font-size": 10 };
      parts.push(tag("text", { x, ...look }, tag("title", {}, escaped(mark.label)), "▼"));
    }
    return parts;
  }

  // The chart as it is seen now: its zoom, its axis, its smoothing, the colours of the theme.
  function ofChart(figure) {
    const { chart, model } = charts.get(figure);
    const { panel } = model;
    const legend = panel.series.map((one) => ({
      label: one.label,
      color: color(one.color),
      dots: one.dots,
      dash: one.dash ? [5, 3] : null,
    }));
    const note = [panel.about ?? panel.stage, panel.hint].filter(Boolean).join(" · ");
    const top = heading(WIDTH, SIDES.left, panel.title, [note], legend);
    const box = { left: SIDES.left, right: WIDTH - SIDES.right, top: top.height + 6 };
    box.bottom = HEIGHT - SIDES.bottom;
    const { x, y } = chart.scales;
    const of = (v) => (model.log ? Math.log10(v) : v);
    const wide = of(x.max) - of(x.min) || 1;
    const scales = {
      x,
      y,
      px: (v) => box.left + ((of(v) - of(x.min)) / wide) * (box.right - box.left),
      py: (v) => box.bottom - ((v - y.min) / (y.max - y.min)) * (box.bottom - box.top),
    };
    const size = { width: box.right - box.left, height: box.bottom - box.top };
    const inside = tag("rect", { x: box.left, y: box.top, ...size });
    // Pictures that are put into one document must not share an id.
    const id = `inside-${figure.dataset.name}`;
    const clip = tag("defs", {}, tag("clipPath", { id }, inside));
    const lines = tag("g", { "clip-path": `url(#${id})` }, ...paths(model, scales));
    const around = [...frame(box, scales, model), lines, ...extras(model, box, scales)];
    return sheet(WIDTH, HEIGHT, panel.title, clip, ...top.parts, ...around);
  }

  const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size",
    "font-weight", "paint-order", "text-anchor"];

  // A figure of the page, with what its style sheet says written into every element.
  function ofStill(figure) {
    const svg = figure.querySelector("svg");
    const copy = svg.cloneNode(true);
    const places = [svg.querySelectorAll("*"), copy.querySelectorAll("*")];
    places[0].forEach((element, i) => {
      const style = getComputedStyle(element);
      const twin = places[1][i];
      twin.removeAttribute("style");
      twin.removeAttribute("class");
      for (const name of KEPT) {
        const value = style.getPropertyValue(name);
        const paint = (name === "fill" || name === "stroke") && value !== "none";
        twin.setAttribute(name, paint ? resolved(value) : value);
      }
    });
    const { width, height } = svg.viewBox.baseVal;
    const caption = figure.querySelector("figcaption");
    const title = caption.querySelector("b").textContent;
    const dots = [...caption.querySelectorAll(".dot")].map((dot) => ({
      label: dot.parentElement.textContent.trim(),
      color: resolved(getComputedStyle(dot).backgroundColor),
      dots: true,
    }));
    const notes = [...caption.querySelectorAll(":scope > span")].map((span) => {
      const rest = span.cloneNode(true);
      for (const dot of rest.querySelectorAll(".dot")) dot.parentElement.remove();
      return rest.textContent.trim();
    });
    const top = heading(width * 1.5, 20, title, notes, dots);
    const body = new XMLSerializer();
    const inner = [...copy.childNodes].map((node) => body.serializeToString(node));
    const placed = tag("g", { transform: `translate(8 ${top.height}) scale(1.45)` }, ...inner);
    return sheet(width * 1.5, top.height + height * 1.45 + 8, title, ...top.parts, placed);
  }

  globalThis.report.picture = (figure) => (charts.has(figure) ? ofChart(figure) : ofStill(figure));
})();
