// The stages of a run: how far each is, how long it took, what it found, what it wrote.
import { bar, count, duration, h, missing, percent, real, refill } from "../dom.js";
import { hue } from "../hues.js";

const SIGNS = { done: "✓", running: "●", stopped: "!", waiting: "○" };

export function mount(section, app) {
  const list = h("ol", { class: "stages" });
  const none = h("p", { class: "missing" });
  const top = h("p", { class: "links" });
  section.append(
    h("h2", {}, "Pipeline"),
    h("p", { class: "lead" }, "Each stage begins from what the ones before it left. The page follows the run while it trains."),
    top,
    list,
    none,
  );
  return {
    update: (state) => {
      update(list, top, state, app);
      missing(none, "No stage of a run is in this directory yet. If it is that of one stage, name the one above it.", !state.stages.length);
    },
  };
}

function update(list, top, state, app) {
  const own = state.files.filter((name) => !name.includes("/"));
  refill(top, own.length ? h("span", {}, "Files of the run: ", links(own, app.run, "")) : null);
  // What a reader opened stays open.
  const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.dataset.stage));
  refill(list, state.stages.map((stage) => row(stage, state, app, open)));
}

function row(stage, state, app, open) {
  const files = state.files.filter((name) => name.startsWith(`${stage.name}/`));
  const share = stage.state === "done" ? 1 : stage.done;
  const label = stage.state === "running" && share > 0 ? percent(share, 0) : stage.state;
  return h(
    "li",
    { class: `stage-row ${stage.state}`, "data-stage": stage.name },
    h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[stage.state]),
    h("div", { class: "what" }, h("h3", {}, stage.title), h("code", {}, stage.name)),
    h("div", { class: "how" }, bar(share, label, hue(stage.name, "documents"))),
    h("div", { class: "took" }, duration(stage.seconds)),
    h("dl", {}, stage.figures.map((one) => h("div", {}, h("dt", {}, one.label), h("dd", {}, figure(one))))),
    files.length
      ? h("details", { open: open.has(stage.name), "data-stage": stage.name }, h("summary", {}, `${files.length} files`), h("p", { class: "links" }, links(files, app.run, `${stage.name}/`)))
      : null,
  );
}

function figure({ value, unit }) {
  if (unit === "%") return percent(value);
  const text = Number.isInteger(value) ? count(value) : real(value);
  return unit ? `${text}\u00a0${unit}` : text;
}

function links(names, run, prefix) {
  return names.flatMap((name, i) => {
    const href = `/api/file?${new URLSearchParams({ run, name })}`;
    return [i ? ", " : "", h("a", { href, target: "_blank", rel: "noopener" }, name.slice(prefix.length))];
  });
}
