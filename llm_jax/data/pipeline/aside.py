"""Folders in which a result is built aside, so that it is there whole or not at all."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax.data.pipeline import engines
from llm_jax.data.workers import WorkerDied
from llm_jax.errors import UserError

MARK = "made_of.json"  # In the folder, it tells what the folder is for.


@contextlib.contextmanager
def building(
  root: pathlib.Path, made_of: dict[str, Any], name: str = ".building"
) -> Iterator[pathlib.Path]:
  """Gives a folder in `root`: that of a killed run, if it was to make the same, else a new one.

  It stays after a kill or Ctrl-C, or if a worker dies, and goes when all is done, or when the input
  is refused; then `root` goes too, if it was made for this and nothing else is there.

  Args:
    root: of the results.
    made_of: all that decides what is made, JSON-able.
    name: of the folder.

  Raises:
    UserError: if `root` cannot be made, or another process builds there.
  """
  folder, existed = root / name, root.exists()
  try:
    root.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{root} cannot be made ({error.strerror}): name another directory") from error
  try:
    with _alone(root / f"{name}.lock"):
      mark = folder / MARK
      if not mark.exists() or engines.read_json(mark) != made_of:
        _remove(folder, ignore_errors=True)
        folder.mkdir()
        engines.write_json(mark, made_of)
      try:
        yield folder
      except UserError as error:
        if not isinstance(error, WorkerDied):
          _remove(folder)
        raise
      _remove(folder)
  finally:
    if not existed and not any(root.iterdir()):
      root.rmdir()


def clear(root: pathlib.Path, name: str = ".building") -> None:
  """Removes what is left beside a complete result, if its run was killed while it removed that.

  Raises:
    UserError: if another process builds there.
  """
  folder, lock = root / name, root / f"{name}.lock"
  if folder.exists() or lock.exists():
    with _alone(lock):
      _remove(folder, ignore_errors=True)


def facts(files: Sequence[pathlib.Path]) -> list[list[Any]]:
  """Returns what tells a file from one of other content: path, size, time of the last change."""
  return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _remove(folder: pathlib.Path, ignore_errors: bool = False) -> None:
  """Removes a folder, the mark first: what a kill leaves of it must not be gone on with."""
  (folder / MARK).unlink(missing_ok=True)
  shutil.rmtree(folder, ignore_errors)


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
  """Holds a lock, which ends with the process, however that ends.

  Raises:
    UserError: if another process has it.
  """
  with open(path, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # The one that has just left may have removed the file that was opened here.
      if not os.path.samestat(os.stat(path), os.fstat(lock.fileno())):
        raise BlockingIOError
    except OSError as error:
      raise UserError(f"another process works on {path.parent}: wait for it, or end it") from error
    try:
      yield
    finally:
      os.unlink(path)
