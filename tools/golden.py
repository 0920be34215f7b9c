"""Golden curves: a tiny run of every stage, and the numbers that it must give again.

python -m tools.golden                         checks tests/golden; exit code 1 if a number moved
python -m tools.golden --update --stages=dpo   writes it anew; the commit says why it moved

A number that moved is a change of an algorithm, of its defaults, of the data's order or of what is
drawn. Curves are of one device, on a CPU.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from llm_jax.errors import UserError, nearest
from llm_jax.train import compiling
from llm_jax.train.metrics import read
from tools import _golden_runs
from tools._golden_runs import Run

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tests" / "golden"
# What other CPUs, and other settings of the compiler, keep (docs/reliability.md has the figures).
RELATIVE, ABSOLUTE = 2e-4, 1e-4

Curve = dict[str, list[float | None]]  # Of each metric a number for each step; None: it has none.


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 1 if a number moved, 2 for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--update", action="store_true", help="writes the curves instead")
  parser.add_argument("--stages", default="", help="names, separated by commas; none: all")
  parser.add_argument("--workdir", type=pathlib.Path, help="keeps the runs, in a new directory")
  options = parser.parse_args(argv)
  compiling.cache(many=False)
  try:
    wanted = _wanted(options.stages)
    if options.workdir:
      if options.workdir.exists():
        raise UserError(f"--workdir={options.workdir} is there already: name a new directory")
      return _all(options.workdir.absolute(), wanted, options.update)
    with tempfile.TemporaryDirectory() as scratch:
      return _all(pathlib.Path(scratch), wanted, options.update)
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def curve(run: Run, workdir: pathlib.Path) -> Curve:
  """Returns what a finished run recorded; of a stage that trains nothing, its counts as a step."""
  rows = read(workdir)
  if not rows:
    rows = [{"step": 1} | json.loads((workdir / "counts.json").read_text())]
  found: Curve = {name: [None] * rows[-1]["step"] for name in run.metrics}
  for row in rows:
    for name in run.metrics:
      if row.get(name) is not None:
        found[name][row["step"] - 1] = _rounded(row[name])
  return found


def differences(found: Curve, golden: dict[str, Any]) -> list[tuple[float, str]]:
  """Returns how far each number is from the golden one, and where, in words.

  Args:
    found: the numbers of a run.
    golden: what `load` gives.

  Returns:
    (difference, line) of each number that is compared. The difference is in tolerances: above 1 it
    is none that rounding makes; of a metric that is not there at the same steps it is infinite.
  """
  known, count = golden["curve"], golden["steps_compared"]
  out = []
  for name in sorted(known.keys() | found.keys()):
    mine, theirs = (table.get(name, [])[:count] for table in (found, known))
    if [x is None for x in mine] != [x is None for x in theirs]:
      out.append((math.inf, f"{name} is not there at the same steps"))
      continue
    for step, (a, b) in enumerate(zip(mine, theirs, strict=True), 1):
      if a is not None and b is not None:
        allowed = golden["absolute"] + golden["relative"] * abs(b)
        out.append((abs(a - b) / allowed, f"{name} at step {step} is {a:g}, golden {b:g}"))
  return out


def load(name: str) -> dict[str, Any]:
  """Returns a golden curve: "curve", "relative", "absolute", "steps_compared" and "jax".

  Raises:
    UserError: if there is none.
  """
  path = GOLDEN / f"{name}.json"
  if not path.is_file():
    raise UserError(f"{path} is missing: `python -m tools.golden --update --stages={name}`")
  return json.loads(path.read_text())


def write(name: str, run: Run, found: Curve) -> None:
  """Writes a golden curve, a metric a line."""
  head = {"jax": jax.__version__, "relative": RELATIVE, "absolute": ABSOLUTE}
  head |= {"steps_compared": run.steps}
  lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
  rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
  table = ' "curve": {\n' + ",\n".join(rows) + "\n }"
  GOLDEN.mkdir(exist_ok=True)
  (GOLDEN / f"{name}.json").write_text("{\n" + ",\n".join([*lines, table]) + "\n}\n")


def _wanted(stages: str) -> list[str]:
  """The names that a flag lists; all of ""."""
  known = list(_golden_runs.runs(pathlib.Path()))
  given = stages.split(",") if stages else known
  for name in given:
    if name not in known:
      raise UserError(f'--stages: there is no run "{name}"{nearest(name, known)}')
  return given


def _all(root: pathlib.Path, wanted: list[str], update: bool) -> int:
  """Runs what is wanted and what that needs; writes or compares the curves."""
  golden = {name: load(name) for name in wanted if not update}
  _golden_runs.begin(root)
  table, moved = _golden_runs.runs(root), False
  needed = {*wanted, *(table[name].after for name in wanted)}
  for name, run in table.items():
    if name in needed:
      run.stage.run(run.cfg, str(root / name))
    if name in wanted and update:
      write(name, run, curve(run, root / name))
      print(f"{name}: written", flush=True)
    elif name in wanted:
      moved |= _moved(name, differences(curve(run, root / name), golden[name]))
  return int(moved)


def _moved(name: str, found: list[tuple[float, str]]) -> bool:
  """Says how a curve compares; returns whether it moved."""
  worst, where = max(found)
  if worst <= 1:
    print(f"{name}: golden; the largest difference is {worst:.2g} of what is allowed", flush=True)
    return False
  over = sum(size > 1 for size, _ in found)
  print(f"{name}: moved, {over} of {len(found)} numbers; the most: {where}", flush=True)
  return True


def _rounded(value: float) -> float:
  """Six digits; what is nearly nothing is nothing, so that files change only where curves do."""
  return float(f"{value:.6g}") if abs(value) >= 1e-6 else 0.0


if __name__ == "__main__":
  sys.exit(main())
