"""What malloc keeps of freed memory goes back to the system, and lies in few arenas."""

import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import pytest

from llm_jax.train import allocator

_BLOCK, _COUNT = 64 << 10, 4_000  # Bytes: below what malloc maps by itself.


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is not here")
# Each thread waits with a block of its own until all have one.
_THREADS = """
import ctypes, os, threading
from llm_jax.train import allocator
allocator.huge_pages()
together = threading.Barrier(4 * os.cpu_count())
def hold():
  block = bytearray(10_000)
  together.wait()
threads = [threading.Thread(target=hold) for _ in range(together.parties)]
for thread in threads:
  thread.start()
for thread in threads:
  thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@glibc
def test_trim_gives_back_what_lies_between_blocks_in_use() -> None:
  blocks = [np.ones(_BLOCK, np.uint8) for _ in range(_COUNT)]
  kept = blocks[:: _COUNT // 16]  # So that the freed ones are not at the end of the heap.
  del blocks
  before = _resident()
  allocator.trim()
  assert before - _resident() > _BLOCK * _COUNT / 2
  assert all(block.all() for block in kept)


def test_trim_does_nothing_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(allocator, "_malloc_trim", lambda: None)
  allocator.trim()


@glibc
def test_a_program_has_one_arena_a_core() -> None:
  env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  ran = subprocess.run(
    [sys.executable, "-c", _THREADS], env=env, capture_output=True, text=True, check=True
  )
  assert 1 <= ran.stderr.count("Arena ") <= os.cpu_count()


def _resident() -> int:
  """Bytes."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096
