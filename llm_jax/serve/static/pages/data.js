// The corpus: what each step kept and dropped, duplicates side by side, any text as tokens.
import { get, post, trying } from "../api.js";
import { bar, bytes, count, debounced, duration, field, fill, h, real, visible } from "../dom.js";

export function mount(section) {
  const page = new Page(section);
  return { update: (state) => page.update(state) };
}

class Page {
  constructor(section) {
    this.error = h("p", { class: "error", role: "alert" });
    this.body = h("div", {});
    this.text = h("textarea", { rows: 3, spellcheck: "false" });
    this.text.value = "Return an iterator over the naïve 東京 café’s items: x = x_{i+1} + 0.25.";
    this.pieces = h("p", { class: "pieces" });
    this.facts = h("dl", { class: "facts" });
    const soon = debounced(() => this.tokenize());
    this.text.addEventListener("input", soon);
    section.append(
      h("h2", {}, "Data"),
      h("p", { class: "lead" }, "From raw pages to tokens. Nothing is dropped without a recorded reason: open one to see what it took."),
      this.error, this.body,
      h("h3", {}, "Tokenizer"), field("Any text", this.text), this.facts, this.pieces,
    );
  }

  // A corpus that is not there yet may be when a stage ends.
  update(state) {
    const done = state.stages.some((stage) => stage.name === "prepare" && stage.state === "done");
    if (done === this.done) return;
    this.done = done;
    this.load();
  }

  async load() {
    const found = await trying(this.error, () => get("/api/corpus"));
    if (!found) return;
    if (!found.funnel) {
      this.error.textContent = "There is no prepared corpus yet.";
      return;
    }
    fill(this.body, funnel(found.funnel), h("h3", {}, "Why documents were dropped"), reasons(found.funnel),
      h("h3", {}, "Duplicates"), duplicates(found.clusters),
      h("h3", {}, "What extraction does to a page"), found.before_after.map(page));
    this.tokenize();
  }

  async tokenize() {
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const found = await trying(this.error, () => post("/api/tokenize", { text: this.text.value }, signal));
    if (!found) return;
    const facts = {
      tokens: count(found.tokens),
      "bytes a token": found.tokens ? real(found.bytes / found.tokens) : "–",
      "tokens a word": found.words ? real(found.tokens / found.words) : "–",
      vocabulary: count(found.vocabulary),
    };
    fill(this.facts, Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    fill(this.pieces, found.pieces.map((piece, i) => h("span", { class: `piece hue${i % 4}`, title: `token ${piece.id}` }, visible(piece), piece.text.includes("\n") ? h("br") : null)));
  }
}

function funnel(rows) {
  const most = (key) => Math.max(...rows.map((row) => row[key] || 0), 1);
  const top = { documents: most("documents"), bytes: most("bytes"), tokens: most("tokens") };
  const cell = (row, key, show) => h("td", { "data-label": key }, bar((row[key] || 0) / top[key], show(row[key]), key));
  const lost = (row) => Object.values(row.dropped ?? {}).reduce((total, n) => total + n, 0);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Funnel" },
    h("table", { class: "stack funnel" },
      h("thead", {}, h("tr", {}, ["Step", "Documents", "Bytes", "Tokens", "Dropped", "Time"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.step),
        cell(row, "documents", count), cell(row, "bytes", bytes), cell(row, "tokens", count),
        h("td", { "data-label": "dropped" }, lost(row) ? `−${count(lost(row))}` : "0"),
        h("td", { "data-label": "time" }, duration(row.seconds)))))));
}

function reasons(rows) {
  const found = rows.flatMap((row) => Object.entries(row.dropped ?? {}).map(([reason, n]) => ({ step: row.step, reason, n })));
  found.sort((a, b) => b.n - a.n);
  if (!found.length) return h("p", { class: "missing" }, "No step dropped a document.");
  return h("div", { class: "reasons" }, found.map(({ step, reason, n }) => {
    const body = h("div", {});
    const block = h("details", { class: "reason" },
      h("summary", {}, h("span", { class: "why" }, h("b", {}, reason), ` in ${step}`), bar(n / found[0].n, count(n))), body);
    block.addEventListener("toggle", () => block.open && !body.hasChildNodes() && samples(body, step, reason, 0));
    return block;
  }));
}

async function samples(body, step, reason, first) {
  const error = h("p", { class: "error" });
  body.querySelector("button")?.remove();
  const found = await trying(error, () => get("/api/dropped", { step, reason, first }));
  if (!found) return body.append(error);
  for (const row of found.rows) {
    const twin = row.kept ? `kept instead: ${row.kept}, similarity ${real(row.score)}` : "";
    body.append(h("p", { class: "source" }, h("code", {}, row.url || row.id), h("span", {}, twin)), h("pre", { tabindex: 0 }, row.sample || "(empty)"));
  }
  if (!first && !found.rows.length) body.append(h("p", { class: "missing" }, "No sample was kept."));
  if (found.more) {
    body.append(h("button", { type: "button", onclick: () => samples(body, step, reason, first + found.rows.length) }, "More"));
  }
  return null;
}

function duplicates({ count: all, members, largest }) {
  if (!all) return h("p", { class: "missing" }, "No duplicates were found.");
  const blocks = largest.map(({ step, cluster, size }) => {
    const body = h("div", {});
    const block = h("details", { class: "reason" },
      h("summary", {}, h("span", { class: "why" }, h("b", {}, `${size} alike`), ` · ${cluster}`), bar(size / largest[0].size, count(size))), body);
    block.addEventListener("toggle", () => block.open && !body.hasChildNodes() && beside(body, step, cluster));
    return block;
  });
  const rest = blocks.splice(8);
  return h("div", {}, h("p", { class: "note" }, `${count(all)} clusters of ${count(members)} documents; one of each stays. The recipe keeps the beginning of what it drops, so beginnings are compared.`), blocks,
    rest.length ? h("details", { class: "more" }, h("summary", {}, `${rest.length} smaller ones`), rest) : null);
}

async function beside(body, step, name) {
  const error = h("p", { class: "error" });
  const found = await trying(error, () => get("/api/cluster", { step, name }));
  if (!found) return body.append(error);
  for (const one of found.gone) {
    body.append(h("p", { class: "source" }, h("code", {}, one.id), h("span", {}, `${one.rule}, similarity ${real(one.score)}; ${one.kept} stays`)));
    if (!one.known) body.append(h("pre", { tabindex: 0 }, one.text || "(its text is not known)"));
    else if (!one.groups.length) body.append(h("p", { class: "note" }, "The same words."), h("pre", { tabindex: 0 }, one.text));
    else body.append(h("div", { class: "sides" }, side("Stays", one.groups, "kept"), side("Went", one.groups, "gone")));
  }
  if (found.more) body.append(h("p", { class: "note" }, `and ${found.more} more`));
  return null;
}

function side(title, groups, own) {
  const words = ([kind, text]) => (kind === "same" ? `${text} ` : kind === own ? h("mark", { class: own }, text) : null);
  const lines = groups.map((group) => h("p", {}, group.flatMap((piece) => [words(piece), " "]).filter((part) => part !== null)));
  return h("div", {}, h("h4", {}, title), h("div", { class: "words" }, lines));
}

function page({ url, before, after }) {
  const column = (title, text) => h("div", {}, h("h4", {}, title), h("pre", { tabindex: 0 }, text));
  return h("details", { class: "reason" }, h("summary", {}, h("code", {}, url)), h("div", { class: "sides" }, column("As it was fetched", before), column("What was kept", after)));
}
