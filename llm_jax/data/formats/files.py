"""Rows of a file: lines of JSON, an array of objects, or parquet."""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

from llm_jax.data.readers.compression import package
from llm_jax.errors import UserError

_BATCH = 256  # Rows of parquet that are decoded at once.


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a file.

  Attributes:
    value: the object.
    line: the very line of a JSONL file, with its newline; "" elsewhere.
    number: of the line, from 1; of a row of parquet, from 1; index in an array, from 0.
    unit: what `number` counts: "line", "row" or "index".
  """

  value: dict[str, Any]
  line: str
  number: int
  unit: str = "line"


def rows(path: str | os.PathLike[str]) -> Iterator[Row]:
  """Yields the rows of a .jsonl, .json or .parquet file; the first two may be .gz.

  A .json file that is no array is read as lines.

  Raises:
    UserError: if the file cannot be read; for the first row that is no JSON object.
  """
  name = str(path).lower()
  if name.endswith(".parquet"):
    yield from _parquet(path)
  elif name.removesuffix(".gz").endswith(".json") and _is_array(path):
    yield from _array(path)
  else:
    yield from read_rows(path)


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
  """Yields the objects of a .jsonl or .jsonl.gz file; blank lines are passed over.

  Raises:
    UserError: if the file cannot be read; for the first line that is no JSON object.
  """
  number = 0
  try:
    with _open(path) as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          value = _object(path, number, line)
          yield Row(value, line.rstrip("\r\n") + "\n", number)
  except UnicodeDecodeError as error:
    raise bad_row(path, number + 1, f"not UTF-8 ({error.reason})") from error
  except (OSError, EOFError, zlib.error) as error:
    raise _unreadable(path, error, f" after line {number}") from error


def bad_row(
  path: str | os.PathLike[str], number: int, reason: str, unit: str = "line"
) -> UserError:
  """Returns the error for line (or row, or index) `number` of `path`."""
  what = "element" if unit == "index" else unit
  return UserError(f"{path}, {unit} {number}: {reason}; correct or remove this {what}")


def _open(path):
  opened = gzip.open if str(path).lower().endswith(".gz") else open
  return opened(path, "rt", encoding="utf-8-sig", newline="\n")


def _unreadable(path, error: Exception, where: str = "") -> UserError:
  reason = getattr(error, "strerror", None) or error
  return UserError(f"cannot read {path}{where} ({reason}): check the file")


def _object(path, number: int, line: str) -> dict[str, Any]:
  try:
    value = json.loads(line)
  except ValueError as error:
    raise bad_row(path, number, f"not JSON ({error})") from error
  except RecursionError as error:
    raise bad_row(path, number, "JSON nested too deeply") from error
  return _checked(path, number, value, "line")


def _checked(path, number: int, value: Any, unit: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    reason = f"a JSON {type(value).__name__} where an object must be"
    raise bad_row(path, number, reason, unit)
  return value


def _is_array(path) -> bool:
  try:
    with _open(path) as f:
      while (character := f.read(1)).isspace():
        pass
  except (OSError, EOFError, zlib.error, UnicodeDecodeError):
    return False  # Whoever reads the lines says what is wrong.
  return character == "["


def _array(path) -> Iterator[Row]:
  try:
    with _open(path) as f:
      values = json.load(f)
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8 ({error.reason}): write it as UTF-8") from error
  except RecursionError as error:
    raise UserError(f"{path}: JSON nested too deeply: check the file") from error
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}): correct the file") from error
  except (OSError, EOFError, zlib.error) as error:
    raise _unreadable(path, error) from error
  for i, value in enumerate(values):
    yield Row(_checked(path, i, value, "index"), "", i, "index")


def _parquet(path) -> Iterator[Row]:
  parquet = package("pyarrow.parquet", f"{path}")
  errors = (package("pyarrow", f"{path}").ArrowException, OSError, UnicodeDecodeError)
  number = 0
  try:
    with parquet.ParquetFile(path) as table:
      for batch in table.iter_batches(_BATCH, use_threads=False):
        for value in batch.to_pylist():
          number += 1
          yield Row(_present(value), "", number, "row")
  except errors as error:
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"cannot read {path} after row {number} ({reason}): check the file") from error


def _present(value: Any) -> Any:
  """Leaves out fields that are null: where columns are fixed, a field that is not there is null."""
  if isinstance(value, dict):
    return {key: _present(inner) for key, inner in value.items() if inner is not None}
  return [_present(inner) for inner in value] if isinstance(value, list) else value
