// Two answers before the reward model: their scores, what moved them, and your own verdict.
import { get, post, trying } from "../api.js";
import { choose, field, fill, finished, h, missing, percent, real, refill, select, visible } from "../dom.js";

export function mount(section) {
  const page = new Page(section);
  return { update: (state) => page.update(state) };
}

class Page {
  constructor(section) {
    this.model = select([]);
    this.prompt = h("textarea", { rows: 2, spellcheck: "false" });
    this.texts = [0, 1].map(() => h("textarea", { rows: 4, spellcheck: "false" }));
    this.results = [0, 1].map(() => h("div", { class: "judged" }));
    this.votes = [0, 1].map((better) => h("button", { type: "button", onclick: () => this.vote(better) }, better ? "The second is better" : "The first is better"));
    this.verdict = h("div", { class: "verdict-line", "aria-live": "polite" });
    this.error = h("p", { class: "error", role: "alert" });
    this.saved = h("p", { class: "note", role: "status" });
    this.examples = h("div", { class: "examples" });
    this.build(section);
    for (const input of [this.model, this.prompt, ...this.texts]) input.addEventListener("input", () => this.clear());
  }

  build(section) {
    const column = (i) => h("div", {}, field(i ? "Second answer" : "First answer", this.texts[i]), this.results[i], this.votes[i]);
    section.append(
      h("h2", {}, "Reward"),
      h("p", { class: "lead" }, "What the reward model says of two answers. Each token's colour is how far it moved the score that the answer would have if it ended there: green up, red down; with the start they add up to the score."),
      h("form", { class: "form", onsubmit: (event) => this.submit(event) },
        h("div", { class: "row" }, field("Reward model", this.model)),
        field("Question", this.prompt), this.examples,
        h("div", { class: "sides" }, column(0), column(1)),
        h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, "Score")),
        this.error, this.verdict, this.saved),
    );
  }

  async loadExamples() {
    const found = await get("/api/examples").catch(() => null); // Without them it works too.
    const pairs = found?.pairs ?? [];
    refill(this.examples, pairs.map((pair) => h("button", { type: "button", onclick: () => this.put(pair) }, `${pair.kind}: ${pair.prompt.split("\n")[0]}`)));
    if (!pairs.length || this.prompt.value) return;
    const [{ prompt, chosen, rejected }] = pairs; // To begin with; what was typed meanwhile stays.
    this.put({ prompt, chosen: this.texts[0].value || chosen, rejected: this.texts[1].value || rejected });
  }

  put(pair) {
    this.prompt.value = pair.prompt;
    [pair.chosen, pair.rejected].forEach((text, i) => (this.texts[i].value = text));
    this.clear();
  }

  // What was said is of other texts; the answer to come would be too.
  clear() {
    this.asking?.abort();
    fill(this.verdict);
    this.results.forEach((box) => fill(box));
  }

  update(state) {
    choose(this.model, state.judges.map((name) => [name]));
    missing(this.error, "No reward model is trained yet; it appears here when it is.", !state.judges.length);
    if (this.done === finished(state)) return;
    this.done = finished(state);
    this.loadExamples(); // There may be more of them.
  }

  answers() {
    return this.texts.map((area) => area.value);
  }

  async submit(event) {
    event.preventDefault();
    const body = { model: this.model.value, prompt: this.prompt.value, answers: this.answers() };
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const found = await trying(this.error, () => post("/api/judge", body, signal));
    if (!found) return;
    const most = Math.max(...found.tokens.flat().map((one) => Math.abs(one.moved)), 1e-6);
    found.tokens.forEach((tokens, i) => fill(this.results[i], this.score(found, i), h("p", { class: "text" }, tokens.map((one) => moved(one, most)))));
    fill(this.verdict,
      h("span", {}, `margin ${real(found.margin)}`),
      h("span", { class: "duel", role: "img", "aria-label": `the first is preferred with ${percent(found.probability)}` }, h("i", { style: { width: `${100 * found.probability}%` } })),
      h("span", {}, `P(first preferred) ${percent(found.probability)}`));
  }

  score(found, i) {
    const wins = found.scores[i] > found.scores[1 - i];
    return h("p", { class: "big" }, real(found.scores[i], 4), h("small", {}, [wins ? "preferred" : "", `began at ${real(found.begin[i])}`].filter(Boolean).join(" · ")));
  }

  async vote(better) {
    const body = { prompt: this.prompt.value, answers: this.answers(), better };
    const given = JSON.stringify(body);
    if (given === this.given) return; // A click too many.
    this.given = given;
    const found = await trying(this.error, () => post("/api/vote", body));
    if (!found) {
      this.given = "";
      return;
    }
    fill(this.saved, `Saved: ${found.votes} ${found.votes === 1 ? "vote" : "votes"} in `, h("code", {}, found.file), ". A reward model on them: ",
      h("code", {}, `python -m experiments.reward --workdir=runs/votes --config.preferences=${quoted(found.file)}`));
  }
}

// A path as a shell takes it.
function quoted(path) {
  return /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

function moved(one, most) {
  const share = Math.abs(one.moved) / most;
  return h("span", {
    class: one.moved > 0 ? "up" : "down", title: `${one.moved > 0 ? "+" : "−"}${real(Math.abs(one.moved))}`,
    style: { "--heat": `${Math.round(45 * share)}%` },
  }, one.name ? visible(one) : one.text);
}
