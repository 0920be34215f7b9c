"""Which checkpoints of a directory stay."""

import os
import pathlib
import re
import shutil

from llm_jax import rundir

_HEALTHY, _GOING = "healthy.json", ".removed"
_STEP = re.compile("0|[1-9][0-9]*")


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
  inside = path.iterdir() if path.is_dir() else ()
  return sorted(int(p.name) for p in inside if _STEP.fullmatch(p.name) and p.is_dir())


def last_healthy(directory: str | os.PathLike) -> int | None:
  """Returns the step of the last healthy checkpoint of a directory, or None if there is none.

  Raises:
    UserError: if the record of it is damaged.
  """
  record = pathlib.Path(directory) / _HEALTHY
  step = rundir.read_json(record)["step"] if record.exists() else None
  return step if step in steps(directory) else None


def forget(directory: pathlib.Path, after: int) -> None:
  """Forgets that a checkpoint after this step was healthy: there may be another one of its step."""
  if (last_healthy(directory) or 0) > after:
    (directory / _HEALTHY).unlink()
