"""Still figures as inline SVG: points with error bars, paths, reliability and histograms.

A figure is drawn at a fixed 360 x 250 units and scales with its column. Colours are the page's
CSS variables, so that a figure follows the light and the dark theme.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from llm_jax.report.markup import Html, el, join, minus, slug

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40
_UNITS = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


@dataclasses.dataclass
class Point:
  """One labelled mark; `dx`, `dy` are half lengths of error bars, 0 for none."""

  x: float
  y: float
  label: str = ""
  color: str = "ink"
  shape: str = "circle"  # circle | square | triangle | diamond
  dx: float = 0.0
  dy: float = 0.0
  title: str = ""
  radius: float = 5.0
  opacity: float = 1.0


SHAPES = {"base": "square", "sft": "circle", "dpo": "diamond", "ppo": "triangle"}


@dataclasses.dataclass
class Axes:
  """Ranges and labels of a figure; a range is padded and rounded out to its ticks."""

  x: tuple[float, float]
  y: tuple[float, float]
  x_label: str = ""
  y_label: str = ""

  def __post_init__(self) -> None:
    """Rounds the ranges out, and finds the ticks."""
    self.x_ticks, self.x = ticks(*self.x)
    self.y_ticks, self.y = ticks(*self.y)

  def px(self, x: float) -> float:
    """Returns the horizontal place of `x`."""
    low, high = self.x
    return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

  def py(self, y: float) -> float:
    """Returns the vertical place of `y`; larger is higher."""
    low, high = self.y
    return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, about: int = 5) -> tuple[list[float], tuple[float, float]]:
  """Returns round ticks that cover [low, high], and their own range."""
  if high - low < 1e-12:
    low, high = low - 0.5, high + 0.5
  rough = (high - low) / about
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  found = [round(i * step, 12) for i in range(first, last + 1)]
  return found, (found[0], found[-1])


def span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
  """Returns the range of the values with a margin."""
  low, high = min(values), max(values)
  margin = (high - low) * pad or 0.5
  return low - margin, high + margin


def figure(axes: Axes, *marks: Any, title: str, note: Any = "") -> Html:
  """Returns a figure with its axes under the marks, a title and a note."""
  svg = el(
    "svg",
    *_frame(axes),
    *marks,
    viewBox=f"0 0 {WIDTH} {HEIGHT}",
    role="img",
    aria_label=f"{title}: {axes.y_label} against {axes.x_label}",
  )
  caption = el("figcaption", el("b", title), el("span", note) if note else "")
  return el("figure", caption, svg, cls="still", data_name=slug(title))


def line(axes: Axes, xs: Sequence[float], ys: Sequence[float], stroke: str, cls: str = "") -> Html:
  """Returns a path through the points; `stroke` is any CSS colour."""
  path = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in zip(xs, ys, strict=True))
  return el("polyline", points=path, style=f"stroke:{stroke}", cls=f"path {cls}".strip())


def points(axes: Axes, marks: Sequence[Point]) -> Html:
  """Returns the marks with error bars and labels."""
  drawn = [_mark(axes, mark) for mark in marks]
  return join((*drawn, *_labels(axes, [mark for mark in marks if mark.label])))


def histogram(axes: Axes, edges: Sequence[float], counts: Sequence[float], color: str) -> Html:
  """Returns the bars of one histogram; two of them can lie over each other."""
  bars = []
  for left, right, n in zip(edges, edges[1:], counts, strict=False):
    x0, x1, y = axes.px(left), axes.px(right), axes.py(n)
    box = {"x": f"{x0:.1f}", "y": f"{y:.1f}", "width": f"{max(x1 - x0 - 0.6, 0.4):.1f}"}
    height = f"{max(axes.py(0) - y, 0):.1f}"
    tip = el("title", f"{left:.3g} to {right:.3g}: {n:g}")
    bars.append(el("rect", tip, **box, height=height, style=f"fill:var(--{color})", cls="hist"))
  return join(bars)


def _frame(axes: Axes) -> list[Html]:
  """The grid, the tick labels and the axis labels."""
  parts = []
  for x in axes.x_ticks:
    at = f"{axes.px(x):.1f}"
    parts.append(el("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, cls="grid"))
    label = _tick(x, axes.x_ticks)
    parts.append(el("text", label, x=at, y=HEIGHT - BOTTOM + 15, cls="tick", text_anchor="middle"))
  for y in axes.y_ticks:
    at = axes.py(y)
    parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", cls="grid"))
    label = _tick(y, axes.y_ticks)
    parts.append(el("text", label, x=LEFT - 6, y=f"{at + 3.5:.1f}", cls="tick", text_anchor="end"))
  middle = (LEFT + WIDTH - RIGHT) / 2
  parts.append(el("text", axes.x_label, x=middle, y=HEIGHT - 6, cls="axis", text_anchor="middle"))
  turn = f"rotate(-90 11 {(TOP + HEIGHT - BOTTOM) / 2})"
  centre = (TOP + HEIGHT - BOTTOM) / 2
  parts.append(
    el("text", axes.y_label, x=11, y=centre, cls="axis", text_anchor="middle", transform=turn)
  )
  return parts


def _tick(value: float, ticks: Sequence[float]) -> str:
  """A tick's label; where the numbers would not fit, in thousands and so on."""
  most = max(map(abs, ticks))
  if 0 < most < 1e-3:
    return minus(f"{value:.1e}" if value else "0")
  # Four digits fit.
  unit, scale = next(((u, s) for u, s in _UNITS if most >= max(s, 1e4)), ("", 1.0))
  text = f"{value / scale:.{_digits([tick / scale for tick in ticks])}f}"
  return minus(text + unit if value else "0" if unit else text)


def _digits(values: Sequence[float]) -> int:
  """How many decimals the ticks need so that no two look alike."""
  step = values[1] - values[0]
  return max(0, -math.floor(math.log10(step) + 1e-9) + (round(step, 12) != float(f"{step:.0e}")))


def _mark(axes: Axes, mark: Point) -> Html:
  x, y, r = axes.px(mark.x), axes.py(mark.y), mark.radius
  parts = []
  for dx, dy in ((mark.dx, 0.0), (0.0, mark.dy)):
    if dx or dy:
      ends = {
        "x1": f"{axes.px(mark.x - dx):.1f}",
        "x2": f"{axes.px(mark.x + dx):.1f}",
        "y1": f"{axes.py(mark.y - dy):.1f}",
        "y2": f"{axes.py(mark.y + dy):.1f}",
      }
      parts.append(el("line", cls="error", style=f"stroke:var(--{mark.color})", **ends))
  corners = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    "triangle": ((0, -1.25), (1.2, 1), (-1.2, 1)),
  }
  style = f"fill:var(--{mark.color});opacity:{mark.opacity:g}"
  tip = el("title", mark.title or mark.label)
  if mark.shape in corners:
    path = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners[mark.shape])
    parts.append(el("polygon", tip, points=path, style=style, cls="mark"))
  else:
    parts.append(el("circle", tip, cx=f"{x:.1f}", cy=f"{y:.1f}", r=r, style=style, cls="mark"))
  return join(parts)


def _labels(axes: Axes, marks: Sequence[Point]) -> list[Html]:
  """Texts beside their marks, each at the first of four places that covers nothing."""
  taken = [(axes.px(m.x) - 7, axes.py(m.y) - 7, 14.0, 14.0) for m in marks]
  parts = []
  for mark in marks:
    x, y, width = axes.px(mark.x), axes.py(mark.y), 7.2 * len(mark.label)
    left, right = x - mark.radius - 5 - width, x + mark.radius + 5
    places = [(a, y + b) for b in (-14, 6) for a in (right, left)]
    boxes = [(a, b, width, 11.0) for a, b in places if a >= LEFT and a + width <= WIDTH]
    box = next((b for b in boxes if not any(_overlap(b, t) for t in taken)), boxes[0])
    taken.append(box)
    at = {"x": f"{box[0]:.1f}", "y": f"{box[1] + 9:.1f}"}
    parts.append(el("text", mark.label, cls="label", **at))
  return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
  """Whether two boxes (x, y, width, height) share a point."""
  across = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
  return across and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
