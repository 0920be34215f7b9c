"""Metrics of a run: metrics.jsonl is the record, TensorBoard a copy, a progress line for people."""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from absl import logging


class MetricsWriter:
  """Appends rows of {"step": n, name: number} to workdir/metrics.jsonl and to workdir/tb.

  JSON has no NaN: a number that is not finite is written as null.
  """

  def __init__(self, workdir: str | os.PathLike, step: int = 0, *, tensorboard: bool = True):
    """Opens the file and drops the rows beyond `step`, which a resumed run writes again."""
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    path = self._workdir / "metrics.jsonl"
    _truncate(path, step)
    self._file = open(path, "a", encoding="utf-8")
    self._board = _open_board(self._workdir / "tb", step) if tensorboard else None

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Appends one row, at once on disk for readers."""
    row = {name: _number(value) for name, value in metrics.items()}
    self._file.write(json.dumps({"step": step} | row, allow_nan=False) + "\n")
    self._file.flush()
    if self._board is not None:
      for name, value in row.items():
        if value is not None:
          self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes both sinks."""
    self._file.close()
    if self._board is not None:
      self._board.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the rows of workdir/metrics.jsonl; a last line that a kill cut short is left out."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  rows = []
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


class Progress:
  """Shows where a run is: a bar on a terminal, else a plain line every `every` seconds."""

  def __init__(self, name: str, start: int, steps: int, every: float = 10.0):
    """Starts at `start` of `steps`."""
    self._name, self._start, self._steps, self._every = name, start, steps, every
    self._began = self._last = time.monotonic()
    self._note, self._bar = "", None
    if sys.stderr.isatty():
      import tqdm

      self._bar = tqdm.tqdm(total=steps, initial=start, desc=name, unit="step")

  def note(self, text: str) -> None:
    """Sets what is shown beside the steps, such as the loss."""
    self._note = text
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)

  def update(self, step: int) -> None:
    """Says that `step` updates are made."""
    now = time.monotonic()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
    elif now - self._last >= self._every or step == self._steps:
      self._last = now
      left = (now - self._began) / max(step - self._start, 1) * (self._steps - step)
      line = f"{self._name}: step {step}/{self._steps}, {left:.0f} s left"
      print(f"{line}, {self._note}" if self._note else line, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()


class Silent:
  """Stands for a writer and for a progress line in the processes that keep quiet."""

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes nothing."""

  def note(self, text: str) -> None:
    """Shows nothing."""

  def update(self, step: int) -> None:
    """Shows nothing."""

  def close(self) -> None:
    """Has nothing to close."""


def _number(value: Any) -> float | int | None:
  if isinstance(value, int):
    return value
  value = float(value)
  return value if math.isfinite(value) else None


def _truncate(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  rows = [row for row in read(path.parent) if row["step"] <= step]
  temporary = path.with_suffix(".jsonl.tmp")
  temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  os.replace(temporary, path)


def _open_board(directory: pathlib.Path, step: int) -> Any:
  try:
    import tensorboardX
  except ImportError:
    logging.info("tensorboardX is not installed: metrics go to metrics.jsonl only.")
    return None
  return tensorboardX.SummaryWriter(str(directory), purge_step=step + 1)
