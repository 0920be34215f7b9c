"""Slow work in parts, each kept in a file once it is done, so that no part is done twice."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from llm_jax import rundir
from llm_jax.train import metrics, processes
from llm_jax.types import Params

Row = dict[str, Any]


class Parts:
  """Files of rows in a directory; those of other inputs are done anew.

  Args:
    directory: made if missing.
    inputs: JSON-able: what the rows depend on and the run's config does not say.
  """

  def __init__(self, directory: str | os.PathLike[str], inputs: Mapping[str, Any]):
    self._path = pathlib.Path(directory)
    self._path.mkdir(parents=True, exist_ok=True)
    known, inputs = self._path / "inputs.json", dict(inputs)
    if not known.exists() or json.loads(known.read_text()) != inputs:
      for old in self._path.glob("*.jsonl"):
        old.unlink()
      rundir.write_json(known, inputs)

  def rows(self, name: str, count: int, make: Callable[[int], list[Row]]) -> list[Row]:
    """Returns the rows of all parts, in order; says on the terminal how far it is.

    Args:
      name: what is done, for people.
      count: of parts.
      make: the number of a part -> its rows.
    """
    done = sum(self._file(number).exists() for number in range(count))
    if done:
      processes.say(f"{name}: {done} of {count} parts are there")
    progress = metrics.Progress(name, done, count)
    found = []
    for number in range(count):
      path = self._file(number)
      if not path.exists():
        write(path, make(number))
        done += 1
        progress.update(done)
      found += read(path)
    progress.close()
    return found

  def _file(self, number: int) -> pathlib.Path:
    return self._path / f"{number:05d}.jsonl"


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
  """Writes one JSON object a line; the file appears whole or not at all."""
  temporary = path.with_name(f".{path.name}.tmp")
  with open(temporary, "w", encoding="utf-8") as f:
    for row in rows:
      f.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
  os.replace(temporary, path)


def read(path: pathlib.Path) -> list[Row]:
  """Reads what `write` wrote."""
  with open(path, encoding="utf-8") as f:
    return [json.loads(line) for line in f]


def fingerprint(params: Params) -> str:
  """Returns a hash of parameters, to the bit."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()
