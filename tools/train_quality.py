"""Trains a quality model for the rule `quality(model='DIR')` and shows what it can tell apart.

python -m tools.train_quality --good=books.jsonl --good=papers/ --raw=crawl/ --out=runs/quality

Each source is a file or folder that `llm_jax.data.crawl` reads. Give raw text as it is where the
rule will stand in the recipe. Writes model.npz, model.json and calibration.svg.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_jax.data import quality
from llm_jax.errors import UserError
from llm_jax.report import figures
from llm_jax.report.figures import Axes
from llm_jax.report.markup import Html, el, join
from tools import _documents

_STYLE = """
svg { --ink: #222; --line: #ddd; --good: #2b6cb0; --raw: #c05621; background: #fff;
  font: 11px sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #ddd; --line: #444; --good: #63b3ed;
  --raw: #f6ad55; background: #161616; } }
text { fill: var(--ink); } .grid { stroke: var(--line); } polyline { fill: none; }
.hist { opacity: 0.6; }
"""
_ALIKE = 0.99  # An AUC from which the classes may be told apart by their sources alone.


def main(argv: list[str] | None = None) -> int:
  """Trains, saves and prints the tables; 2 is the exit code of bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--good", action="append", required=True, help="curated; may be repeated")
  parser.add_argument("--raw", action="append", required=True, help="raw; may be repeated")
  parser.add_argument("--out", type=Path, required=True, help="folder of the model")
  parser.add_argument("--extractor", default="trafilatura", help="how HTML becomes text")
  parser.add_argument("--most", type=int, default=50_000, help="documents of each class")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--leave_out",
    action="store_true",
    help="train once more without each curated source, and say how that source then ranks",
  )
  options = parser.parse_args(argv)
  try:
    model = _train(options.good, options, print)
    if options.leave_out:
      model.facts["transfer"] = _transfers(options)
    quality.save(options.out, model)
    (options.out / "calibration.svg").write_text(plot(model.facts["test"]), encoding="utf-8")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(table(model.facts))
  print(f"\nwrote {options.out}: model.npz, model.json, calibration.svg")
  return 0


def table(facts: dict[str, Any]) -> str:
  """Returns what the held-out documents say, as Markdown."""
  test = facts["test"]
  names = ("accuracy", "auc", "brier", "log_loss", "calibration_error")
  lines = [
    f"\nheld out: {test['good']} good and {test['raw']} raw documents, both classes weigh 1/2"
  ]
  lines += ["", "| measure | value |", "|---|--:|", *(f"| {n} | {test[n]:.4f} |" for n in names)]
  lines += ["", "| rule | good kept | raw kept |", "|---|--:|--:|"]
  lines += [f"| {r} | {k['good']:.3f} | {k['raw']:.3f} |" for r, k in test["kept"].items()]
  lines += ["", "| scores | good | raw | mean score | curated |", "|---|--:|--:|--:|--:|"]
  lines += [
    f"| {b['low']:.1f} to {b['high']:.1f} | {b['good']} | {b['raw']} | {b['score']:.3f} "
    f"| {b['curated']:.3f} |"
    for b in test["calibration"]
  ]
  if "transfer" in facts:
    lines += ["", "| left out of training | AUC against raw |", "|---|--:|"]
    lines += [f"| {name} | {auc:.4f} |" for name, auc in facts["transfer"].items()]
  elif test["auc"] > _ALIKE:
    lines += [
      "",
      f"note: an AUC above {_ALIKE} may mean that the sources are told apart, not their quality; "
      "--leave_out measures it",
    ]
  return "\n".join(lines)


def plot(test: dict[str, Any]) -> str:
  """Returns an SVG: reliability on the left, the scores of both classes on the right."""
  bins = test["calibration"]
  square = Axes((0, 1), (0, 1), "score", "share that is curated")
  marks = [
    figures.Point(
      b["score"],
      b["curated"],
      radius=2 + 8 * b["weight"] ** 0.5,
      opacity=0.7,
      color="good",
      title=f"{b['good']} good, {b['raw']} raw",
    )
    for b in bins
  ]
  left = _panel(
    square,
    figures.line(square, [0, 1], [0, 1], "var(--ink)"),
    figures.line(square, [m.x for m in marks], [m.y for m in marks], "var(--good)"),
    figures.points(square, marks),
  )
  bars = Axes((0, 1), (0, 1), "score (blue: good, orange: raw)", "share of the class")
  drawn = [
    figures.histogram(bars, (b["low"], b["high"]), [b[name] / max(test[name], 1)], name)
    for name in ("good", "raw")
    for b in bins
  ]
  right = el("g", _panel(bars, *drawn), transform=f"translate({figures.WIDTH} 0)")
  size = {"width": 2 * figures.WIDTH, "height": figures.HEIGHT}
  view = {"viewBox": f"0 0 {size['width']} {size['height']}", "role": "img"}
  style = el("style", Html(_STYLE))
  return el("svg", style, left, right, xmlns="http://www.w3.org/2000/svg", **size, **view)


def _panel(axes: Axes, *marks: Html) -> Html:
  """Returns the grid and labels of one diagram with its marks."""
  x0, x1 = axes.px(axes.x[0]), axes.px(axes.x[1])
  y0, y1 = axes.py(axes.y[0]), axes.py(axes.y[1])
  parts = []
  for x in axes.x_ticks:
    at = f"{axes.px(x):.1f}"
    parts.append(el("line", x1=at, x2=at, y1=y0, y2=y1, cls="grid"))
    parts.append(el("text", f"{x:.1f}", x=at, y=y0 + 15, text_anchor="middle"))
  for y in axes.y_ticks:
    at = f"{axes.py(y):.1f}"
    parts.append(el("line", x1=x0, x2=x1, y1=at, y2=at, cls="grid"))
    parts.append(el("text", f"{y:.1f}", x=x0 - 6, y=at, dy=4, text_anchor="end"))
  turn = {"transform": f"rotate(-90 11 {(y0 + y1) / 2})", "text_anchor": "middle"}
  parts.append(el("text", axes.x_label, x=(x0 + x1) / 2, y=y0 + 34, text_anchor="middle"))
  parts.append(el("text", axes.y_label, x=11, y=(y0 + y1) / 2, **turn))
  return join((*parts, *marks))


def _train(
  good: Sequence[str], options: argparse.Namespace, log: Callable[[str], None]
) -> quality.Model:
  lost: Counter[str] = Counter()
  model = quality.train(
    _documents.read(good, options.extractor, lost),
    _documents.read(options.raw, options.extractor, lost),
    seed=options.seed,
    most=options.most,
    provenance={"good": list(good), "raw": options.raw, "extractor": options.extractor},
    log=log,
  )
  if lost:
    log(_documents.told(lost))
  return model


def _transfers(options: argparse.Namespace) -> dict[str, float]:
  """Returns the AUC of each curated source for a model that was trained without it."""
  if len(options.good) < 2:
    raise UserError("--leave_out needs two curated sources or more: give --good several times")
  found = {}
  for source in options.good:
    others = [name for name in options.good if name != source]
    model = _train(others, options, lambda line: None)
    documents = _documents.read([source], options.extractor, Counter())
    found[source] = quality.transfer(model, documents)
  return found


if __name__ == "__main__":
  sys.exit(main())
