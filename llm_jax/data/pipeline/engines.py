"""Where the work on a corpus runs: the same functions on shards, here, in processes or under Beam.

A phase is one pure function over many tasks. A task leaves its files and, as the last of them, a
JSON result; where that is there, the task is done and is not run again. So a phase that was killed
goes on where it was, and every engine leaves the same bytes.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from llm_jax.data.workers import Pool
from llm_jax.errors import UserError, nearest

Result = dict[str, Any]
_ENGINES = ("local", "beam")


@dataclasses.dataclass(frozen=True)
class Task:
  """One shard's part of a phase.

  Attributes:
    out: what its files' names start with; the result is `out`.json.
    args: what the function gets besides `out`; picklable.
  """

  out: str
  args: tuple = ()


Function = Callable[..., Result]  # A module's function: fn(out, *args) -> a JSON-able result.


class Engine(Protocol):
  """Runs phases."""

  def run(self, fn: Function, tasks: Iterable[Task]) -> Iterator[Result]:
    """Yields the result of each task, in order; those that are done are only read."""
    ...


def make(
  name: str, workers: int = 1, beam_runner: str = "", beam_options: Sequence[str] = ()
) -> "contextlib.AbstractContextManager[Engine]":
  """Returns the engine called `name`, as a context.

  Args:
    name: "local" or "beam".
    workers: processes of the local engine.
    beam_runner: name of Beam's runner; "": the one in this process.
    beam_options: further words of Beam's command line.

  Raises:
    UserError: if there is none, or its package is not installed.
  """
  check(name, beam_runner)
  if name == "local":
    return Local(workers)
  from llm_jax.data.pipeline.beam import Beam  # Its package is an extra.

  return Beam(beam_runner, tuple(beam_options))


def check(name: str, beam_runner: str = "") -> None:
  """Raises UserError unless `make` can make the engine."""
  if name not in _ENGINES:
    raise UserError(f'config.engine: there is no engine "{name}"{nearest(name, _ENGINES)}')
  if beam_runner and name != "beam":
    raise UserError(f"config.beam_runner={beam_runner} needs config.engine=beam")
  if name == "beam" and not importlib.util.find_spec("apache_beam"):
    raise UserError("config.engine=beam needs Apache Beam: pip install 'llm_jax[beam]'")


def run_task(fn: Function, task: Task) -> Result:
  """Runs a task, unless its result is there; returns it as the file has it, either way."""
  done = result_of(task)
  if done is None:
    write_json(task.out + ".json", fn(task.out, *task.args))
    done = read_json(task.out + ".json")  # A tuple is a list there.
  return done


def result_of(task: Task) -> Result | None:
  """Returns the result that an earlier run left whole, or None."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    return read_json(task.out + ".json")
  return None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a file that is there whole or not at all, whenever the process is killed.

  It is not forced to the disk, which takes seconds where others write: after a power cut start a
  run anew.
  """
  temporary = f"{os.fspath(path)}.tmp"
  with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as f:
    json.dump(value, f, ensure_ascii=False)
  os.replace(temporary, path)


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads what `write_json` wrote."""
  return json.loads(pathlib.Path(path).read_bytes())


class Local:
  """Processes of this machine; one worker means here, in this process.

  They are spawned, not forked (the parent may have threads), when the first phase needs them, and
  serve all phases until the engine is left as a context.
  """

  def __init__(self, workers: int = 1):
    self._workers = workers
    self._pool = Pool(workers)

  def __enter__(self) -> "Local":
    return self

  def __exit__(self, *error: object) -> None:
    self._pool.__exit__(*error)

  def run(self, fn: Function, tasks: Iterable[Task]) -> Iterator[Result]:
    """As `Engine.run`; tasks are taken only a few ahead, so they may be made as they go.

    Raises:
      WorkerDied: if a worker does.
    """
    tasks = iter(tasks)
    first = list(itertools.islice(tasks, 2))
    tasks = itertools.chain(first, tasks)
    if self._workers <= 1 or len(first) < 2:
      yield from (run_task(fn, task) for task in tasks)
    else:
      yield from self._pool.map(functools.partial(run_task, fn), tasks)


def names(directory: str | os.PathLike[str], count: int) -> list[str]:
  """Returns `count` names for the files of a phase's tasks, in `directory`, which is made."""
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  return [str(path / f"{i:05d}") for i in range(count)]


def results(engine: Engine, fn: Function, tasks: Sequence[Task]) -> list[Result]:
  """Runs a phase to its end."""
  return list(engine.run(fn, tasks))
