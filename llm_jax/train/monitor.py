"""What a run tells of itself at no cost: memory in use, and steps that were compiled again."""

import collections
import contextlib
import faulthandler
import functools
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LOUD = 3  # Recompilations that are shown one by one.
_GIB = 2**30


def memory() -> dict[str, float]:
  """Returns memory in GiB as metrics; nothing waits for a device.

  "memory/host" is the resident memory of this process (Linux). "memory/device" and
  "memory/device_peak" are the fullest local device's, in use now and at most so far, where devices
  tell: GPUs and TPUs do.
  """
  found = {}
  with contextlib.suppress(OSError):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    found["memory/host"] = pages * os.sysconf("SC_PAGE_SIZE") / _GIB
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  for name, key in (("device", "bytes_in_use"), ("device_peak", "peak_bytes_in_use")):
    values = [each[key] for each in stats if key in each]
    if values:
      found[f"memory/{name}"] = max(values) / _GIB
  return found


def compilations() -> int:
  """Returns how many programs this thread has compiled since the first call of it."""
  return _counts()[threading.get_ident()]


class Recompilations:
  """Counts the calls of one compiled function, after its first, that compiled again.

  Attributes:
    count: such calls so far.
  """

  def __init__(self, name: str):
    """Takes the name of the run, shown to people."""
    self.count, self._name = 0, name
    self._shapes: Any = None  # Of the last batch.
    compilations()

  @contextlib.contextmanager
  def watch(self, step: int, batch: Any) -> Iterator[None]:
    """Is around the call of update `step`; of a recompilation it says what changed in `batch`."""
    before, last = compilations(), self._shapes
    self._shapes = jax.tree.map(lambda x: (getattr(x, "dtype", type(x)), np.shape(x)), batch)
    yield
    if last is None or compilations() == before:
      return
    self.count += 1
    if self.count > _LOUD:
      return
    known, shapes = _described(last), _described(self._shapes)
    changed = [
      f"{name} was {known.get(name, 'absent')} and is {shapes.get(name, 'absent')}"
      for name in sorted({*known, *shapes})
      if known.get(name) != shapes.get(name)
    ]
    why = ", ".join(changed[:4]) or "its shapes did not change: the state's did, or its placement"
    more = "; more are only counted, as time/recompilations" if self.count == _LOUD else ""
    text = f"{self._name}: the step was compiled again at step {step}: batch {why}{more}"
    print(text, file=sys.stderr, flush=True)


class Watchdog:
  """Ends a process in which nothing happens any more, with the stacks of its threads on stderr.

  What hangs may hold the interpreter's lock, so faulthandler's thread watches, which needs none.
  """

  def __init__(self, seconds: float):
    """Takes the patience; 0: it never barks."""
    self._seconds = seconds

  def arm(self) -> None:
    """Counts the seconds from now on."""
    if self._seconds > 0:
      faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

  def disarm(self) -> None:
    """Stops counting."""
    if self._seconds > 0:
      faulthandler.cancel_dump_traceback_later()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not count the seconds of what is in the block, and begins anew after it."""
    self.disarm()
    yield
    self.arm()

  def __enter__(self) -> "Watchdog":
    # Not sys.stderr, which may have no file descriptor, as in a notebook.
    self._file = os.fdopen(os.dup(2), "w")
    return self

  def __exit__(self, *exc: object) -> None:
    self.disarm()
    self._file.close()


@functools.cache
def _counts() -> collections.Counter:
  """Compilations by thread, from now on."""
  counts: collections.Counter = collections.Counter()

  def note(event: str, seconds: float, **about: Any) -> None:
    del seconds, about
    if event == _COMPILED:
      counts[threading.get_ident()] += 1

  jax.monitoring.register_event_duration_secs_listener(note)
  return counts


def _described(shapes: Any) -> dict[str, str]:
  """Leaf -> "int32[8,128]"."""
  leaves = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{getattr(dtype, 'name', dtype)}[{','.join(map(str, shape))}]"
    )
    for path, (dtype, shape) in leaves
  }
