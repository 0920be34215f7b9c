"""The figure of tools/overoptimisation.py: proxy and gold over sqrt(KL), and the frontier."""

import math
from collections.abc import Sequence

from llm_jax.report import figures, sheet
from llm_jax.report.markup import Html

_COLORS = {"small": "#c2571a", "middle": "#8a7a00", "large": "#1b6ca8", "proxy": "#8b8b8b",
           "dpo": "#7a3fa0", "ppo": "#1b6ca8", "gold": "#2c8a4b"}  # fmt: skip
_CURVES = {"best_of": "best of n", "ppo": "PPO, no KL", "ppo_kl": "PPO, KL in the reward"}
_LOWEST = -4.0  # What a gold score falls to below is not shown.
_BINS = 40  # Of d: a run that stays in one place is a point there.


def page(found: dict) -> str:
  """Returns one SVG with a panel a method and number of pairs, and the frontier."""
  panels = []
  for curve, title in _CURVES.items():
    for pairs in found["pairs"]:
      panels.append(_curves(found, curve, f"{title}, {pairs} pairs", pairs))
  panels.append(_frontier(found["frontier"]))
  return sheet.sheet(panels, across=len(found["pairs"]))


def _curves(found: dict, curve: str, title: str, pairs: int) -> Html:
  shown = {size: found["proxies"][f"{size}/{pairs}"][curve] for size in found["sizes"]}
  means = {size: binned(one["mean"]) for size, one in shown.items()}
  everything = [p for mean in means.values() for p in mean]
  values = [p[v] for p in everything for v in ("gold", "proxy")]
  axes = figures.Axes(
    (0, max(_d(p) for p in everything)), figures.span([max(v, _LOWEST) for v in values]),
    "d = sqrt(KL in nats)", "score, std of the reference's",
  )  # fmt: skip
  marks, legend = [], []
  for i, (size, one) in enumerate(shown.items()):
    color, mean = _COLORS[size], means[size]
    marks.append(
      sheet.line(axes, [_d(p) for p in mean], [p["proxy"] for p in mean], color, "faint")
    )
    marks.append(sheet.line(axes, [_d(p) for p in mean], [p["gold"] for p in mean], color))
    if fit := one["fit"]["gold"]:
      xs = [_d(mean[-1]) * k / 40 for k in range(1, 41)]
      ys = [x * (fit["a"] - fit["b"] * (x if curve == "best_of" else math.log(x))) for x in xs]
      marks.append(sheet.line(axes, xs, ys, color, "fit"))
    legend.append((color, size if i else f"{size} (faint: proxy; dashed: fit)"))
  return sheet.panel(axes, marks, title, legend, low=curve == "ppo")


def binned(points: Sequence[dict], bins: int = _BINS) -> list[dict]:
  """Means over points of like d, in its order."""
  width = max(_d(p) for p in points) / bins or 1.0
  groups: dict[int, list[dict]] = {}
  for point in points:
    groups.setdefault(int(_d(point) / width), []).append(point)
  return [
    {name: sum(p[name] for p in groups[i]) / len(groups[i]) for name in points[0]}
    for i in sorted(groups)
  ]


def _frontier(points: dict) -> Html:
  names = {"dpo": "DPO", "ppo": "PPO on a proxy", "gold": "PPO on gold"}
  every = list(points.values())
  axes = figures.Axes(
    (0, max(_d(p) for p in every)), figures.span([p["gold"] for p in every]),
    "d = sqrt(KL in nats)", "gold score",
  )  # fmt: skip
  marks = []
  for kind in names:
    own = sorted((p for name, p in points.items() if name.startswith(f"{kind}/")), key=_d)
    marks.append(sheet.line(axes, [_d(p) for p in own], [p["gold"] for p in own], _COLORS[kind]))
    marks.append(sheet.dots(axes, [_d(p) for p in own], [p["gold"] for p in own], _COLORS[kind]))
  legend = [(_COLORS[kind], name) for kind, name in names.items()]
  return sheet.panel(axes, marks, "frontier over beta", legend)


def _d(point: dict) -> float:
  return math.sqrt(max(point["kl"], 0.0))
