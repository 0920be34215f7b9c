"""The reward model: accuracy by kind of mistake with its control, calibration, scores, length."""

import math
from typing import Any

from llm_jax.report.figures import Axes, Point, figure, histogram, line, points
from llm_jax.report.load import Run
from llm_jax.report.markup import (
  Html,
  branch,
  count,
  dig,
  el,
  join,
  missing,
  number,
  percent,
  real,
  rows,
  section,
  table,
)

KINDS = {
  "other_object": ("Another object's answer", "well formed, but about something else"),
  "cut_off": ("Cut off", "the true answer without its end"),
  "repetitive": ("Repetitive", "a part of the true answer, over and over"),
  "sft_sample": ("SFT sample", "what the SFT model said itself"),
  "any_samples": ("Any two samples", "two answers of the SFT model, as they come"),
}

STILLS = ("reward.calibration", "reward.histogram", "reward.margins")

LEAD = (
  "A pair holds the true answer and a worse one of a known kind; accuracy is the share in which "
  "the true one scores higher. The control is the same model trained on pairs whose labels are "
  "coin flips: it should stay near 50 %, or the accuracy comes from a leak."
)


def reward(run: Run) -> Html:
  """Returns the section on the reward model."""
  body = [_accuracy(run.summary)]
  stills = [_calibration(run.summary), _scores(run.summary), _margins(run.summary)]
  drawn = [still for still in stills if still is not None]
  body.append(el("div", *drawn, cls="stills") if drawn else "")
  absent = [path for path, still in zip(STILLS, stills, strict=True) if still is None]
  correlation = number(dig(run.summary, "reward.length_correlation"))
  if correlation is None:
    absent.append("reward.length_correlation")
  else:
    body.append(el("p", "Correlation of the score with answer length: ",
                   el("b", real(correlation, 2)), ". Near ±1, a policy can raise its reward by "
                   "length alone."))  # fmt: skip
  if absent:
    body.append(missing(*absent))
  return section("reward", "The reward model", LEAD, *body)


def _accuracy(summary: dict[str, Any]) -> Html:
  found, control = branch(summary, "reward.accuracy"), branch(summary, "reward.shuffled")
  if not found:
    return missing("reward.accuracy")
  lines, body = [], []
  for kind in [*(k for k in KINDS if k in found), *(k for k in found if k not in KINDS)]:
    title, meaning = KINDS.get(kind, (kind, ""))
    value, null = number(found[kind]), number(control.get(kind))
    body.append((title, percent(value), percent(null)))
    bars = [_rail("trained", value, "reward")]
    if null is not None:
      bars.append(_rail("shuffled labels", null, "muted"))
    lines.append(el("div", el("span", title, el("small", meaning)), el("div", *bars), cls="kind"))
  note = missing("reward.shuffled") if not control else ""
  numbers = table(("Kind", "Accuracy", "With shuffled labels"), body, cls="numbers")
  return join((el("div", numbers, el("div", *lines, cls="kinds"), cls="charted"), note))


def _rail(name: str, value: float | None, color: str) -> Html:
  width = 100 * min(max(value or 0.0, 0.0), 1.0)
  fill = el("i", cls="fill", style=f"width:{width:.2f}%;background:var(--{color})")
  rail = el("span", fill, el("i", cls="half"), cls="rail")
  return el("span", rail, el("b", percent(value)), el("small", name), cls="gauge")


def _calibration(summary: dict[str, Any]) -> Html | None:
  bins = []
  for row in rows(summary, "reward.calibration"):
    values = tuple(number(row.get(key)) for key in ("predicted", "observed", "n"))
    if None not in values and values[2] > 0:
      bins.append(values)
  if not bins:
    return None
  axes = Axes((0, 1), (0, 1), "predicted probability that the chosen answer wins", "observed share")
  total, most = sum(n for *_, n in bins), max(n for *_, n in bins)
  error = sum(n * abs(seen - said) for said, seen, n in bins) / total
  marks = []
  for said, seen, n in bins:
    se = math.sqrt(max(seen * (1 - seen), 0.0) / n)
    half = min(1.959964 * se, seen, 1 - seen)
    tip = f"predicted {percent(said)}, observed {percent(seen)}, {count(n)} pairs"
    size = 2.5 + 4.5 * math.sqrt(n / most)
    marks.append(Point(said, seen, color="reward", dy=half, title=tip, radius=round(size, 1)))
  ideal = line(axes, (0, 1), (0, 1), "var(--muted)", "dashed")
  note = (
    f"Dots on the diagonal are honest probabilities; expected calibration error {real(error)}, "
  )
  note += f"{count(total)} pairs. Larger dots hold more pairs; bars: 95 %."
  return figure(axes, ideal, points(axes, marks), title="Calibration", note=note)


def _scores(summary: dict[str, Any]) -> Html | None:
  found = _counts(summary, "reward.histogram", ("rejected", "chosen"))
  if found is None:
    return None
  edges, sides = found
  axes = Axes((edges[0], edges[-1]), (0, max(map(max, sides.values())) or 1), "score", "answers")
  colors = {"rejected": "muted", "chosen": "reward"}
  layers = [histogram(axes, edges, counts, colors[name]) for name, counts in sides.items()]
  keys = [
    el("span", el("i", cls="dot", style=f"background:var(--{colors[k]})"), k, " ") for k in sides
  ]
  note = join((*keys, "The less the two overlap, the more pairs are told apart."))
  return figure(axes, *layers, title="Scores", note=note)


def _margins(summary: dict[str, Any]) -> Html | None:
  found = _counts(summary, "reward.margins", ("margin",))
  if found is None:
    return None
  edges, counts = found[0], found[1]["margin"]
  top = max(counts) or 1
  axes = Axes((edges[0], edges[-1]), (0, top), "score of chosen − rejected", "pairs")
  marks = [histogram(axes, edges, counts, "reward")]
  if axes.x[0] < 0 < axes.x[1]:
    marks.append(line(axes, (0, 0), axes.y, "var(--muted)", "dashed"))
  note = "Left of the line the worse answer has the higher score. A second hill far on the right: "
  note += "an easy kind of pair."
  return figure(axes, *marks, title="Margins", note=note)


def _counts(
  summary: dict[str, Any], path: str, names: tuple[str, ...]
) -> tuple[list[float], dict[str, list[float]]] | None:
  """Edges and the counts of each name that has any; None where they make no histogram."""
  found = {}
  for key in ("edges", *names):
    values = dig(summary, f"{path}.{key}")
    values = [number(v) for v in values] if isinstance(values, list) else []
    found[key] = [] if None in values else values
  edges = found.pop("edges")
  sides = {name: counts for name, counts in found.items() if counts}
  rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
  fitting = all(len(counts) == len(edges) - 1 for counts in sides.values())
  return (edges, sides) if len(edges) > 1 and rising and sides and fitting else None
