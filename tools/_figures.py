"""How a tool that measures ends: a table and a JSON, or one line that says what was wrong."""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from llm_jax.errors import UserError


def finish(
  measure: Callable[[], dict[str, Any]],
  show: Callable[[dict[str, Any]], str],
  path: pathlib.Path | None,
) -> int:
  """Measures, prints, and writes; returns the exit code, 2 for bad input.

  Args:
    measure: returns the figures.
    show: makes text of them.
    path: gets them as JSON; that it can is known before anything is measured.
  """
  try:
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
      raise UserError(f"--json={path} must be a file in a directory that is there")
    figures = measure()
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  print(show(figures))
  if path:
    path.write_text(json.dumps(figures, indent=2) + "\n")
  return 0


def numbers(figures: dict) -> str:
  """What a model computes in, for a table."""
  rounded = figures["matmul_precision"]
  return figures["dtype"] + (f", factors of products rounded to {rounded}" if rounded else "")
