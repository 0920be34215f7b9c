"""ArrayRecord files whose last record describes them, alone or in shards that read as one.

A file appears only when it is complete, so a corpus can be written part by part, by any number of
processes that may be killed: each part is either there or not.
"""

import contextlib
import glob
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from llm_jax.errors import UserError

SUFFIX = ".array_record"
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_SHARD = re.compile(rf"(?:^(\d+)|-(\d+)-of-(\d+))?{re.escape(SUFFIX)}$")
_REMEDY = "prepare the corpus again with `python -m experiments.prepare`"


@contextlib.contextmanager
def new(path: str | os.PathLike[str]) -> Iterator[Any]:
  """Gives a writer of records; the file appears only when the block ends without an error."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  # Uncompressed: ids hardly shrink, and a chunk of a long document reads the whole of it.
  writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
  try:
    yield writer
    writer.close()
    partial.replace(path)
  finally:
    if writer.is_open():
      writer.close()
    partial.unlink(missing_ok=True)


def shard_name(split: str, index: int, count: int) -> str:
  """Returns the name of one of the files that a split is written to, part by part."""
  return f"{split}-{index:05d}-of-{count:05d}{SUFFIX}"


def files(path: Paths) -> list[pathlib.Path]:
  """Returns the files that `path` means, in order.

  Args:
    path: a file; a folder with one split, in a file or in `00000.array_record` and so on, or in
      `train-00000-of-00008.array_record` (`shard_name`) and so on; of the latter also `x/train` or
      `x/train.array_record`, among other splits; or a list of files.

  Raises:
    UserError: if there is none, a shard is missing or still being written, or a folder holds
      several splits.
  """
  if not isinstance(path, str | os.PathLike):
    if not len(path):
      raise UserError(f"an empty list of token files: {_REMEDY}")
    return [pathlib.Path(p) for p in path]
  path = pathlib.Path(path)
  if path.is_file():
    return [path]
  folder, name = (path, "") if path.is_dir() else (path.parent, path.name.removesuffix(SUFFIX))
  splits: dict[str, list[pathlib.Path]] = {}
  for file in sorted(folder.glob(f"*{SUFFIX}")):
    splits.setdefault(_SHARD.sub("", file.name), []).append(file)
  if name:
    splits = {key: found for key, found in splits.items() if key == name}
  if len(splits) > 1:
    raise UserError(
      f"{folder} holds several splits ({', '.join(splits)}): name one, as in {folder / min(splits)}"
    )
  for split, found in splits.items():
    _check_shards(folder, split, found)
    return found
  raise UserError(f"no token file {path}: {_REMEDY}")


def open_described(
  path: pathlib.Path, form: str, counted: str
) -> tuple[Any, bytes, dict[str, Any]]:
  """Opens an ArrayRecord file whose last record describes the others.

  Args:
    path: of the file.
    form: its format, as its description names it.
    counted: what its description calls the number of other records.

  Returns:
    The reader, what precedes the description in the last record, and the description.

  Raises:
    UserError: if the file is missing, cut short or of another kind.
  """
  if not path.is_file():
    raise UserError(f"no token file {path}: {_REMEDY}")
  try:
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    count = reader.num_records()
    body, _, line = reader.read([count - 1])[0].rpartition(b"\n")
    meta = json.loads(line)
    if meta["format"] != form or meta[counted] != count - 1:
      raise ValueError(f"format {meta['format']}, {count - 1} of {meta.get(counted)} {counted}")
  except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
    raise UserError(f"{path} is no complete token file ({error}): {_REMEDY}") from error
  return reader, body, meta


def format_of(path: pathlib.Path) -> str:
  """Returns the format that the last record of a file names; "" if there is none."""
  try:
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    last = reader.read([reader.num_records() - 1])[0]
    return str(json.loads(last.rpartition(b"\n")[2])["format"])
  except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
    return ""


def _check_shards(folder: pathlib.Path, split: str, shards: Sequence[pathlib.Path]) -> None:
  """Raises UserError unless these files of a split are all there are to be."""
  partial = sorted(folder.glob(f"{glob.escape(split)}*.partial"))
  if partial:
    raise UserError(f"{partial[0]} is still being written: wait, or write it again")
  matches = [match for file in shards if (match := _SHARD.search(file.name))]
  found = {int(match[1] or match[2]) for match in matches if match[1] or match[2]}
  count = max([int(match[3] or 0) for match in matches], default=0) or len(shards)
  lost = sorted(set(range(count)) - found)
  if found and lost:
    raise UserError(f"{folder} lacks file {lost[0]} of {count}: write it")
  if len(shards) > count:
    raise UserError(
      f"{folder} holds {len(shards)} files of a set of {count}: remove those of another attempt"
    )
