"""A process with data workers, for tests: python -m tests.faults.pool_run sleep,spin,quick.

Each task says in which process it runs. `spin` is one call into C that keeps Python's lock, so no
thread of the worker runs beside it.
"""

import concurrent.futures
import multiprocessing
import os
import sys
import time

from llm_jax.data.workers import ordered_map
from llm_jax.errors import UserError

LONG = 100.0


def work(kind):
  """Runs a task of a kind: as `LONG` as it can, or at once."""
  os.write(1, f"{os.getpid()}\n".encode())  # At once, whatever other processes print.
  if kind == "spin":
    sum(range(10**13))
  elif kind == "sleep":
    time.sleep(LONG)
  return kind


def main(mode):
  """Runs `mode`: kinds of tasks for workers of ours, or "plain" for the library's own."""
  if mode == "plain":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=context)
    return list(pool.map(work, ["sleep", "sleep"]))
  kinds = mode.split(",")
  return list(ordered_map(work, kinds, len(kinds)))


if __name__ == "__main__":
  try:
    print(*main(sys.argv[1]), flush=True)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
