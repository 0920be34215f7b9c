"""A map over processes: order, errors that travel, time limits that end what they limit."""

import os
import time

import pytest

from llm_jax.data import workers
from llm_jax.data.workers import Pool, WorkerDied, batched, ordered_map
from llm_jax.errors import UserError


class Odd(Exception):
  """An error that cannot be made of its text."""

  def __init__(self, one, two):
    super().__init__(f"{one} and {two}")


def task(kind):
  if kind == "odd":
    raise Odd(1, 2)
  if kind == "user":
    raise UserError("mend it")
  if kind == "exit":
    os._exit(3)
  if kind == "lambda":
    return lambda: None
  if kind == "hang":
    time.sleep(100)
  if kind == "late":
    time.sleep(0.3)
  return kind if isinstance(kind, str) else b"x" * kind


def test_answers_come_in_the_order_of_endless_tasks_however_large():
  tasks = (["late", "a", 3_000_000][i % 3] for i in iter(int, 1) for i in range(3))
  found = ordered_map(task, tasks, 2)
  assert [next(found) for _ in range(6)] == ["late", "a", b"x" * 3_000_000] * 2
  found.close()


@pytest.mark.parametrize(
  ("kind", "error", "says"),
  [
    ("user", UserError, "^mend it$"),
    ("odd", RuntimeError, "Odd: 1 and 2"),
    ("lambda", Exception, "[Pp]ickle"),
    ("exit", WorkerDied, r"data worker \(process \d+\) ended with exit code 3: "),
  ],
)
def test_what_goes_wrong_in_a_worker_is_raised_here(kind, error, says):
  with pytest.raises(error, match=says):
    list(ordered_map(task, ["a", kind], 2))


def test_a_pool_serves_again_after_an_error_but_not_after_a_death():
  with Pool(2) as pool:
    with pytest.raises(UserError):
      list(pool.map(task, ["a", "user", "b"]))
    assert list(pool.map(task, ["a", "b"])) == ["a", "b"]
    for _ in range(2):
      with pytest.raises(WorkerDied):
        list(pool.map(task, ["exit", "late", "late"]))


def test_a_task_that_hangs_is_ended_with_its_worker():
  begin = time.monotonic()
  with pytest.raises(TimeoutError):
    list(ordered_map(task, ["hang", "a"], 2, timeout=1.0))
  assert time.monotonic() - begin < 20


def test_one_worker_is_this_process():
  assert list(ordered_map(lambda x: (x, os.getpid()), [1], 1)) == [(1, os.getpid())]


def test_faults_are_for_tests_alone(monkeypatch):
  monkeypatch.setenv("LLM_JAX_FAULT", "worker_kill@task:1")
  with pytest.raises(UserError, match="is for tests alone"):
    workers.Pool(2)


def test_batches_are_full_but_for_the_last():
  assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
