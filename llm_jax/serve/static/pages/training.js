// Every stage's curves on one time line, several runs on top of each other, and what PPO trades.
import { get, trying } from "../api.js";
import { field, fill, h, percent, real, slider } from "../dom.js";
import { figure } from "../figure.js";
import { hue } from "../hues.js";
import { plot } from "../plot.js";

const FIRST = ["loss", "eval/loss", "eval/bits_per_byte", "eval/accuracy", "accuracy", "rewards/accuracies", "rewards/margins", "objective/scores", "objective/kl", "gold/mean", "rollout/length", "objective/entropy", "grad_norm", "lr", "time/tokens_per_second", "time/data_share"];
const SHOWN = 12; // Charts at first.

export function mount(section, app) {
  const page = new Page(section, app);
  return { update: (state) => page.update(state), shown: () => page.shown() };
}

class Page {
  constructor(section, app) {
    this.app = app;
    this.curves = {}; // Run -> what /api/curves says.
    this.charts = [];
    this.axis = "time";
    this.most = SHOWN;
    this.smooth = slider({ min: 0, max: 0.95, step: 0.05, value: 0.6, oninput: () => this.redraw() });
    this.filter = h("input", { type: "search", placeholder: "such as kl or grad", oninput: () => this.draw() });
    this.runs = h("fieldset", { class: "checks" });
    this.error = h("p", { class: "error", role: "alert" });
    this.trades = h("div", { class: "figures" });
    this.panels = h("div", { class: "panels" });
    this.more = h("button", { type: "button", onclick: () => this.showAll() });
    const choice = [["time", "one time line"], ["step", "steps"]].map(([axis, text]) =>
      h("button", { type: "button", "aria-pressed": String(axis === this.axis), "data-axis": axis, onclick: () => this.against(axis) }, text));
    this.choice = choice;
    section.append(
      h("h2", {}, "Training dynamics"),
      h("p", { class: "lead" }, "Move over a chart to read values, drag to zoom, double-click to zoom out. Point at a title to see what the number means."),
      h("div", { class: "controls" }, field("Smoothing", this.smooth, (x) => (+x).toFixed(2)),
        h("span", { class: "choice", role: "group", "aria-label": "Against" }, choice), field("Only", this.filter), this.runs),
      this.error, this.panels, h("div", { class: "buttons" }, this.more), this.trades,
    );
    document.documentElement.addEventListener("themechange", () => this.redraw());
    new ResizeObserver(() => this.resized()).observe(this.panels);
  }

  update(state) {
    const boxes = state.runs.length > 1;
    if (this.known !== state.runs.join()) {
      this.known = state.runs.join();
      fill(this.runs, boxes ? [h("legend", {}, "Runs"), ...state.runs.map((run, i) =>
        h("label", {}, h("input", { type: "checkbox", value: run, checked: i < 2 || run === state.run, onchange: () => this.load() }), run))] : []);
      this.runs.hidden = !boxes;
    }
    const now = `${state.run} ${state.changed}`;
    if (this.changed !== now) this.load();
    this.changed = now;
  }

  shown() {
    if (this.wanting) this.load();
    else this.draw();
  }

  wanted() {
    const boxes = [...this.runs.querySelectorAll("input:checked")].map((box) => box.value);
    return boxes.length || this.runs.querySelector("input") ? boxes : [""];
  }

  // Loads the curves again: one time after the other, however fast they grow, and only to be seen.
  async load() {
    this.wanting = true;
    if (this.loading || !this.panels.clientWidth) return;
    this.loading = true;
    while (this.wanting) {
      this.wanting = false;
      await this.read();
    }
    this.loading = false;
  }

  async read() {
    const runs = this.wanted();
    const found = await trying(this.error, () => Promise.all(runs.map((run) => get("/api/curves", { run }))));
    if (!found) return;
    this.curves = Object.fromEntries(runs.map((run, i) => [run, found[i]]));
    this.explain = Object.assign({}, ...found.map((one) => one.explain ?? {}));
    this.draw();
  }

  against(axis) {
    this.axis = axis;
    for (const button of this.choice) button.setAttribute("aria-pressed", String(button.dataset.axis === axis));
    this.draw();
  }

  showAll() {
    this.most = Infinity;
    this.draw();
  }

  names() {
    const all = new Set(Object.values(this.curves).flatMap((run) => Object.values(run.stages).flatMap((stage) => Object.keys(stage.y))));
    const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
    const wanted = this.filter.value.trim().toLowerCase();
    return [...all].filter((name) => name.toLowerCase().includes(wanted)).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  }

  series(name) {
    const runs = Object.entries(this.curves);
    return runs.flatMap(([run, { stages }], number) => {
      const begin = Math.min(...Object.values(stages).map((stage) => stage.begin ?? Infinity));
      return Object.entries(stages).filter(([, stage]) => Object.hasOwn(stage.y, name)).map(([label, stage]) => {
        const shift = this.axis === "time" && Number.isFinite(begin) ? (stage.begin ?? begin) - begin : 0;
        const x = this.axis === "time" ? stage.t.map((value) => value + shift) : stage.x;
        return { label: runs.length > 1 ? `${run} ${label}` : label, color: hue(label), dashed: number > 0, x, y: stage.y[name] };
      });
    });
  }

  draw() {
    if (!this.panels.clientWidth) return;
    // Who has zoomed in keeps looking there while the run goes on.
    const zooms = new Map(this.charts.map((chart) => [`${chart.title} ${chart.axis}`, chart.zoom()]));
    for (const chart of this.charts) chart.destroy();
    const names = this.names();
    const shown = names.slice(0, this.most);
    this.charts = shown.map((name) => plot({
      title: name, hint: this.explain?.[name] ?? "", series: this.series(name), axis: this.axis,
      zoom: zooms.get(`${name} ${this.axis}`) ?? null, smooth: () => +this.smooth.value, sync: `training-${this.axis}`,
    }));
    fill(this.panels, this.charts.map((chart) => chart.element));
    this.more.textContent = `All ${names.length} metrics`;
    this.more.hidden = names.length <= shown.length;
    if (!names.length) fill(this.panels, h("p", { class: "missing" }, "No metric of this name was recorded yet."));
    fill(this.trades, trades(this.curves));
    this.redraw();
  }

  // Legends change their height as one points at values; that is no reason to draw charts again,
  // least of all while one drags over them.
  resized() {
    if (this.width === this.panels.clientWidth) return;
    this.width = this.panels.clientWidth;
    this.redraw();
  }

  redraw() {
    for (const chart of this.charts) chart.redraw();
  }
}

// What a policy pays in KL for its score, and what the score is worth by the measure that it does not see.
function trades(curves) {
  const pairs = [
    ["KL against reward", "objective/kl", "KL to the reference, nats", "objective/scores", "score"],
    ["Proxy against gold", "objective/scores", "score: what is optimised", "gold/mean", "gold: what is meant"],
  ];
  return pairs.map(([title, across, xLabel, up, yLabel]) => {
    const lines = [];
    const dots = [];
    for (const [number, [run, { stages }]] of Object.entries(curves).entries()) {
      for (const [name, stage] of Object.entries(stages)) {
        const [xs, ys] = [stage.y[across], stage.y[up]];
        if (!xs || !ys) continue;
        const rows = xs.map((value, i) => [value, ys[i], stage.x[i]]).filter(([a, b]) => a !== null && b !== null);
        const width = Math.max(1, Math.ceil(rows.length / 25));
        const means = [];
        for (let i = 0; i < rows.length; i += width) {
          const part = rows.slice(i, i + width);
          means.push([0, 1].map((k) => part.reduce((total, row) => total + row[k], 0) / part.length).concat(part.at(-1)[2]));
        }
        const color = hue(name);
        lines.push({ points: means, color, dashed: number > 0, label: run ? `${run} ${name}` : name });
        dots.push(...means.map(([x, y, step], i) => ({ x, y, color, hollow: number > 0, radius: i === means.length - 1 ? 5 : 3, title: `step ${step}: ${real(x)}, ${real(y)}`, label: i === means.length - 1 ? run || "end" : "" })));
      }
    }
    return lines.length ? figure({ lines, dots, title, x: { label: xLabel }, y: { label: yLabel } }) : null;
  });
}
