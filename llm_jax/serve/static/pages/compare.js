// One prompt, every stage's answer side by side, token by token.
import { get, stream, trying } from "../api.js";
import { choose, field, fill, finished, h, missing, percent, real, refill, select, slider } from "../dom.js";
import { hue } from "../hues.js";

const WORDS = {
  pretrain: "base model: it goes on with the text",
  sft: "fine-tuned on answers",
  dpo: "trained on preferences",
  ppo: "trained on the reward model's scores",
};

export function mount(section) {
  const page = new Page(section);
  return { update: (state) => page.update(state) };
}

class Page {
  constructor(section) {
    this.columns = new Map(); // Model -> its column.
    this.prompt = h("textarea", { rows: 2, spellcheck: "false" });
    this.prompt.value = "What does itertools.chain do?";
    this.temperature = slider({ min: 0, max: 1.5, step: 0.05, value: 0.7 });
    this.length = slider({ min: 1, max: 256, step: 1, value: 64 });
    this.seed = h("input", { type: "number", min: 0, max: 4294967295, value: 0 });
    this.reference = select([]);
    this.colour = select([["kl", "KL to the reference"], ["logps", "how surprising it was"], ["none", "nothing"]], { onchange: () => this.recolour() });
    this.models = h("fieldset", { class: "checks" }, h("legend", {}, "Models"));
    this.examples = h("div", { class: "examples" });
    this.error = h("p", { class: "error", role: "alert" });
    this.answers = h("div", { class: "answers" });
    this.button = h("button", { type: "submit", class: "main" }, "Answer");
    this.build(section);
  }

  build(section) {
    section.append(
      h("h2", {}, "Compare"),
      h("p", { class: "lead" }, "One prompt and one seed for all. When an answer is there, each token is measured at temperature 1 under its model and under the reference: KL is over the whole vocabulary, in nats. Point at a token for its numbers."),
      h("form", { class: "form", onsubmit: (event) => this.submit(event) },
        field("Prompt", this.prompt), this.examples, this.models,
        h("div", { class: "row" },
          field("Temperature", this.temperature, (x) => (+x).toFixed(2)),
          field("Tokens at most", this.length, (x) => x),
          field("Seed", this.seed), field("Reference", this.reference), field("Colour tokens by", this.colour)),
        h("div", { class: "buttons" }, this.button), this.error),
      this.answers,
    );
  }

  async loadExamples() {
    const found = await get("/api/examples").catch(() => null); // Without them it works too.
    refill(this.examples, (found?.questions ?? []).map((text) =>
      h("button", { type: "button", onclick: () => (this.prompt.value = text) }, text.split("\n")[0])));
  }

  update(state) {
    const names = state.models.map((model) => model.name);
    choose(this.reference, names.map((name) => [name]), names.includes("sft") ? "sft" : names[0]);
    if (this.length.max !== String(state.max_new)) {
      this.length.max = state.max_new;
      this.length.dispatchEvent(new Event("input")); // It may have been cut to the limit.
    }
    missing(this.error, "No model is trained yet; it appears here when it is.", !names.length);
    if (this.done !== finished(state)) {
      this.done = finished(state);
      this.loadExamples(); // There may be more of them.
    }
    if (names.join() === this.known) return;
    this.known = names.join();
    const off = new Set([...this.models.querySelectorAll("input:not(:checked)")].map((box) => box.value));
    fill(this.models, h("legend", {}, "Models"), names.map((name) =>
      h("label", {}, h("input", { type: "checkbox", value: name, checked: !off.has(name) }), name)));
  }

  async submit(event) {
    event.preventDefault();
    if (this.stop) return this.stop.abort();
    const models = [...this.models.querySelectorAll("input:checked")].map((box) => box.value);
    if (!models.length) return (this.error.textContent = "Choose a model.");
    const reference = this.reference.value;
    this.columns = new Map(models.map((name) => [name, new Column(name, reference)]));
    fill(this.answers, [...this.columns.values()].map((column) => column.element));
    this.stop = new AbortController();
    this.button.textContent = "Stop";
    await trying(this.error, () => stream("/api/compare", this.body(models), (found) => this.hear(found), this.stop.signal));
    for (const column of this.columns.values()) column.left();
    this.stop = null;
    this.button.textContent = "Answer";
    return null;
  }

  body(models) {
    return {
      prompt: this.prompt.value, models, reference: this.reference.value, temperature: +this.temperature.value,
      max_tokens: +this.length.value, seed: +this.seed.value,
    };
  }

  hear(found) {
    if (found.error) this.error.textContent = found.error;
    const column = this.columns.get(found.model);
    if (!column) return;
    if (found.tokens) column.add(found);
    else column.measure(found, this.colour.value);
  }

  recolour() {
    for (const column of this.columns.values()) column.paint(this.colour.value);
  }
}

class Column {
  constructor(name, reference) {
    this.reference = reference;
    this.text = h("p", { class: "text", "aria-live": "polite" });
    this.note = h("p", { class: "note" }, "waiting");
    this.tokens = [];
    this.numbers = null;
    const color = `var(--${hue(name)})`;
    this.element = h("article", { class: "answer", style: { "--hue": color } },
      h("h3", {}, h("i", { class: "dot", style: { background: color } }), name, h("small", {}, WORDS[name] ?? "")), this.text, this.note);
  }

  add({ tokens, reason }) {
    for (const { text } of tokens) {
      const span = h("span", {}, text);
      this.tokens.push(span);
      this.text.append(span);
    }
    this.reason = { stop: "ended by itself", length: "cut at the limit", error: "failed; see the server's log" }[reason] ?? "";
    this.note.textContent = reason ? this.reason : `${this.tokens.length} tokens …`;
  }

  // Nothing more comes.
  left() {
    if (!this.reason) this.note.textContent = this.tokens.length ? `${this.tokens.length} tokens, stopped` : "no answer";
  }

  measure(numbers, colour) {
    const { reference } = this;
    this.numbers = numbers;
    if (numbers.logps.length > this.tokens.length) {
      const end = h("span", { class: "control", "aria-label": "end of the answer" }, "end");
      this.tokens.push(end);
      this.text.append(end);
    }
    const sum = (values) => values.reduce((total, value) => total + value, 0);
    this.note.textContent = [
      `${this.tokens.length} tokens, ${this.reason}`,
      `log p ${real(sum(numbers.logps))}`,
      `KL to ${reference} ${real(sum(numbers.kl))} nats`,
    ].join(" · ");
    this.tokens.forEach((span, i) => {
      span.title = `p ${percent(Math.exp(numbers.logps[i]))}, under ${reference} ${percent(Math.exp(numbers.ref_logps[i]))}; KL here ${real(numbers.kl[i])} nats`;
    });
    this.paint(colour);
  }

  paint(colour) {
    if (!this.numbers) return;
    this.tokens.forEach((span, i) => {
      const value = colour === "kl" ? this.numbers.kl[i] : colour === "logps" ? -this.numbers.logps[i] / 4 : 0;
      span.style.setProperty("--heat", `${Math.round(Math.min(Math.max(value, 0), 1) * 45)}%`);
    });
  }
}
