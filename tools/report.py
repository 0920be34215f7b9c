"""Rebuilds the report of a run: `python -m tools.report --workdir=runs/quickstart`."""

import argparse
import sys
from pathlib import Path

from llm_jax import report
from llm_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
  """Writes report.html and prints its path; 2 is the exit code of bad input."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--workdir", type=Path, default=Path("runs/quickstart"), help="a run's folder"
  )
  options = parser.parse_args(argv)
  try:
    print(report.build(options.workdir))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
