// The frame: which page is open, and the state of the run, which arrives as it changes.
import { choose, fill, h, select } from "./dom.js";
import * as compare from "./pages/compare.js";
import * as data from "./pages/data.js";
import * as next from "./pages/next.js";
import * as pipeline from "./pages/pipeline.js";
import * as reward from "./pages/reward.js";
import * as scaling from "./pages/scaling.js";
import * as training from "./pages/training.js";

const PAGES = { pipeline, data, next, compare, reward, training, scaling };

const app = {
  state: null, // The latest, see /api/run.
  run: "", // Whose pipeline is shown; models and data are the first one's.
  open: {}, // Page -> what its `mount` returned.
};

function show() {
  const name = location.hash.slice(1) in PAGES ? location.hash.slice(1) : "pipeline";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!app.state) return;
  if (!app.open[name]) {
    app.open[name] = PAGES[name].mount(document.getElementById(name), app) ?? {};
    app.open[name].update?.(app.state);
  }
  app.open[name].shown?.();
}

const picker = select([], { "aria-label": "Run", onchange: () => watch(picker.value) });

function heard(state) {
  app.state = state;
  const name = document.getElementById("run-name");
  if (state.runs.length > 1) {
    if (!picker.isConnected) fill(name, picker);
    choose(picker, state.runs.map((run) => [run]), state.run);
  } else name.textContent = state.run;
  const running = state.stages.filter((stage) => stage.state === "running");
  const done = state.stages.filter((stage) => stage.state === "done").length;
  const told = running.length ? `running: ${running.map((stage) => stage.title).join(", ")}` : "";
  fill(
    document.getElementById("run-state"),
    h("i", { class: running.length ? "dot live" : "dot" }),
    [told, `${done} of ${state.stages.length} stages done`].filter(Boolean).join(" · "),
  );
  show();
  for (const page of Object.values(app.open)) page.update?.(state);
}

let source = null;

function watch(run) {
  source?.close();
  app.run = run;
  source = new EventSource(`/api/events?${new URLSearchParams({ run })}`);
  source.onmessage = (event) => heard(JSON.parse(event.data));
  source.onerror = () => {
    document.getElementById("run-state").textContent = "The server does not answer; trying again.";
  };
}

addEventListener("hashchange", show);
show();
watch("");
