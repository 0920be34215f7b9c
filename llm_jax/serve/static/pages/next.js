// The distribution of the next token: type, look, click one, or let the model go on.
import { post, trying } from "../api.js";
import { choose, debounced, field, fill, h, missing, percent, real, refill, select, slider, visible } from "../dom.js";

const MOST = 200; // Tokens of one run.

export function mount(section) {
  const page = new Page(section);
  return {
    update: (state) => page.update(state),
    shown: () => page.running || page.pending || page.ask(),
  };
}

class Page {
  constructor(section) {
    this.appended = []; // {id, text, name}
    this.latest = null; // The distribution after all of them; null: it is not known.
    this.running = null; // What tells one run from the next.
    this.asking = null; // Ends the request on its way, and
    this.pending = null; // what it will answer.
    this.model = select([], { "aria-label": "Model" });
    this.mode = select([["text", "the beginning of a document"], ["chat", "a question to answer"]]);
    this.text = h("textarea", { rows: 3, spellcheck: "false", "aria-label": "Context" });
    this.text.value = "What does itertools.chain do?";
    this.temperature = slider({ min: 0.05, max: 2, step: 0.05, value: 1 });
    this.topP = slider({ min: 0.05, max: 1, step: 0.01, value: 1 });
    this.tail = h("p", { class: "tail", "aria-live": "polite" });
    this.bars = h("ol", { class: "tokens" });
    this.facts = h("dl", { class: "facts" });
    this.error = h("p", { class: "error", role: "alert" });
    this.run = h("button", { type: "button", onclick: () => this.toggle() }, "Run");
    this.build(section);
    // Unless a step has asked in the meantime.
    const soon = debounced(() => this.latest || this.pending || this.ask(), 60);
    this.text.addEventListener("input", () => {
      this.appended = [];
      this.stop();
      this.forget();
      soon();
    });
    for (const input of [this.temperature, this.topP]) {
      input.addEventListener("input", () => {
        if (this.running) return; // Its next step asks with the new value.
        this.forget();
        soon();
      });
    }
    for (const input of [this.model, this.mode]) input.addEventListener("change", () => this.restart());
  }

  build(section) {
    const button = (text, action) => h("button", { type: "button", onclick: action }, text);
    section.append(
      h("h2", {}, "Next token"),
      h("p", { class: "lead" }, "What a model expects next. Pale bars are its own probabilities, strong ones what temperature and top-p make of them. Click a token to append it."),
      h("div", { class: "split" },
        h("div", { class: "form" },
          h("div", { class: "row" }, field("Model", this.model), field("The text is", this.mode)),
          field("Context", this.text),
          h("div", { class: "row" },
            field("Temperature", this.temperature, (x) => (+x).toFixed(2)),
            field("Top-p", this.topP, (x) => (+x).toFixed(2))),
          h("div", { class: "buttons" },
            button("Step", () => this.step()), this.run,
            button("Undo", () => this.undo()), button("Clear", () => this.restart())),
          this.error,
          h("h3", {}, "Text so far"),
          this.tail),
        h("div", {}, this.facts, this.bars)),
    );
  }

  update(state) {
    const names = state.models.map((model) => model.name);
    const before = this.model.value;
    choose(this.model, names.map((name) => [name]), names.includes("sft") ? "sft" : names[0]);
    missing(this.error, "No model is trained yet; it appears here when it is.", !names.length);
    this.chat = Object.fromEntries(state.models.map((model) => [model.name, model.chat]));
    // Models that come while the run goes on leave what is being done with the chosen one alone.
    if (this.model.value === before) return;
    if (!before) this.mode.value = this.chat[this.model.value] ? "chat" : "text";
    this.restart();
  }

  restart() {
    if (!this.chat?.[this.model.value]) this.mode.value = "text";
    for (const option of this.mode.options) option.disabled = option.value === "chat" && !this.chat?.[this.model.value];
    this.appended = [];
    this.stop();
    this.ask();
  }

  // What is known is of another text.
  forget() {
    this.latest = null;
    this.pending = null;
    this.asking?.abort();
  }

  // Asks for the distribution; a newer question takes the place of one that is on its way.
  ask() {
    if (!this.model.value) return null;
    this.forget();
    this.asking = new AbortController();
    this.pending = this.answer(this.asking);
    return this.pending;
  }

  async answer(own) {
    const begun = performance.now();
    const found = await trying(this.error, () =>
      post("/api/next", {
        model: this.model.value, text: this.text.value, chat: this.mode.value === "chat",
        appended: this.appended.map((piece) => piece.id), temperature: +this.temperature.value,
        top_p: +this.topP.value, draw: Math.random(),
      }, own.signal));
    if (own !== this.asking) return null;
    this.pending = null;
    this.latest = found;
    if (!found) return null;
    this.show(performance.now() - begun);
    return found;
  }

  show(took) {
    const found = this.latest;
    const most = Math.max(...found.likeliest.map((one) => Math.max(one.raw, one.shaped)));
    refill(this.bars, found.likeliest.map((one) => h("li", {}, this.token(one, most))));
    const facts = {
      entropy: `${real(found.entropy)} nats`,
      "after shaping": `${real(found.shaped_entropy)} nats`,
      perplexity: real(Math.exp(found.entropy)),
      "tokens kept": `${found.kept} of ${found.vocabulary}`,
      context: `${found.tokens} tokens`,
      answered: `${Math.round(took)} ms`,
    };
    fill(this.facts, Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    const pieces = this.appended.map((piece) => h("span", { class: piece.name ? "control" : "drawn" }, piece.name || piece.text));
    refill(this.tail, h("span", {}, this.text.value), this.mode.value === "chat" ? h("br") : null, pieces); // What is new is read aloud.
  }

  token(one, most) {
    const width = (value) => ({ width: `${(100 * value) / most}%` });
    return h("button", { type: "button", class: one.shaped > 0 ? "token" : "token cut", title: `token ${one.id}`, onclick: () => this.pick(one) },
      h("code", {}, visible(one)),
      h("span", { class: "track" }, h("i", { class: "raw", style: width(one.raw) }), h("i", { class: "shaped", style: width(one.shaped) })),
      h("span", { class: "num" }, percent(one.shaped)));
  }

  pick(piece) {
    this.stop();
    this.append(piece);
  }

  append(piece) {
    this.appended.push(piece);
    return this.ask();
  }

  undo() {
    this.stop();
    this.appended.pop();
    this.ask();
  }

  // Appends a token that is drawn of what follows the last one, however fast one step comes after
  // the other: each waits for the distribution that the one before it asked for.
  async step() {
    for (;;) {
      const found = this.latest ?? (await (this.pending ?? this.ask()));
      if (!found) return null;
      if (found === this.latest) return this.append(found.drawn);
    }
  }

  async toggle() {
    if (this.running) return this.stop();
    const own = {};
    this.running = own;
    this.run.textContent = "Stop";
    for (let i = 0; i < MOST; i++) {
      const found = await this.step();
      if (this.running !== own) return null; // It was stopped; another one may be on its way.
      if (!found || this.appended.at(-1)?.id === found.end) break;
    }
    return this.stop();
  }

  stop() {
    this.running = null;
    this.run.textContent = "Run";
  }
}
