"""Worker processes of data: a map that keeps order, and an error at once where a worker dies.

A worker has a pipe of its own and shares nothing else: no lock, no semaphore, no shared memory. So
one that is killed holds nothing that others wait for, and leaves nothing behind; the end of its
pipe says that it is gone. A parent that is killed takes its workers with it.
"""

import collections
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, TypeVar

from llm_jax import faults
from llm_jax.errors import UserError

A = TypeVar("A")
B = TypeVar("B")
_WAITING = 4  # Tasks per worker that are made ahead.
_PATIENCE = 5.0  # Seconds until a process whose pipe has ended is there to be asked how it ended.
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl.
_Pickler: Any = ForkingPickler  # Its `loads` has no type.


class WorkerDied(UserError):
  """A worker ended in the middle of its work: the input is not bad, what was done is kept."""


def ordered_map(
  fn: Callable[[A], B], tasks: Iterable[A], workers: int, timeout: float | None = None
) -> Iterator[B]:
  """Yields `fn(task)` in the order of the tasks, whose number may be unknown and large.

  Nothing is spawned for one worker.

  Args:
    fn: a module's function, or a partial of one.
    tasks: taken only a few ahead.
    workers: processes; 1: run here.
    timeout: seconds to wait for a task; None: no limit.

  Raises:
    TimeoutError: if a task takes longer.
    WorkerDied: if a worker does.
  """
  if workers <= 1:
    yield from map(fn, tasks)
    return
  with Pool(workers) as pool:
    yield from pool.map(fn, tasks, timeout)


def batched(items: Iterable[A], size: int) -> Iterator[list[A]]:
  """Yields lists of `size` items, the last one shorter."""
  items = iter(items)
  while batch := list(itertools.islice(items, size)):
    yield batch


class _Worker(NamedTuple):
  process: BaseProcess
  pipe: Connection


class Pool:
  """Processes that serve `map`, until it is left as a context; then they are killed.

  They are spawned, not forked (the parent may have threads), when the first tasks need them. A
  thread for each hands it a task and waits for the answer.

  Args:
    workers: processes, at most.
  """

  def __init__(self, workers: int):
    self._count = workers
    self._workers: list[_Worker] = []
    self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    self._threads = futures.ThreadPoolExecutor(workers)
    self._died: futures.Future[Any] = futures.Future()  # Has the error once a worker is dead.
    self._calls = itertools.count(1)
    self._kills = {fault.number for fault in faults.asked() if fault.place == "task"}

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_: object) -> None:
    for worker in self._workers:
      worker.process.kill()
    self._threads.shutdown(wait=True, cancel_futures=True)
    for worker in self._workers:
      worker.process.join()
      worker.pipe.close()

  def map(
    self, fn: Callable[[A], B], tasks: Iterable[A], timeout: float | None = None
  ) -> Iterator[B]:
    """As `ordered_map`; may be called again and again."""
    tasks = iter(tasks)
    ahead = itertools.islice(tasks, _WAITING * self._count)
    waiting = collections.deque(self._submit(fn, task) for task in ahead)
    try:
      while waiting:
        yield self._result(waiting.popleft(), timeout)
        waiting.extend(self._submit(fn, task) for task in itertools.islice(tasks, 1))
    finally:
      for future in waiting:
        future.cancel()

  def _submit(self, fn: Callable[[A], B], task: A) -> "futures.Future[B]":
    if len(self._workers) < self._count:
      self._workers.append(_spawned())
      self._idle.put(self._workers[-1])
    return self._threads.submit(self._call, fn, task)

  def _result(self, future: "futures.Future[B]", timeout: float | None) -> B:
    """Waits for an answer; a death ends that at once, whichever task the dead worker had."""
    both: list[futures.Future[Any]] = [future, self._died]
    done, _ = futures.wait(both, timeout, futures.FIRST_COMPLETED)
    if self._died in done:
      self._died.result()
    if not done:
      raise TimeoutError(f"a task took longer than {timeout:g} s")
    return future.result()

  def _call(self, fn: Callable[[A], B], task: A) -> B:
    if self._died.done():  # There are fewer workers now than threads that ask for one.
      self._died.result()
    worker, number = self._idle.get(), next(self._calls)
    dead = False
    try:
      worker.pipe.send((fn, task))
      if number in self._kills:
        print(f"Injected fault: worker_kill@task:{number}.", file=sys.stderr, flush=True)
        worker.process.kill()
      good, answer = worker.pipe.recv()
    except (EOFError, OSError) as error:
      dead = True
      worker.process.join(_PATIENCE)
      found = WorkerDied(_obituary(worker.process))
      with contextlib.suppress(futures.InvalidStateError):  # Another one may have died before.
        self._died.set_exception(found)
      raise found from error
    finally:
      if not dead:
        self._idle.put(worker)
    if not good:
      raise answer
    return answer


def _spawned() -> _Worker:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  # The kernel's signal comes when the thread ends that started the worker, so it must be one that
  # lives as long as the process.
  lasting = threading.current_thread() is threading.main_thread()
  process = context.Process(target=_serve, args=(theirs, os.getpid(), lasting))
  process.start()
  theirs.close()  # The worker has the only other end: the pipe ends with it.
  return _Worker(process, ours)


def _obituary(process: BaseProcess) -> str:
  code = process.exitcode
  how = f"ended with exit code {code}"
  if code is not None and code < 0:
    how = f"was killed by {signal.Signals(-code).name}"
  return (
    f"a data worker (process {process.pid}) {how}: if memory ran out, set config.workers lower; "
    "run the same command again, what was done is kept"
  )


def _serve(pipe: Connection, parent: int, lasting: bool) -> None:
  """Answers calls until the parent's end of the pipe is closed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us.
  _end_with_parent(parent, lasting)
  while True:
    try:
      call = pipe.recv_bytes()
    except (EOFError, OSError):
      return
    pipe.send_bytes(_answer(call))


def _answer(call: bytes) -> bytes:
  """Returns (True, what the function returned) or (False, what it raised), pickled."""
  try:
    fn, task = _Pickler.loads(call)
    return _pickled((True, fn(task)))
  except Exception as error:
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, UserError):
      error.add_note(f"in a worker process:\n{text}")
    try:
      answer = _pickled((False, error))
      _Pickler.loads(answer)
      return answer
    except Exception:  # One that cannot travel: its text does.
      return _pickled((False, RuntimeError(text)))


def _pickled(value: Any) -> bytes:
  return bytes(_Pickler.dumps(value))


def _end_with_parent(parent: int, lasting: bool) -> None:
  """Lets this worker end when its parent does, however that ends: nobody else would tell it."""
  if lasting and sys.platform == "linux":
    # Also where a call into C keeps every thread of ours from running.
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(1)

  def watch() -> None:
    known = multiprocessing.parent_process()
    assert known is not None
    known.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
