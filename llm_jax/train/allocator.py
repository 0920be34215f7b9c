"""Memory of a program on a CPU: what glibc's malloc is told at the start and now and then."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable


def huge_pages() -> None:
  """Starts this process anew, once, with glibc's large blocks in huge pages, one arena a core.

  XLA on a CPU takes a step's arrays from malloc and gives them back after it. In pages of 4 kB the
  kernel clears tens of thousands of them at every step: a fifth of a small model's time. Of eight
  arenas a core, as many as glibc makes, each keeps what its threads freed between two things that
  stay, and the process grows for hours. Processes that this one starts, such as the peer of a race,
  have the same. Where GLIBC_TUNABLES is set, or the system is not Linux, nothing happens.
  """
  if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
    return
  arenas = f"glibc.malloc.arena_max={os.cpu_count() or 1}"
  os.environ["GLIBC_TUNABLES"] = f"glibc.malloc.hugetlb=1:{arenas}"  # Read only at the start.
  sys.stdout.flush()
  os.execv(sys.executable, sys.orig_argv)


def trim() -> None:
  """Gives the system the free memory that malloc keeps; without glibc, nothing happens.

  Blocks of a step, a save and a cache lie between one another, and threads take theirs from arenas
  of their own: of what is freed, much stays, more by the hour. It takes some tens of milliseconds
  a gigabyte, and the next step takes about as long to get what it needs once more.
  """
  if (release := _malloc_trim()) is not None:
    release(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
  return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
