"""The training curves of several runs in the same charts: one colour a run."""

from typing import Any

from llm_jax.report.figures import Axes, figure, line, span
from llm_jax.report.load import FAMILIES, Run
from llm_jax.report.markup import Html, details, el, join, section
from llm_jax.report.panels import Panel, panels
from llm_jax.report.training import STAGES, columns, controls, place
from llm_jax.stages.glossary import HELD_OUT, explain

COLORS = ("sft", "dpo", "ppo", "reward", "tokens", "base", "documents", "bad")
ONLINE = ("ppo", "grpo", "online_dpo")
OTHERS = 40  # Charts of metrics without a place of their own, per stage.
SMOOTH = 0.8  # Weight of the past in the paths of reward and KL.

LEAD = (
  "The same metric of all runs in one chart, a colour a run. Faint lines are the logged values, "
  "strong lines are smoothed (the slider sets how much; a curve of under 30 points stays as it "
  "is); dots are evaluations on held-out data. A chart's title says what its metric means when it "
  "is pointed at, or has the focus."
)
FRONTIER_LEAD = (
  "Each line is the path of a run in training, smoothed, from its start: what its score cost in KL "
  "to the model that it began with (k1, nats per answer). Further up and to the left is better, "
  "where the score is the same in all runs."
)


def groups(runs: dict[str, Run]) -> tuple[dict[str, dict[str, str]], list[str]]:
  """What is compared: title -> {run: its stage}, and (as "stage (run)") what only one run has.

  Stages of the same name are compared, and of online methods those that have no such twin.
  """
  order = list(FAMILIES)
  stages = {stage for run in runs.values() for stage in run.curves}
  found, alone, online = {}, [], {}
  for stage in sorted(stages, key=lambda s: (order.index(s) if s in order else len(order), s)):
    there = {name: stage for name, run in runs.items() if stage in run.curves}
    if len(there) > 1:
      found[STAGES.get(stage, (stage,))[0]] = there
      continue
    (name,) = there
    if runs[name].family(stage) in ONLINE:
      online.setdefault(name, stage)
    if online.get(name) != stage:
      alone.append(f"{stage} ({name})")
  if len(online) > 1:
    return found | {
      "Online methods": {name: online[name] for name in runs if name in online}
    }, alone
  return found, alone + [f"{stage} ({name})" for name, stage in online.items()]


def curves(runs: dict[str, Run]) -> tuple[Html, dict[str, Any]]:
  """Returns the section of overlaid curves, and the data that the page's script draws."""
  payload: dict[str, Any] = {"stages": {}, "panels": []}
  found, alone = groups(runs)
  body = []
  for title, there in found.items():
    for name, stage in there.items():
      payload["stages"][_key(runs, name, stage)] = columns(runs[name], stage)
    body.append(_group(runs, title, there, payload["panels"]))
  if body:
    body.insert(0, controls(payload["stages"].values()))
  if alone:
    body.append(el("p", f"Only in one run, and not drawn: {', '.join(alone)}.", cls="missing"))
  body.append(el("noscript", el("p", "The charts need JavaScript; they load nothing.")))
  return section("curves", "Training curves", LEAD, *body), payload


def frontier(runs: dict[str, Run]) -> Html | None:
  """Returns the paths of reward against KL, or None where fewer than two runs have one."""
  paths = {}
  for name, run in runs.items():
    for stage, found in run.curves.items():
      columns_ = [found.series.get(f"objective/{key}", []) for key in ("kl", "scores")]
      points = [(x, y) for x, y in zip(*columns_, strict=False) if None not in (x, y)]
      if len(points) > 1:
        label = name if sum("objective/kl" in c.series for c in run.curves.values()) < 2 else ""
        paths[label or f"{name}, {stage}"] = (name, _smoothed(points))
  if len(paths) < 2:
    return None
  every = [point for _, points in paths.values() for point in points]
  axes = Axes(span([x for x, _ in every]), span([y for _, y in every]),
              "KL to the start, nats per answer", "score")  # fmt: skip
  marks, keys = [], []
  for label, (name, points) in paths.items():
    color, dash = _look(runs, name)
    drawn = line(axes, [x for x, _ in points], [y for _, y in points], f"var(--{color})", dash)
    marks.append(drawn)
    keys.append(el("span", el("i", cls="dot", style=f"background:var(--{color})"), label, " "))
  still = figure(axes, *marks, title="Score for KL", note=join(keys))
  body = el("div", still, cls="stills")
  return section("frontier", "Reward and KL", FRONTIER_LEAD, body)


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  out, total, mass = [], (0.0, 0.0), 0.0
  for x, y in points:
    total, mass = (SMOOTH * total[0] + x, SMOOTH * total[1] + y), SMOOTH * mass + 1.0
    out.append((total[0] / mass, total[1] / mass))
  return out


def _look(runs: dict[str, Run], name: str) -> tuple[str, str]:
  i = list(runs).index(name)
  return COLORS[i % len(COLORS)], "dashed" if i >= len(COLORS) else ""


def _key(runs: dict[str, Run], name: str, stage: str) -> str:
  return f"{list(runs).index(name)}/{stage}"


def _group(
  runs: dict[str, Run], title: str, there: dict[str, str], drawn: list[dict[str, Any]]
) -> Html:
  first, later = _metrics(runs, there)
  boxes = [
    [place(_spec(runs, there, metric, panel), drawn) for metric, panel in part.items()]
    for part in (first, later)
  ]
  which = ", ".join(there) if len(there) < len(runs) else "all runs"
  parts = [el("h3", title, el("small", which)), el("div", *boxes[0], cls="panels")]
  if boxes[1]:
    more = el("div", *boxes[1], cls="panels")
    parts.append(details(f"More charts ({len(boxes[1])})", more, cls="more"))
  return el("div", *parts, cls="stage")


def _metrics(
  runs: dict[str, Run], there: dict[str, str]
) -> tuple[dict[str, Panel], dict[str, Panel]]:
  """What is drawn, one metric a chart: metric -> its look; and what opens on demand."""
  series = [runs[name].curves[stage].series for name, stage in there.items()]
  known = {metric: None for one in series for metric in one}
  if len({*there.values()}) > 1:  # Of different methods only what both log is of interest.
    known = {metric: None for metric in known if sum(metric in one for one in series) > 1}
  parts: tuple[dict[str, Panel], dict[str, Panel]] = ({}, {})
  for name, stage in there.items():
    for part, found in zip(parts, panels(runs[name], stage), strict=True):
      for panel in found:
        _split(panel, known, part)
  # A figure that was measured once is no curve: it is in the table.
  once = [name for name in parts[0] if all(_points(one, name) < 2 for one in series)]
  parts[1].update({name: parts[0].pop(name) for name in once})
  placed = {*parts[0], *parts[1]}
  rest = [name for name in known if name not in placed]
  parts[1].update({name: Panel(name, {name: (name, "stage")}) for name in rest[:OTHERS]})
  return parts


def _points(series: dict[str, list[float | None]], metric: str) -> int:
  return sum(x is not None for x in series.get(metric, []))


def _split(panel: Panel, known: dict[str, None], part: dict[str, Panel]) -> None:
  """Adds a chart for each metric of a panel that a run has."""
  for name, (label, _) in panel.metrics.items():
    title = panel.title if len(panel.metrics) == 1 else f"{panel.title}: {label}"
    for key in (name, f"{HELD_OUT}{name}"):
      if key not in known:
        continue
      text = f"{title}, held out" if key != name else title
      mine = Panel(text, {key: (label, "stage")}, panel.unit, panel.hint, panel.lines,
                   panel.zero, panel.exact)  # fmt: skip
      other = part.setdefault(key, mine)
      # What is not the same in all runs belongs to none of the lines.
      other.lines = other.lines if other.lines == panel.lines else ()
      other.hint = other.hint if other.hint == panel.hint else ""


def _spec(runs: dict[str, Run], there: dict[str, str], metric: str, panel: Panel) -> dict[str, Any]:
  series = []
  for name, stage in there.items():
    if metric not in runs[name].curves[stage].series:
      continue
    color, dash = _look(runs, name)
    held = metric.startswith(HELD_OUT)
    one = {"key": metric, "label": name, "color": color, "dots": held}
    series.append(one | {"from": _key(runs, name, stage)} | ({"dash": True} if dash else {}))
  return panel.look() | {
    "stage": series[0]["from"],
    "about": " and ".join(dict.fromkeys(there.values())),
    "series": series,
    "marks": [],
    "said": [(metric, explain(metric))],
  }
