"""Which checkpoints of a directory stay."""

import json
import os
import pathlib
import shutil

from llm_jax import rundir

_HEALTHY, _GOING = "healthy.json", ".removed"


def apply(directory: pathlib.Path, step: int, healthy: bool, *, keep: int, every: int) -> None:
  """Removes those that nobody asked to keep; nothing that is half removed looks like a checkpoint.

  Args:
    directory: of the checkpoints.
    step: of the one that was just committed.
    healthy: whether that one is now the last healthy one, which stays until another is.
    keep: how many of the newest stay.
    every: those of steps that it divides stay; 0: none.
  """
  if healthy:  # Before the one that it replaces may go.
    rundir.write_json(directory / _HEALTHY, {"step": step})
  for path in directory.glob(f"*{_GOING}"):  # A kill came between.
    shutil.rmtree(path)
  found = steps(directory)
  stay = {*found[-keep:], *(n for n in found if every and n % every == 0), last_healthy(directory)}
  for number in found:
    if number not in stay:
      gone = directory / f"{number}{_GOING}"
      os.replace(directory / str(number), gone)
      shutil.rmtree(gone)


def steps(directory: str | os.PathLike) -> list[int]:
  """Returns the steps of the committed checkpoints of a directory, rising."""
  path = pathlib.Path(directory)
  # Orbax commits by renaming "<step>.orbax-checkpoint-tmp" to "<step>".
  return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()) if path.is_dir() else []


def last_healthy(directory: str | os.PathLike) -> int | None:
  """Returns the step of the last healthy checkpoint of a directory, or None if there is none."""
  record = pathlib.Path(directory) / _HEALTHY
  step = json.loads(record.read_text())["step"] if record.exists() else None
  return step if step in steps(directory) else None
