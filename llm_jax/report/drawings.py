"""The charts and figures of a page as SVG files, drawn without a browser, in the light theme."""

import html
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from llm_jax.report import figures, sheet
from llm_jax.report.markup import Html, el

SMOOTH, FEW = 0.6, 30  # As the page is when it opens.

_STILL = re.compile(
  r'<figure class="still" data-name="([^"]*)"><figcaption>(.*?)</figcaption>'
  r'<svg viewBox="([^"]*)"[^>]*>(.*?)</svg></figure>',
  re.S,
)
_MIXED = re.compile(r"color-mix\(in srgb, (#\w{6}) (\d+)%, (#\w{6})\)")


def charts(payload: dict[str, Any], page: str) -> dict[str, str]:
  """Returns name -> SVG of all training curves, against steps, and of the still figures.

  Args:
    payload: what the page's script draws.
    page: its HTML.
  """
  colors = palette()
  drawn = {one["name"]: curve(one, payload["stages"], colors) for one in payload["panels"]}
  return drawn | {found[1]: still(found, colors) for found in _STILL.finditer(page)}


def palette() -> dict[str, str]:
  """Returns the colours of the light theme by their names, from the style sheet of all pages."""
  text = (resources.files("llm_jax") / "static" / "base.css").read_text(encoding="utf-8")
  found = dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", text))
  return found | {"page": "#ffffff"}  # A file's own background.


def curve(panel: dict[str, Any], stages: dict[str, Any], colors: dict[str, str]) -> str:
  """Returns the SVG of a chart: what was logged is faint below its average, as in the page."""
  scale = 100.0 if panel["unit"] == "percent" else 1.0
  lines, legend = [], []
  for one in panel["series"]:
    stage = stages[one.get("from", panel["stage"])]
    values = stage["y"][one["key"]]
    points = [(x, scale * y) for x, y in zip(stage["x"], values, strict=True) if y is not None]
    lines.append((one, points))
    legend.append((colors[one["color"]], one["label"], one["dots"]))
  every = [point for _, points in lines for point in points]
  unit = ", %" if scale != 1.0 else ""
  first, last = min(x for x, _ in every), max(x for x, _ in every)
  axes = figures.Axes(
    (first if last > first else 0.0, last),
    _range([y for _, y in every], panel, scale),
    "step",
  )
  marks = [mark for one, points in lines for mark in _line(axes, one, points, panel, colors)]
  for reference in panel["lines"]:
    marks += _reference(axes, reference["label"], scale * reference["value"], colors["soft"])
  for mark in panel["marks"]:
    x = axes.px(stages[panel["stage"]]["x"][mark["at"]])
    top = figures.TOP + 8
    tip = el("title", mark["label"])
    look = {"style": f"fill:{colors['bad']}", "text_anchor": "middle"}
    marks.append(el("text", tip, "▼", x=f"{x:.1f}", y=top, **look))
  note = " · ".join(filter(None, (panel.get("about", panel["stage"]), panel["hint"])))
  return sheet.chart(axes, marks, panel["title"] + unit, note, legend)


def still(found: re.Match, colors: dict[str, str]) -> str:
  """Returns the SVG of a still figure of a page, with the style sheet that it is drawn by."""
  title, _, note = found[2].partition("</b>")
  title, note = (html.unescape(re.sub(r"<[^>]*>", "", text)) for text in (title, note))
  css = (resources.files("llm_jax.report") / "static" / "parts.css").read_text(encoding="utf-8")
  rules = "".join(re.findall(r"^\.still (?=\.|text)(.*)\n", css, re.M))
  text = f"<style>{rules}</style>{found[4]}"
  text = re.sub(r"var\(--([\w-]+)\)", lambda name: colors.get(name[1], "#000"), text)
  return sheet.framed(Html(_MIXED.sub(_mixed, text)), title, note)


def _mixed(found: re.Match) -> str:
  share = int(found[2]) / 100
  sides = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (found[1], found[3])]
  mix = (round(share * a + (1 - share) * b) for a, b in zip(*sides, strict=True))
  return "#" + "".join(f"{part:02x}" for part in mix)


def _range(values: Sequence[float], panel: dict[str, Any], scale: float) -> tuple[float, float]:
  known = [*values, *(scale * line["value"] for line in panel["lines"])]
  low, high = min(known), max(known)
  low = min(low, 0.0) if panel["zero"] else low
  pad = 0.06 * (high - low) if high - low > 1e-6 * abs(high) else 0.5 * abs(high) or 1.0
  full = panel["unit"] == "percent" and high <= 100.0
  top = min(high + pad, 100.0) if full else high + pad
  return (0.0 if low >= 0 > low - pad else low - pad), top


def _line(
  axes: figures.Axes,
  one: dict[str, Any],
  points: Sequence[tuple[float, float]],
  panel: dict[str, Any],
  colors: dict[str, str],
) -> list[Html]:
  xs, ys = [x for x, _ in points], [y for _, y in points]
  color, dash = colors[one["color"]], "fit" if one.get("dash") else ""
  if one["dots"] or len(points) < 3:
    return [figures.line(axes, xs, ys, color, dash), sheet.dots(axes, xs, ys, color)]
  if panel["exact"] or len(points) < FEW:
    return [figures.line(axes, xs, ys, color, dash)]
  smooth, total, mass = [], 0.0, 0.0
  for y in ys:
    total, mass = SMOOTH * total + y, SMOOTH * mass + 1.0
    smooth.append(total / mass)
  faint = figures.line(axes, xs, ys, color, "faint")
  return [faint, figures.line(axes, xs, smooth, color, dash)]


def _reference(axes: figures.Axes, label: str, value: float, color: str) -> list[Html]:
  right, y = figures.WIDTH - figures.RIGHT, axes.py(value)
  text = el("text", label, x=right - 3, y=f"{y - 3:.1f}", text_anchor="end")
  return [figures.line(axes, axes.x, (value, value), color, "fit"), text]
