"""A map over worker processes that keeps order and takes its input as it goes."""

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
_WAITING = 4  # Tasks per worker that are made ahead.


def ordered_map(
  fn: Callable[[A], B], tasks: Iterable[A], workers: int, timeout: float | None = None
) -> Iterator[B]:
  """Yields `fn(task)` in the order of the tasks, whose number may be unknown and large.

  Processes are spawned, not forked: the parent may have threads. Nothing is spawned for one worker.

  Args:
    fn: a module's function, or a partial of one.
    tasks: taken only a few ahead.
    workers: processes; 1: run here.
    timeout: seconds to wait for a task; None: no limit.

  Raises:
    TimeoutError: if a task takes longer.
  """
  if workers <= 1:
    yield from map(fn, tasks)
    return
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
  tasks = iter(tasks)
  try:
    ahead = itertools.islice(tasks, _WAITING * workers)
    waiting = collections.deque(pool.submit(fn, task) for task in ahead)
    while waiting:
      yield waiting.popleft().result(timeout)
      for task in itertools.islice(tasks, 1):
        waiting.append(pool.submit(fn, task))
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def batched(items: Iterable[A], size: int) -> Iterator[list[A]]:
  """Yields lists of `size` items, the last one shorter."""
  items = iter(items)
  while batch := list(itertools.islice(items, size)):
    yield batch
