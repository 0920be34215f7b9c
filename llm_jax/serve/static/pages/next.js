// The distribution of the next token: type, look, click one, or let the model go on.
import { post, trying } from "../api.js";
import { choose, debounced, field, fill, h, percent, real, select, slider, visible } from "../dom.js";

const MOST = 200; // Tokens of one run.

export function mount(section) {
  const page = new Page(section);
  return {
    update: (state) => page.update(state),
    shown: () => page.ask(),
  };
}

class Page {
  constructor(section) {
    this.appended = []; // {id, text, name}
    this.latest = null;
    this.running = false;
    this.asking = null; // The request on its way.
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
    const soon = debounced(() => this.ask(), 60);
    this.text.addEventListener("input", () => {
      this.appended = [];
      soon();
    });
    for (const input of [this.temperature, this.topP]) input.addEventListener("input", soon);
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
    choose(this.model, names.map((name) => [name]), names.includes("sft") ? "sft" : names[0]);
    if (!names.length) this.error.textContent = "No model is trained yet; it appears here when it is.";
    this.chat = Object.fromEntries(state.models.map((model) => [model.name, model.chat]));
    if (this.fresh !== names.join()) {
      this.fresh = names.join();
      this.mode.value = this.chat[this.model.value] ? "chat" : "text";
      this.ask();
    }
  }

  restart() {
    if (!this.chat?.[this.model.value]) this.mode.value = "text";
    for (const option of this.mode.options) option.disabled = option.value === "chat" && !this.chat?.[this.model.value];
    this.appended = [];
    this.stop();
    this.ask();
  }

  // Asks for the distribution; a newer question takes the place of one that is on its way.
  async ask() {
    if (!this.model.value) return null;
    this.asking?.abort();
    this.asking = new AbortController();
    const own = this.asking;
    const begun = performance.now();
    const found = await trying(this.error, () =>
      post("/api/next", {
        model: this.model.value, text: this.text.value, chat: this.mode.value === "chat",
        appended: this.appended.map((piece) => piece.id), temperature: +this.temperature.value,
        top_p: +this.topP.value, draw: Math.random(),
      }, own.signal));
    if (!found || own !== this.asking) return null;
    this.latest = found;
    this.show(performance.now() - begun);
    return found;
  }

  show(took) {
    const found = this.latest;
    const most = Math.max(...found.likeliest.map((one) => Math.max(one.raw, one.shaped)));
    fill(this.bars, found.likeliest.map((one) => h("li", {}, this.token(one, most))));
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
    fill(this.tail, h("span", {}, this.text.value), this.mode.value === "chat" ? h("br") : null, pieces);
  }

  token(one, most) {
    const width = (value) => ({ width: `${(100 * value) / most}%` });
    return h("button", { type: "button", class: one.shaped > 0 ? "token" : "token cut", title: `token ${one.id}`, onclick: () => this.append(one) },
      h("code", {}, visible(one)),
      h("span", { class: "track" }, h("i", { class: "raw", style: width(one.raw) }), h("i", { class: "shaped", style: width(one.shaped) })),
      h("span", { class: "num" }, percent(one.shaped)));
  }

  async append(piece) {
    this.appended.push(piece);
    this.latest = null; // What is drawn next is drawn of what follows this token.
    return this.ask();
  }

  undo() {
    this.stop();
    this.appended.pop();
    this.ask();
  }

  async step() {
    const found = this.latest ?? (await this.ask());
    return found ? this.append(found.drawn) : null;
  }

  async toggle() {
    if (this.running) return this.stop();
    this.running = true;
    this.run.textContent = "Stop";
    for (let i = 0; i < MOST && this.running; i++) {
      const found = await this.step();
      if (!found || this.appended.at(-1).id === found.end) break;
    }
    this.stop();
  }

  stop() {
    this.running = false;
    this.run.textContent = "Run";
  }
}
