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

const AGAIN = 3000; // Milliseconds until a server that refused is asked again.

const app = {
  state: null, // The latest, see /api/run.
  run: "", // Whose pipeline is shown; models and data are the first one's.
  open: {}, // Page -> what its `mount` returned.
};

function current() {
  const name = location.hash.slice(1);
  return Object.hasOwn(PAGES, name) ? name : "pipeline";
}

function show() {
  const name = current();
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash !== `#${name}`) link.removeAttribute("aria-current");
    else if (!link.hasAttribute("aria-current")) {
      link.setAttribute("aria-current", "page");
      const row = link.parentElement; // On a phone it is wider than the page.
      row.scrollLeft = link.offsetLeft - row.offsetLeft - row.clientWidth / 3;
    }
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
  const told = [
    state.gone ? "its directory is gone" : "",
    running.length ? `running: ${running.map((stage) => stage.title).join(", ")}` : "",
    `${done} of ${state.stages.length} stages done`,
    state.run === state.runs[0] ? "" : `models and data are those of ${state.runs[0]}`,
  ];
  tell(told.filter(Boolean).join(" · "), running.length > 0);
  if (!app.open[current()]) show();
  for (const page of Object.values(app.open)) page.update?.(state);
}

// A line that is read aloud when it changes, and only then.
function tell(text, live) {
  const place = document.getElementById("run-state");
  if (place.textContent !== text) fill(place, h("i", {}), text);
  place.firstChild.className = live ? "dot live" : "dot";
}

let source = null;
let later = 0;

function watch(run) {
  unwatch();
  app.run = run;
  source = new EventSource(`/api/events?${new URLSearchParams({ run })}`);
  source.onmessage = (event) => heard(JSON.parse(event.data));
  source.onerror = () => {
    tell("The server does not answer; trying again.", false);
    // A browser asks again by itself unless it was refused.
    if (source.readyState === EventSource.CLOSED) later = setTimeout(() => watch(run), AGAIN);
  };
}

function unwatch() {
  clearTimeout(later);
  source?.close();
}

// All tabs of a browser share six connections to a server: one that nobody sees gives its own back.
document.addEventListener("visibilitychange", () => (document.hidden ? unwatch() : watch(app.run)));
addEventListener("hashchange", show);
show();
if (!document.hidden) watch("");
