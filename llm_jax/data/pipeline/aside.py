"""Folders in which a result is built aside, so that it is there whole or not at all."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from llm_jax.data.pipeline import engines
from llm_jax.errors import UserError

MARK = "made_of.json"  # In the folder, it tells what the folder is for.


@contextlib.contextmanager
def building(
  root: pathlib.Path, made_of: dict[str, Any], name: str = ".building"
) -> Iterator[pathlib.Path]:
  """Gives a folder in `root`: that of a killed run, if it was to make the same, else a new one.

  It stays after a kill or Ctrl-C, and goes when all is done, or when the input is refused; then
  `root` goes too, if it was made for this.

  Args:
    root: of the results.
    made_of: all that decides what is made, JSON-able.
    name: of the folder.
  """
  folder, existed = root / name, root.exists()
  mark = folder / MARK
  if not mark.exists() or engines.read_json(mark) != made_of:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engines.write_json(mark, made_of)
  done = False
  try:
    yield folder
    done = True
  except UserError:
    done = True
    raise
  finally:
    if done:
      shutil.rmtree(folder, ignore_errors=True)
      if not existed and not any(root.iterdir()):
        root.rmdir()


def facts(files: list[pathlib.Path]) -> list[list[Any]]:
  """Returns what tells a file from one of other content: path, size, time of the last change."""
  return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
