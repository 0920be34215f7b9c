// Elements, and numbers for people. Text from outside only ever becomes a text node.

const GAP = "\u00a0";

// h("p", { class: "note" }, "text", element, null): attributes, and on* listeners.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "style") {
      for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    } else element.setAttribute(name, value === true ? "" : value);
  }
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null));
}

const FOCUSED = "a, button, summary";

// Like `fill`, but what says the same as before stays as it is; what is new takes over the focus.
export function refill(element, ...children) {
  const made = children.flat().filter((child) => child !== null);
  const old = [...element.children];
  made.forEach((child, i) => {
    if (!old[i]) element.append(child);
    else if (!old[i].isEqualNode(child)) swap(old[i], child);
  });
  for (const child of old.slice(made.length)) child.remove();
}

function swap(old, made) {
  const held = [...old.querySelectorAll(FOCUSED)].indexOf(document.activeElement);
  old.replaceWith(made);
  if (held >= 0) made.querySelectorAll(FOCUSED)[held]?.focus();
}

// What of a run is done: a text that changes when there may be something new to load.
export function finished(state) {
  return [state.run, ...state.stages.filter((stage) => stage.state === "done").map((stage) => stage.name)].join();
}

// Says that something is missing for as long as it is.
export function missing(place, text, is) {
  if (is) place.textContent = text;
  else if (place.textContent === text) place.textContent = "";
}

export function real(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 1).replace(/-/g, "−");
  return `${+value.toPrecision(Math.max(digits, size >= 1000 ? 4 : digits))}`.replace("-", "−");
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}${GAP}%`;
}

const UNITS = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

// 1234567 -> 1.23 M; a count of things.
export function count(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  for (const [size, unit] of UNITS) {
    if (Math.abs(value) >= Math.max(size, 1e5)) return `${+(value / size).toPrecision(3)}${GAP}${unit}`;
  }
  return Number.isInteger(value) ? value.toLocaleString("en").replaceAll(",", GAP) : real(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e15, "PB"], [1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= size) return `${+(value / size).toPrecision(3)}${GAP}${unit}`;
  }
  return `${value}${GAP}B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 9.95) return `${seconds.toFixed(1)}${GAP}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}${GAP}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}${GAP}min${GAP}${String(whole % 60).padStart(2, "0")}${GAP}s`;
  return `${Math.floor(whole / 3600)}${GAP}h${GAP}${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")}${GAP}min`;
}

// A token's text with what cannot be seen made visible.
export function visible(piece) {
  if (piece.name) return piece.name;
  if (piece.text === "") return "·";
  return piece.text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (gap) => "␣".repeat(gap.length));
}

let fields = 0;

// A labelled input, its value beside the label if it is a slider.
export function field(label, input, show = null) {
  input.id ||= `field-${++fields}`;
  const output = show ? h("output", { for: input.id }, show(input.value)) : null;
  if (show) input.addEventListener("input", () => (output.textContent = show(input.value)));
  return h("div", { class: "field" }, h("span", {}, h("label", { for: input.id }, label), output), input);
}

export function slider(attributes) {
  return h("input", { type: "range", ...attributes });
}

export function select(options, attributes = {}) {
  return h("select", attributes, options.map(([value, text]) => h("option", { value }, text ?? value)));
}

// Replaces the options of a select and keeps the choice, if it is still there. A menu that is open
// stays open as long as nothing changes.
export function choose(element, options, preferred = "") {
  const before = element.value || preferred;
  refill(element, options.map(([value, text]) => h("option", { value }, text ?? value)));
  const values = options.map(([value]) => value);
  element.value = values.includes(before) ? before : values.includes(preferred) ? preferred : (values[0] ?? "");
}

export function bar(share, label, color = "muted") {
  const inside = h("i", { style: { width: `${100 * Math.min(Math.max(share || 0, 0), 1)}%`, background: `var(--${color})` } });
  return h("span", { class: "bar" }, h("span", { class: "track" }, inside), h("span", { class: "num" }, label));
}

export function debounced(action, wait = 120) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
}
