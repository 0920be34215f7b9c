"""The runs that pages may look at, by name, and the files of theirs that may be read."""

import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from llm_jax.errors import UserError

_SHOWN = (".json", ".jsonl", ".html", ".svg", ".md", ".csv")
_HIDDEN = ("checkpoints", "corpus", "tokens", "tb")


class Workdirs:
  """Directories of runs; requests name them, and never a path.

  Args:
    paths: of the runs, the one that is played with first.

  Raises:
    UserError: if one is no directory.
  """

  def __init__(self, paths: Sequence[str | pathlib.Path]):
    self._paths: dict[str, pathlib.Path] = {}
    for path in map(pathlib.Path, paths):
      if not path.is_dir():
        raise UserError(
          f"{path} is no directory: make a run with `make quickstart`, or name another"
        )
      name, number = path.resolve().name, 2
      while name in self._paths:
        name, number = f"{path.resolve().name} ({number})", number + 1
      self._paths[name] = path

  @property
  def names(self) -> list[str]:
    """Of all runs."""
    return list(self._paths)

  def path(self, name: str = "") -> pathlib.Path:
    """Returns a run's directory; "": the first one's.

    Raises:
      KeyError: if there is none of this name.
    """
    return self._paths[name or next(iter(self._paths))]

  def files(self, name: str = "") -> list[str]:
    """Names of the files of a run that may be read, such as "sft/metrics.jsonl"."""
    root = self.path(name)
    found: list[str] = []
    if not root.is_dir():
      return found
    for place in (root, *sorted(p for p in root.iterdir() if p.is_dir())):
      if place.name in _HIDDEN or place.is_symlink():
        continue
      for path in sorted(place.iterdir()):
        if path.suffix in _SHOWN and path.is_file() and not path.is_symlink():
          found.append(path.relative_to(root).as_posix())
    return found


def parsed(text: str | bytes) -> Any:
  """The value of a JSON text; numbers that no JSON can say, NaN and those beyond a float, are null.

  Raises:
    ValueError: if it is none, or one of thousands of levels.
  """
  try:
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
  except RecursionError as error:
    raise ValueError("too many levels") from error


def _finite(text: str) -> float | None:
  value = float(text)
  return value if math.isfinite(value) else None


def as_object(value: Any) -> dict[str, Any]:
  """What should be an object of a file that a run wrote; of anything else an empty one."""
  return value if isinstance(value, dict) else {}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object of a file, which may be missing or half written: then an empty one."""
  try:
    return as_object(parsed(path.read_text(encoding="utf-8")))
  except (OSError, ValueError):
    return {}


def first_rows(path: pathlib.Path, most: int) -> list[dict[str, Any]]:
  """The first rows of a JSONL file; [] where there is none, up to a line that is no object."""
  try:
    with open(path, encoding="utf-8") as f:
      found = [parsed(line) for line in itertools.islice(f, most)]
  except (OSError, ValueError):
    return []
  return [row for row in found if isinstance(row, dict)]


def last_rows(path: pathlib.Path, size: int = 65536) -> list[dict[str, Any]]:
  """The rows at the end of a JSONL file, of at most `size` bytes."""
  try:
    with open(path, "rb") as f:
      f.seek(0, 2)
      start = max(f.tell() - size, 0)
      f.seek(start)
      lines = f.read().split(b"\n")
  except OSError:
    return []
  found = []
  for line in lines[1 if start else 0 :]:
    try:
      row = parsed(line)
    except ValueError:
      continue
    found += [row] if isinstance(row, dict) else []
  return found
