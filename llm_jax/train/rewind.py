"""A run that is taken back to an earlier checkpoint, and leaves out batches after it.

PaLM went on from some hundred steps before a spike of the loss, without the batches around it
(Chowdhery et al. 2022, arXiv:2204.02311, sec. 5.1).
"""

import os
import pathlib
import re
import shutil

from llm_jax import rundir
from llm_jax.errors import UserError
from llm_jax.train import processes, retention

_RECORD, _HEALTHY = "rewound.json", "healthy"


def parse(text: str) -> range:
  """Returns the numbers of batches that "a:b" names, b not among them; none of "".

  Raises:
    UserError: if it is none.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  found = range(int(match[1]), int(match[2])) if match else range(0)
  if text and not (found and found.start):
    raise UserError(
      f"--skip_batches={text}: two numbers are needed, the first at least 1 and below the second: "
      "--skip_batches=400:450 leaves out batches 400 to 449, counted from 1"
    )
  return found


def apply(workdir: str | os.PathLike, to: int | str, skip: range) -> None:
  """Sets aside the checkpoints after `to`, and notes which batches are left out from now on.

  The same once more changes nothing: a command may be started again as it is.

  Args:
    workdir: of a training stage.
    to: a step that has a checkpoint, or "healthy": the last one with a good evaluation.
    skip: numbers of batches, counted from 1 over the whole run.

  Raises:
    UserError: if there is no such checkpoint.
  """
  path = pathlib.Path(workdir)
  done = _read(path)
  asked = {"to": str(to), "skip": [skip.start, skip.stop] if skip else []}
  for entry in done:
    if asked.items() <= entry.items():
      processes.say(f"{path.name}: was taken back to step {entry['step']} before, and goes on")
      return
  folder = path / "checkpoints"
  target = _target(folder, str(to))
  retention.forget(folder, target)
  for step in retention.steps(folder):
    if step > target:
      aside = folder / f"{step}.rewound"
      shutil.rmtree(aside, ignore_errors=True)
      os.replace(folder / str(step), aside)
  rundir.write_json(path / _RECORD, [*done, asked | {"step": target}])
  processes.say(f"{path.name}: taken back to step {target}")


def _target(folder: pathlib.Path, to: str) -> int:
  """The step that `to` means.

  Raises:
    UserError: if it has no checkpoint.
  """
  steps, healthy = retention.steps(folder), retention.last_healthy(folder)
  known = ", ".join(map(str, steps)) or "none"
  if to == _HEALTHY and healthy is None:
    raise UserError(
      f"--rewind_to={to}: no checkpoint of {folder} had a good evaluation (config.eval_every); "
      f"there are {known}"
    )
  if to != _HEALTHY and (not to.isdecimal() or int(to) not in steps):
    raise UserError(
      f"--rewind_to={to}: {folder} has no checkpoint of this step, only {known}; "
      f'config.keep and config.keep_every say which ones stay, and "{_HEALTHY}" is the last one '
      "with a good evaluation"
    )
  return int(to) if healthy is None or to != _HEALTHY else healthy


def skipped(workdir: str | os.PathLike) -> list[range]:
  """The batches that a run leaves out."""
  entries = processes.agree(_read(pathlib.Path(workdir)))
  return [range(*entry["skip"]) for entry in entries if entry["skip"]]


def _read(path: pathlib.Path) -> list[dict]:
  record = path / _RECORD
  entries = rundir.read_json(record) if record.exists() else []
  # Before "healthy" could be asked for, what was asked was the step, and a number.
  return [{"step": entry["to"]} | entry | {"to": str(entry["to"])} for entry in entries]
