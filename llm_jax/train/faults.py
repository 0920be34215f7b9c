"""Faults on purpose: tests let a run's own process do to itself what machines do to it.

    LLM_JAX_TESTING=1 LLM_JAX_FAULT=kill@step:7

llm_jax/faults.py says how they are named, and which there are.
"""

import errno
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from llm_jax.faults import Fault, asked, parse
from llm_jax.train import processes
from llm_jax.types import Batch

__all__ = ["Faults", "parse"]

_DAY = 86400.0


class Faults:
  """The faults that a process still has before it; none, unless it is tested.

  Args:
    environ: of the process.

  Raises:
    UserError: for an unknown fault, or one outside of tests.
  """

  def __init__(self, environ: Any = os.environ):
    self._left = asked(environ)
    self._counts: dict[str, int] = {}
    self._behind = 0.0

  def at_step(self, step: int, batch: Batch) -> Batch:
    """Lets happen what is due before update `step`; returns its batch."""
    for fault in self._due("step", step):
      _signal(fault)
      if fault.kind == "hang":
        time.sleep(_DAY)
      self._behind = _DAY if fault.kind == "clock_jump" else self._behind
      if fault.kind in _SPOILS:
        batch = _spoilt(batch, _SPOILS[fault.kind])
    return batch

  def at_save(self, place: str = "save") -> None:
    """Lets happen what is due in the next save.

    Raises:
      OSError: a full disk.
    """
    self._counts[place] = self._counts.get(place, 0) + 1
    for fault in self._due(place, self._counts[place]):
      _signal(fault)
      if fault.kind == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def at_latest(self, checkpoint: pathlib.Path) -> None:
    """Damages the largest file of a checkpoint, if that is due."""
    for fault in self._due("latest", 1):
      path = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
      data = bytearray(path.read_bytes())
      if fault.kind == "bitflip":
        data[len(data) // 2] ^= 1
      path.write_bytes(data[: len(data) // 2] if fault.kind == "truncate" else data)

  def now(self) -> float:
    """Seconds since 1970."""
    return time.time() - self._behind

  def _due(self, place: str, number: int) -> list[Fault]:
    if not self._left or not processes.primary():
      return []
    due = [fault for fault in self._left if (fault.place, fault.number) == (place, number)]
    self._left = [fault for fault in self._left if fault not in due]
    for fault in due:
      logging.error("Injected fault: %s@%s:%d.", *fault)
    return due


def _signal(fault: Fault) -> None:
  number = {"kill": signal.SIGKILL, "term": signal.SIGTERM}.get(fault.kind)
  if number:
    os.kill(os.getpid(), number)


def _spoilt(batch: Batch, spoil: Callable[[str, np.ndarray], np.ndarray]) -> Batch:
  """The batch, or the pair of batches, with its arrays changed."""
  return {
    name: _spoilt(x, spoil) if isinstance(x, dict) else spoil(name, np.asarray(x))
    for name, x in batch.items()
  }


# Weights that are no numbers; targets that follow from nothing.
_SPOILS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
  "nan": lambda name, x: x * np.nan if np.issubdtype(x.dtype, np.floating) else x,
  "spike": lambda name, x: x[..., ::-1] if name == "targets" else x,
}
