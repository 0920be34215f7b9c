"""A sheet of figures as one SVG file that needs no page around it."""

import math
import re
from collections.abc import Sequence

from llm_jax.report import figures
from llm_jax.report.markup import Html, el, join

_STYLE = (
  "text{font:10px sans-serif;fill:#333}.grid{stroke:#ddd;stroke-width:.6}"
  ".path{fill:none;stroke-width:1.6}.fit{stroke-dasharray:4 3;stroke-width:1.1}"
  ".faint{opacity:.45;stroke-width:1}.title{font-weight:bold;font-size:11px}"
  "rect.back{fill:#fff}"
)
_TOP = 22  # Room for a panel's title.
_LINE = 13  # Of a legend.


def sheet(panels: Sequence[Html], across: int) -> str:
  """Returns an SVG of panels, `across` of them in a row."""
  rows = math.ceil(len(panels) / across)
  width, height = across * figures.WIDTH, rows * (figures.HEIGHT + _TOP)
  placed = [
    el("g", one, transform=f"translate({i % across * figures.WIDTH} "
       f"{i // across * (figures.HEIGHT + _TOP)})")
    for i, one in enumerate(panels)
  ]  # fmt: skip
  return _whole(placed, width, height)


def panel(
  axes: figures.Axes,
  marks: Sequence[Html],
  title: str,
  legend: Sequence[tuple[str, str]],
  *,
  low: bool = False,
) -> Html:
  """Returns one figure with its title and a legend of (colour, text).

  Args:
    axes: of the figure.
    marks: what is on them.
    title: of the figure.
    legend: colours and what they mean.
    low: the legend is in the lower half, where the curves are not.
  """
  words = [el("text", title, x=figures.LEFT, y=14, cls="title")]
  first = axes.py(axes.y[0]) - _LINE * len(legend) if low else figures.TOP + 12
  for i, (color, text) in enumerate(legend):
    y = round(first + _TOP + _LINE * i)
    words.append(el("text", text, x=figures.LEFT + 8, y=y, style=f"fill:{color}"))
  return join([_inside(axes, marks, title, _TOP), *words])


def chart(
  axes: figures.Axes,
  marks: Sequence[Html],
  title: str,
  note: str,
  legend: Sequence[tuple[str, str, bool]],
) -> str:
  """Returns an SVG of one figure with title, note and legend of (colour, text, dots) above it."""
  y = 14 + _LINE * (2 if note else 1)
  words = [el("text", title, x=figures.LEFT, y=14, cls="title")]
  words += [el("text", note, x=figures.LEFT, y=14 + _LINE)] if note else []
  x = figures.LEFT
  for color, text, dotted in legend:
    wide = 24 + 5.6 * len(text)
    if x > figures.LEFT and x + wide > figures.WIDTH:
      x, y = figures.LEFT, y + _LINE
    sign = {"x1": x, "x2": x + 12, "y1": y - 3.5, "y2": y - 3.5, "style": f"stroke:{color}"}
    dot = el("circle", cx=x + 6, cy=y - 3.5, r=3, fill=color)
    words.append(dot if dotted else el("line", **sign, cls="path"))
    words.append(el("text", text, x=x + 16, y=y))
    x += wide
  return _whole([*words, _inside(axes, marks, title, y)], figures.WIDTH, figures.HEIGHT + y)


def framed(drawn: Html, title: str, note: str) -> str:
  """Returns an SVG of what was drawn for a page's figure, with the title above it."""
  head = el("text", title, x=figures.LEFT, y=14, cls="title")
  inside = el("g", drawn, transform=f"translate(0 {_TOP})", cls="still")
  about = el("desc", note)
  return _whole([about, head, inside], figures.WIDTH, figures.HEIGHT + _TOP)


def _whole(parts: Sequence[Html], width: float, height: float) -> str:
  size = {"viewBox": f"0 0 {width} {height}", "width": width}
  back = el("rect", width=width, height=height, cls="back")
  style = el("style", Html(_STYLE))
  text = str(el("svg", style, back, *parts, xmlns="http://www.w3.org/2000/svg", **size))
  return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)  # XML has no place for these.


def _inside(axes: figures.Axes, marks: Sequence[Html], title: str, top: float) -> Html:
  """A figure without the frame of a page, `top` below the edge."""
  svg = figures.figure(axes, *marks, title=title)
  inside = Html(re.search(r"<svg[^>]*>(.*)</svg>", svg, re.S)[1])
  return el("g", inside, transform=f"translate(0 {top})")


def line(
  axes: figures.Axes, xs: Sequence[float], ys: Sequence[float], color: str, cls: str = ""
) -> Html:
  """Returns a path through those of the points that are within the axes."""
  (left, right), (low, high) = axes.x, axes.y
  kept = [(x, y) for x, y in zip(xs, ys, strict=True) if left <= x <= right and low <= y <= high]
  return figures.line(axes, [x for x, _ in kept], [y for _, y in kept], color, cls)


def dots(
  axes: figures.Axes,
  xs: Sequence[float],
  ys: Sequence[float],
  color: str,
  *,
  hollow: bool = False,
  labels: Sequence[str] = (),
) -> Html:
  """Returns circles, with what they are when the pointer is on them."""
  fill = {"fill": "#fff", "stroke": color, "stroke_width": 1.5} if hollow else {"fill": color}
  found = []
  for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
    tip = [el("title", labels[i])] if i < len(labels) else []
    place = {"cx": f"{axes.px(x):.1f}", "cy": f"{axes.py(y):.1f}"}
    found.append(el("circle", *tip, **place, r=3, **fill))
  return join(found)
