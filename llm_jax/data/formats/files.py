"""Rows of a file: lines of JSON, an array of objects, or parquet."""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.data.readers.compression import package
from llm_jax.data.readers.streams import START, Lost
from llm_jax.errors import UserError

_BATCH = 256  # Rows of parquet that are decoded at once.
_BOM = b"\xef\xbb\xbf"

Losing = Callable[[Lost], None]  # Gets a row that cannot be read, or raises; then reading goes on.


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

  def start(self) -> str:
    """Returns how the row begins, as JSON."""
    return _start(self.line or self.value)


def refuse(lost: Lost) -> None:
  """Raises the error for a row that cannot be read."""
  raise UserError(f"{lost.source}, {lost.where}: {lost.reason}; {remedy(lost)}")


def remedy(lost: Lost) -> str:
  """Returns what is to be done with a row that cannot be read."""
  unit = lost.where.partition(" ")[0]
  return f"correct or remove this {'element' if unit == 'index' else unit}"


def one_line(text: str) -> str:
  """Returns a text as one line that cannot steer a terminal."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rows(path: str | os.PathLike[str], lost: Losing = refuse) -> Iterator[Row]:
  """Yields the rows of a .jsonl, .json or .parquet file; the first two may be .gz.

  A .json file that is no array is read as lines.

  Args:
    path: of the file.
    lost: gets each row that is no JSON object; as it stands, the first one is an error.

  Raises:
    UserError: if the file cannot be read to its end, or `lost` raises it.
  """
  name = str(path).lower()
  if name.endswith(".parquet"):
    yield from _parquet(path, lost)
  elif name.removesuffix(".gz").endswith(".json") and _is_array(path):
    yield from _array(path, lost)
  else:
    yield from read_rows(path, lost)


def read_rows(path: str | os.PathLike[str], lost: Losing = refuse) -> Iterator[Row]:
  """Yields the objects of a .jsonl or .jsonl.gz file; blank lines are passed over.

  Args:
    path: of the file.
    lost: as in `rows`.

  Raises:
    UserError: as in `rows`.
  """
  number = 0
  try:
    with _open(path, "rb") as lines:
      for number, line in enumerate(lines, 1):
        line = line.removeprefix(_BOM) if number == 1 else line
        try:
          text = line.decode("utf-8")
          if text.strip():
            yield Row(_object(text), text.rstrip("\r\n") + "\n", number)
        except _Malformed as error:
          lost(Lost(str(path), f"line {number}", str(error), _start(line)))
        except UnicodeDecodeError as error:
          lost(Lost(str(path), f"line {number}", f"not UTF-8 ({error.reason})", _start(line)))
  except (OSError, EOFError, zlib.error) as error:
    raise _unreadable(path, error, f" after line {number}") from error


def bad_row(
  path: str | os.PathLike[str], number: int, reason: str, unit: str = "line"
) -> UserError:
  """Returns the error for line (or row, or index) `number` of `path`."""
  lost = Lost(str(path), f"{unit} {number}", reason)
  return UserError(f"{path}, {lost.where}: {reason}; {remedy(lost)}")


class _Malformed(Exception):
  """A row is no JSON object."""


def _open(path, mode: str = "rt") -> Any:
  opened = gzip.open if str(path).lower().endswith(".gz") else open
  return opened(path, mode) if "b" in mode else opened(path, mode, encoding="utf-8-sig")


def _unreadable(path, error: Exception, where: str = "") -> UserError:
  reason = getattr(error, "strerror", None) or error
  return UserError(f"cannot read {path}{where} ({reason}): check the file")


def _object(line: str) -> dict[str, Any]:
  try:
    value = json.loads(line)
  except ValueError as error:
    raise _Malformed(f"not JSON ({error})") from error
  except RecursionError as error:
    raise _Malformed("JSON nested too deeply") from error
  if not isinstance(value, dict):
    raise _Malformed(_no_object(value))
  return value


def _no_object(value: Any) -> str:
  return f"a JSON {type(value).__name__} where an object must be"


def _start(row: Any) -> str:
  """Returns the first characters of a row: of bytes, of a text, or of a value as JSON."""
  if isinstance(row, bytes):
    row = row[: 4 * START].decode("utf-8", "backslashreplace")
  elif not isinstance(row, str):
    row = json.dumps(row, ensure_ascii=False, default=str)
  return row.rstrip("\r\n")[:START]


def _is_array(path) -> bool:
  try:
    with _open(path) as f:
      while (character := f.read(1)).isspace():
        pass
  except (OSError, EOFError, zlib.error, UnicodeDecodeError):
    return False  # Whoever reads the lines says what is wrong.
  return character == "["


def _array(path, lost: Losing) -> Iterator[Row]:
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
    if isinstance(value, dict):
      yield Row(value, "", i, "index")
    else:
      lost(Lost(str(path), f"index {i}", _no_object(value), _start(value)))


def _parquet(path, lost: Losing) -> Iterator[Row]:
  parquet = package("pyarrow.parquet", f"{path}")
  errors = (package("pyarrow", f"{path}").ArrowException, OSError)
  number = 0
  try:
    with parquet.ParquetFile(path) as table:
      for batch in table.iter_batches(_BATCH, use_threads=False):
        for value in _values(batch):
          number += 1
          if isinstance(value, UnicodeDecodeError):
            why, start = f"not UTF-8 ({value.reason})", _start(value.object)
            lost(Lost(str(path), f"row {number}", why, start))
          else:
            yield Row(_present(value), "", number, "row")
  except errors as error:
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"cannot read {path} after row {number} ({reason}): check the file") from error


def _values(batch: Any) -> list[Any]:
  """Returns the rows of a batch of parquet, for one that is no text the error."""
  try:
    return batch.to_pylist()
  except UnicodeDecodeError as error:
    if batch.num_rows == 1:
      return [error]
  return [_values(batch.slice(i, 1))[0] for i in range(batch.num_rows)]


def _present(value: Any) -> Any:
  """Leaves out fields that are null: where columns are fixed, a field that is not there is null."""
  if isinstance(value, dict):
    return {key: _present(inner) for key, inner in value.items() if inner is not None}
  return [_present(inner) for inner in value] if isinstance(value, list) else value
