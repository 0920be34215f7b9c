"""JSON lines in ranges of bytes, so that many workers read one file and one line can be fetched."""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from llm_jax.errors import UserError

SHARD = 16_000_000  # Bytes of a range.
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Range:
  """Lines of a file that start in [start, end) bytes; `end` -1: to the end of the file."""

  path: str
  start: int = 0
  end: int = -1


def ranges(path: str | os.PathLike[str], size: int = SHARD) -> list[Range]:
  """Cuts a file into ranges of about `size` bytes; a compressed one stays whole."""
  path = os.fspath(path)
  if path.endswith(".gz"):
    return [Range(path)]
  total = os.path.getsize(path)
  count = max(1, -(-total // size))
  return [Range(path, i * total // count, (i + 1) * total // count) for i in range(count)]


def lines(part: Range, most: int = -1) -> Iterator[tuple[int, bytes]]:
  """Yields (byte at which it starts, line with its newline) of every line that is not blank.

  Args:
    part: which lines.
    most: bytes of a line that are read; of a longer one so many and one more. -1: all.

  Raises:
    UserError: if the file cannot be read to its end.
  """
  try:
    with _open(part.path) as f:
      at = part.start
      if at:  # The line that starts before the range belongs to the range before.
        f.seek(at - 1)
        at += len(f.readline()) - 1
      while part.end < 0 or at < part.end:
        line = f.readline(most + 1 if most >= 0 else -1)
        if not line:
          break
        if not line.isspace():
          yield at, line
        at += len(line)
        while not line.endswith(b"\n") and (line := f.readline(_BLOCK)):
          at += len(line)  # The rest of a line that is too long.
  except (EOFError, zlib.error, gzip.BadGzipFile) as e:
    raise UserError(f"{part.path}: broken gzip file ({e}); fetch it again") from e
  except OSError as e:
    raise UserError(f"{part.path}: cannot be read ({e.strerror or e})") from e


def rows(part: Range) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (byte at which it starts, object) of every line.

  Raises:
    UserError: for the first line that is no JSON object: file, line, reason.
  """
  for at, line in lines(part):
    try:
      value = json.loads(line)
    except RecursionError as e:
      raise bad_row(part, at, "JSON nested too deeply") from e
    except ValueError as e:
      raise bad_row(part, at, f"not JSON ({e})") from e
    if not isinstance(value, dict):
      raise bad_row(part, at, f"a JSON {type(value).__name__} where an object must be")
    yield at, value


def bad_row(part: Range, at: int, reason: str) -> UserError:
  """An error that names the line which starts at byte `at`."""
  number = numbers(part.path, [at])[at]
  return UserError(f"{part.path}, line {number}: {reason}; correct or remove this line")


def numbers(path: str, starts: Iterable[int]) -> dict[int, int]:
  """Returns the numbers, from 1, of the lines that start at these bytes; reads the file once."""
  found, number, at = {}, 1, 0
  with _open(path) as f:
    for start in sorted(starts):
      while at < start and (block := f.read(min(start - at, _BLOCK))):
        number += block.count(b"\n")
        at += len(block)
      found[start] = number
  return found


def _open(path: str) -> BinaryIO:
  if path.endswith(".gz"):
    return cast(BinaryIO, gzip.open(path, "rb"))
  return open(path, "rb")
