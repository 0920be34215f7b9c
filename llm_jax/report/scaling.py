"""The plot of a scaling law: runs of equal FLOPs, prediction against truth, and the frontier."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.errors import UserError
from llm_jax.report import figures, sheet
from llm_jax.report.markup import Html
from llm_jax.scaling import chinchilla
from llm_jax.scaling.chinchilla import Law

_COLORS = ("#c2571a", "#8a7a00", "#2c8a4b", "#1b6ca8", "#7a3fa0", "#a03a5a", "#5a6b7a", "#333333")


def build(workdir: Path | str) -> Path:
  """Writes `workdir/scaling_law.svg` from its scaling_law.json, and returns its path.

  Raises:
    UserError: if the sweep is not done.
  """
  source = Path(workdir) / "scaling_law.json"
  if not source.exists():
    raise UserError(f"{source} is missing: run python -m experiments.scaling_law first")
  target = Path(workdir) / "scaling_law.svg"
  target.write_text(page(json.loads(source.read_text())), encoding="utf-8")
  return target


def page(found: dict[str, Any]) -> str:
  """Returns the SVG of a fitted sweep, as `stages.scaling_law.fit` gives it."""
  return sheet.sheet([_equal_flops(found), _predicted(found), _frontier(found)], across=3)


def _equal_flops(found: dict[str, Any]) -> Html:
  law, runs = Law(**found["law"]), found["runs"]
  budgets = sorted({row["budget"] for row in runs})
  sizes = [math.log10(row["params"]) for row in runs]
  axes = figures.Axes(
    figures.span(sizes), figures.span([row["loss"] for row in runs], 0.1),
    "log10 parameters", "held-out loss, nats per token",
  )  # fmt: skip
  marks, legend = [], []
  for i, budget in enumerate(budgets):
    color = _COLORS[i % len(_COLORS)]
    own = sorted((r for r in runs if r["budget"] == budget), key=lambda r: r["params"])
    xs, ys = [math.log10(r["params"]) for r in own], [r["loss"] for r in own]
    grid = np.linspace(xs[0], xs[-1], 40)
    fitted = chinchilla.loss(law, 10**grid, budget / chinchilla.FLOPS / 10**grid)
    marks.append(sheet.line(axes, list(grid), list(fitted), color, "fit"))
    for held_out in (False, True):
      kept = [i for i, r in enumerate(own) if r["held_out"] == held_out]
      marks.append(
        sheet.dots(
          axes,
          [xs[i] for i in kept],
          [ys[i] for i in kept],
          color,
          hollow=held_out,
          labels=[own[i]["name"] for i in kept],
        )  # fmt: skip
      )
    legend.append((color, f"{budget:.3g} FLOPs"))
  legend.append(("#333", "dashed: the law; hollow: held out"))
  return sheet.panel(axes, marks, "equal FLOPs", legend)


def _predicted(found: dict[str, Any]) -> Html:
  runs = found["runs"]
  values = [row[key] for row in runs for key in ("loss", "predicted")]
  axes = figures.Axes(
    figures.span(values), figures.span(values), "loss of the law", "loss of the run"
  )
  ends = [max(axes.x[0], axes.y[0]), min(axes.x[1], axes.y[1])]
  marks = [sheet.line(axes, ends, ends, "#999", "fit")]
  for held_out, color in ((False, _COLORS[3]), (True, _COLORS[0])):
    own = [row for row in runs if row["held_out"] == held_out]
    marks.append(
      sheet.dots(
        axes,
        [r["predicted"] for r in own],
        [r["loss"] for r in own],
        color,
        hollow=held_out,
        labels=[r["name"] for r in own],
      )  # fmt: skip
    )
  squares = found["r_squared"]
  legend = [(_COLORS[3], f"fitted to, R2 {squares['fitted']:.3f}")]
  if "held_out" in squares:
    legend.append((_COLORS[0], f"held out, R2 {squares['held_out']:.3f}"))
  return sheet.panel(axes, marks, "what the law says", legend)


def _frontier(found: dict[str, Any]) -> Html:
  """Sizes over FLOPs: these runs, the law's best, the rule, Kaplan's, and models that are known."""
  runs = [(r["params"], r["tokens"]) for r in found["runs"]]
  every = runs + list(chinchilla.KNOWN.values())
  flops = [chinchilla.FLOPS * n * d for n, d in every]
  axes = figures.Axes(
    figures.span([math.log10(c) for c in flops], 0.12),
    figures.span([math.log10(n) for n, _ in every], 0.12),
    "log10 FLOPs", "log10 parameters",
  )  # fmt: skip
  budgets = np.geomspace(min(flops), max(flops), 60)
  lines = {
    "this law": (_COLORS[3], chinchilla.optimal(Law(**found["law"]), budgets)[0]),
    "Chinchilla's runs, refitted": (
      _COLORS[2], chinchilla.optimal(chinchilla.PUBLISHED["besiroglu"], budgets)[0],
    ),
    f"{chinchilla.RULE} tokens per parameter": (_COLORS[1], chinchilla.rule(budgets)[0]),
    "Kaplan et al.": (_COLORS[0], chinchilla.kaplan(budgets)[0]),
  }  # fmt: skip
  marks = [
    sheet.line(axes, list(np.log10(budgets)), list(np.log10(best)), color)
    for color, best in lines.values()
  ]
  place = [(math.log10(chinchilla.FLOPS * n * d), math.log10(n)) for n, d in runs]
  marks.append(sheet.dots(axes, [x for x, _ in place], [y for _, y in place], "#5a6b7a"))
  points = [
    figures.Point(math.log10(chinchilla.FLOPS * n * d), math.log10(n), label=name, radius=3.0)
    for name, (n, d) in chinchilla.KNOWN.items()
  ]
  marks.append(figures.points(axes, points))
  legend = [(color, name) for name, (color, _) in lines.items()]
  return sheet.panel(axes, marks, "what budgets are best for", legend)
