"""A metrics.jsonl as columns that can be drawn, however long the run was."""

import array
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

CLOCK = "time/unix"  # Seconds since 1970; rows of evaluations may lack it.
RESERVED = ("step", CLOCK)


@dataclasses.dataclass
class Curves:
  """The metrics of one stage as columns, at most `points` long.

  Attributes:
    steps: [N] the step of each point (of the last row, where rows were averaged).
    times: [N] seconds since the stage's first row.
    series: name -> [N] values, None where a row lacks the name.
    rows: how many rows the file has.
    unreadable: how many lines were no JSON object, as the last one of a killed run may be.
    step_tokens: places of a step's batch, padding included; None where no row tells.
    begin: when the first row was written, in seconds since 1970; None: no row says.
  """

  steps: list[float]
  times: list[float]
  series: dict[str, list[float | None]]
  rows: int
  unreadable: int
  begin: float | None = None
  step_tokens: float | None = None


def read_curves(path: Path, points: int) -> Curves:
  """Reads a metrics.jsonl into at most `points` points.

  A step that was written twice (a resumed run) keeps its later row.
  """
  return Reader(path).read(points)


class Reader:
  """A metrics.jsonl that grows: only what is new is read again, and a number takes eight bytes.

  Args:
    path: of the file.
  """

  def __init__(self, path: Path):
    self._path = path
    self._begin(0)

  def _begin(self, inode: int) -> None:
    self._inode, self._offset, self._unreadable = inode, 0, 0
    self._steps: dict[float, int] = {}  # Step -> its place in the columns.
    self._columns: dict[str, array.array] = {}  # What is not finite is not there.

  def read(self, points: int) -> Curves:
    """Returns the curves of the file as it is now, at most `points` points long.

    Raises:
      OSError: if it cannot be read.
    """
    broken = self._grow()
    steps = np.array(list(self._steps))
    order = np.argsort(steps)
    firsts = np.arange(0, len(order), max(1, math.ceil(len(order) / points)))
    lasts = np.append(firsts[1:], len(order))[: len(firsts)] - 1
    columns = {name: self._column(name)[order] for name in self._columns}
    clock = columns.pop(CLOCK, np.full(len(order), np.nan))
    known = clock[np.isfinite(clock)]
    series = {name: _means(x, firsts) for name, x in columns.items()}
    return Curves(
      steps=[int(x) if x.is_integer() else x for x in steps[order][lasts].tolist()],
      times=_clock(clock)[lasts].tolist(),
      begin=float(known[0]) if len(known) else None,
      series={name: x for name, x in series.items() if any(v is not None for v in x)},
      rows=len(order),
      unreadable=self._unreadable + broken,
      step_tokens=_step_tokens(columns),
    )

  def _grow(self) -> int:
    """Reads what is new; returns how many lines without an end were no row."""
    with open(self._path, "rb") as f:
      now = os.fstat(f.fileno())
      if now.st_ino != self._inode or now.st_size < self._offset:
        self._begin(now.st_ino)  # Another run has written it anew.
      f.seek(self._offset)
      for line in f:
        wrong = 0 if self._add(line) else 1
        if not line.endswith(b"\n"):  # The next look sees it whole.
          return wrong
        self._offset += len(line)
        self._unreadable += wrong
    return 0

  def _add(self, line: bytes) -> bool:
    """Takes a row; returns whether the line was one, or empty."""
    if not line.strip():
      return True
    try:
      row = json.loads(line.decode("utf-8", "replace"))
      step = number(row["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
      return False
    if step is None:
      return False
    place = self._steps.setdefault(step, len(self._steps))
    row.pop("step")
    for name, value in row.items():
      column = self._columns.get(name)
      if column is None:
        column = self._columns[name] = array.array("d")
      if not isinstance(value, float):
        value = math.nan if (found := number(value)) is None else found
      if len(column) <= place:
        column.extend([math.nan] * (place - len(column)))
        column.append(value)
      else:
        column[place] = value
    return True

  def _column(self, name: str) -> np.ndarray:
    out = np.full(len(self._steps), np.nan)
    out[: len(self._columns[name])] = self._columns[name]
    return out


def _step_tokens(columns: dict[str, np.ndarray]) -> float | None:
  """Tokens per second times seconds per step: both are of the same clock, so it drops out."""
  rate, step = columns.get("time/tokens_per_second"), columns.get("time/step")
  if rate is None or step is None:
    return None
  found = np.sort((rate * step)[np.isfinite(rate * step)])
  return float(round(found[len(found) // 2])) if len(found) else None


def _clock(seen: np.ndarray) -> np.ndarray:
  """Seconds since the first row; never backwards, though a machine's clock may be set back."""
  gaps, known = np.zeros(len(seen)), np.isfinite(seen)
  gaps[known] = np.maximum(np.diff(seen[known], prepend=seen[known][:1]), 0.0)
  return np.cumsum(gaps).round(3)


def _means(values: np.ndarray, firsts: np.ndarray) -> list[float | None]:
  """The average of each group over the rows that have the name, to six significant digits."""
  known = np.isfinite(values)
  sums = np.add.reduceat(np.where(known, values, 0.0), firsts)
  counts = np.add.reduceat(known.astype(np.int64), firsts)
  return [
    float(f"{total / count:.6g}") if count and math.isfinite(total) else None
    for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
  ]


def number(value: Any) -> float | None:
  """Returns a finite float, or None for everything that is not one."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return float(value) if math.isfinite(value) else None
  except OverflowError:  # An int beyond every float.
    return None
