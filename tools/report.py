"""Makes the report of a run, or of one stage, or a page that compares runs.

python -m tools.report --workdir=runs/quickstart                         # its report.html, anew
python -m tools.report --workdir=runs/dpo1 --export=figures              # CSV and SVG files besides
python -m tools.report --runs runs/a runs/b runs/c --out=comparison.html
"""

import argparse
import sys
from pathlib import Path

from llm_jax import report
from llm_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
  """Writes a page and prints its path; 2 is the exit code of bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, help="a run's or a stage's folder (runs/quickstart)")
  parser.add_argument("--runs", type=Path, nargs="*", metavar="DIR", help="two or more to compare")
  parser.add_argument("--out", type=Path, help="of the comparison (comparison.html)")
  parser.add_argument(
    "--export", type=Path, metavar="DIR", help="gets every table as CSV and every chart as SVG"
  )
  options = parser.parse_args(argv)
  try:
    for line in _made(options):
      print(line)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _made(options: argparse.Namespace) -> list[str]:
  """Writes what is asked for; returns what to print."""
  if options.runs is not None and options.workdir:
    raise UserError("--workdir and --runs are two pages: give one of them")
  if options.runs is None and options.out:
    raise UserError("--out is of a comparison: a run's page is report.html in its --workdir")
  if options.runs is not None:
    target = options.out or Path("comparison.html")
    lines = [str(report.compare.build(options.runs, target))]
    exported = report.compare.export(options.runs, options.export) if options.export else []
  else:
    workdir = options.workdir or Path("runs/quickstart")
    lines = [str(report.build(workdir))]
    exported = report.export(workdir, options.export) if options.export else []
  return lines + ([f"{options.export}: {len(exported)} files"] if options.export else [])


if __name__ == "__main__":
  sys.exit(main())
