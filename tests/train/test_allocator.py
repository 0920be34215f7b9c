"""What malloc keeps of freed memory goes back to the system."""

import pathlib
import platform

import numpy as np
import pytest

from llm_jax.train import allocator

_BLOCK, _COUNT = 64 << 10, 4_000  # Bytes: below what malloc maps by itself.


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
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


def _resident() -> int:
  """Bytes."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096
