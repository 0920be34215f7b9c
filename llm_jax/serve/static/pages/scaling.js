// What a budget buys: sliders over parameters, tokens, devices and days, beside the scaling laws.
import { get, post, trying } from "../api.js";
import { bytes, count, debounced, field, fill, h, percent, real, select, slider } from "../dom.js";
import { figure } from "../figure.js";

const GIVEN = [["params+days", "parameters and days"], ["params+tokens", "parameters and tokens"], ["tokens+days", "tokens and days"], ["days", "days alone: the best size"]];
const power = (input) => 10 ** +input.value;
const days = (value) => `${real(value)} ${value === 1 ? "day" : "days"}`;

export function mount(section) {
  const page = new Page(section);
  page.load();
  return {};
}

class Page {
  constructor(section) {
    this.error = h("p", { class: "error", role: "alert" });
    this.given = select(GIVEN, { onchange: () => this.changed() });
    this.law = select([["besiroglu", "…"]], { onchange: () => this.ask() });
    this.device = select([["H100"]], { onchange: () => this.ask() });
    this.params = slider({ min: 6, max: 13, step: 0.001, value: Math.log10(7e9) });
    this.tokens = slider({ min: 8, max: 14, step: 0.001, value: 12 });
    this.days = slider({ min: -1, max: 3, step: 0.001, value: Math.log10(14) });
    this.devices = slider({ min: 0, max: 5, step: 0.001, value: Math.log10(64) });
    this.mfu = slider({ min: 0.05, max: 0.8, step: 0.01, value: 0.4 });
    this.price = slider({ min: 0, max: 12, step: 0.1, value: 2 });
    this.tiles = h("dl", { class: "tiles" });
    this.verdict = h("p", { class: "note", role: "status" });
    this.table = h("div", {});
    this.figures = h("div", { class: "figures" });
    this.build(section);
    const soon = debounced(() => this.ask(), 60);
    for (const input of section.querySelectorAll("input[type=range]")) input.addEventListener("input", soon);
    this.changed();
  }

  build(section) {
    const one = (label, input, show) => field(label, input, show);
    section.append(
      h("h2", {}, "Scaling"),
      h("p", { class: "lead" }, "Loss falls as a power of parameters and of tokens; for a budget of FLOPs there is a best size. Losses are those of the law's text and tokenizer; yours will differ, and a sweep of your own (experiments.scaling_law) can be chosen here."),
      h("div", { class: "split" },
        h("div", { class: "form" },
          field("You know", this.given), field("Law", this.law),
          one("Parameters", this.params, (x) => count(10 ** x)), one("Tokens", this.tokens, (x) => count(10 ** x)),
          one("Time", this.days, (x) => days(10 ** x)),
          field("Device", this.device), one("Devices", this.devices, (x) => count(Math.round(10 ** x))),
          one("MFU", this.mfu, (x) => percent(+x, 0)), one("Price of an hour", this.price, (x) => `$${(+x).toFixed(2)}`),
          this.error),
        h("div", {}, this.tiles, this.verdict, this.table)),
      this.figures,
    );
  }

  async load() {
    this.options = await trying(this.error, () => get("/api/plan"));
    if (!this.options) return;
    fill(this.law, this.options.laws.map((law) => h("option", { value: law.name }, law.title)));
    fill(this.device, this.options.devices.map((kind) => h("option", { value: kind.name }, `${kind.name}, ${kind.peak / 1e12} TFLOP/s`)));
    this.device.value = "H100";
    this.ask();
  }

  changed() {
    const known = this.given.value.split("+");
    for (const name of ["params", "tokens", "days"]) this[name].disabled = !known.includes(name);
    this.ask();
  }

  async ask() {
    if (!this.options) return;
    const known = this.given.value.split("+");
    const value = (name) => (known.includes(name) ? power(this[name]) : 0);
    const body = {
      law: this.law.value, device: this.device.value, devices: Math.max(1, Math.round(power(this.devices))), mfu: +this.mfu.value,
      price: +this.price.value, params: value("params"), tokens: value("tokens"), days: value("days"),
    };
    this.asking?.abort();
    this.asking = new AbortController();
    const found = await trying(this.error, () => post("/api/plan", body, this.asking.signal));
    if (found) this.show(found, body);
  }

  show(found, body) {
    const tiles = [
      ["parameters", count(found.params)], ["tokens", count(found.tokens), `${real(found.tokens / found.params)} per parameter`],
      ["FLOPs, 6 N D", real(found.flops)], ["time", days(found.days), `${count(Math.round(found.device_hours))} device hours`],
      ["cost", `$${count(Math.round(found.dollars))}`], ["energy", found.kilowatt_hours === null ? "not known" : `${count(Math.round(found.kilowatt_hours))} kWh`, "at rated power"],
      ["state in training", bytes(found.state_bytes), `${bytes(Math.round(found.state_bytes / body.devices))} a device`],
      ["loss to expect", found.loss.toFixed(3), "nats per token"],
    ];
    fill(this.tiles, tiles.map(([name, value, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), note ? h("dd", { class: "remark" }, note) : null)));
    this.verdict.textContent = `Verdict: ${found.verdict}.`;
    fill(this.table, table(found));
    fill(this.figures, sizes(found), this.frontier(found));
  }

  frontier(found) {
    const { flops, law, rule, kaplan } = found.frontier;
    const line = (values, color, label, dashed) => ({ points: flops.map((x, i) => [x, values[i]]), color, label, dashed });
    const known = [...this.options.known, ...this.options.runs.map((run) => ({ ...run, own: true }))];
    const dots = known.map(({ name, params, tokens, own }) => ({
      x: 6 * params * tokens, y: params, label: name, color: own ? "good" : "ink",
      title: `${name}: ${count(params)} parameters, ${count(tokens)} tokens`,
    }));
    dots.push({ x: found.flops, y: found.params, label: "this budget", color: "bad", radius: 6 });
    return figure({
      title: "What budgets are best for", dots,
      lines: [line(law, "sft", "this law"), line(rule, "dpo", "20 tokens per parameter", true), line(kaplan, "reward", "Kaplan et al. 2020", true)],
      x: { label: "training FLOPs", log: true, show: exponent }, y: { label: "parameters", log: true, to: 1e13 },
    });
  }
}

function exponent(value) {
  const up = { 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return `10${[...String(Math.round(Math.log10(value)))].map((digit) => up[digit]).join("")}`;
}

function table(found) {
  const rows = [["this budget", [found.params, found.tokens]], ["by the law", found.best], ["by 20 tokens per parameter", found.rule], ["by Kaplan et al. 2020", found.kaplan]];
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["The same FLOPs", "Parameters", "Tokens", "Tokens per parameter"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(([name, [params, tokens]]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, count(params)), h("td", {}, count(tokens)), h("td", {}, real(tokens / params)))))));
}

function sizes(found) {
  const points = found.curve.params.map((x, i) => [x, found.curve.loss[i]]);
  return figure({
    title: "The same FLOPs on other sizes", lines: [{ points, color: "sft", label: "loss to expect" }],
    dots: [
      { x: found.best[0], y: found.best_loss, label: "best", color: "good", radius: 5 },
      { x: found.params, y: found.loss, label: "this budget", color: "bad", radius: 6 },
    ],
    x: { label: "parameters", log: true }, y: { label: "loss, nats per token", to: Math.min(...found.curve.loss) + 1.2 },
  });
}
