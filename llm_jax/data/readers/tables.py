"""Reads rows: JSON lines, parquet, prepared TFDS data sets (without TensorFlow), Hugging Face."""

import functools
import json
import os
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from llm_jax.data.documents import identity
from llm_jax.data.readers.compression import package
from llm_jax.data.readers.streams import REST, START, Event, Gone, Limits, Raw, Stream
from llm_jax.errors import UserError, nearest

ROWS = re.compile(r"\.(array_record|tfrecord|parquet)(-\d+(-of-\d+)?)?$")  # Files of `rows`.
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_BATCH = 32  # Rows decoded at once.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MEND = "mend it"
_NAME = "name the one that holds the text"
_MASK = 0xA282EAD8  # TFRecord rotates its checksums and adds this.


class Columns(NamedTuple):
  """What the columns are called that hold a row's text, its id and its address.

  Attributes:
    text: of the text.
    id: of an id.
    url: of an address.
    html: whether the text is a page, still to be extracted.
  """

  text: str = "text"
  id: str = "id"
  url: str = "url"
  html: bool = False

  def missing(self, names: Iterable[str]) -> str:
    """Returns the line that says that the text is in none of the columns `names`."""
    return f'no column "{self.text}" (config.reader.text){nearest(self.text, names)}'

  def event(self, row: Mapping[str, Any], name: str, where: str, limits: Limits) -> Event:
    """Returns a row's record; `where` is unique in the file `name`."""
    if self.text not in row:
      return Gone(where, self.missing(row), _NAME)
    text, key, url = (row.get(column) for column in (self.text, self.id, self.url))
    try:
      text = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError as e:
      return Gone(where, f'"{self.text}" is not UTF-8 at its byte {e.start}', _MEND)
    if not isinstance(text, str):
      return Gone(where, f'"{self.text}" must be a string, got {type(text).__name__}', _MEND)
    if len(text) > limits.max_bytes:
      return limits.over(where, f'"{self.text}"')
    number = where.partition(" ")[2]
    return Raw(_string(key) or identity(f"{name}:{number}"), _string(url), text, self.html, name)


def json_lines(stream: Stream, name: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  """Yields an event for each line that is not blank."""
  number = 0
  while (line := stream.line(limits.max_bytes)) != b"":
    number += 1
    where = f"line {number}"
    if line is None:
      yield limits.over(where, "the line")
    elif line.strip():
      yield json_line(line, name, where, limits, columns)
  if stream.failure:
    yield stream.rest()


def json_line(line: bytes, name: str, where: str, limits: Limits, columns: Columns) -> Event:
  """Returns the event of one line; `where` is unique in the file `name`."""
  event = _json_event(line, name, where, limits, columns)
  if not isinstance(event, Gone):
    return event
  return event._replace(
    start=line[: 4 * START].decode("utf-8", "backslashreplace").rstrip("\r\n")[:START]
  )


def _json_event(line: bytes, name: str, where: str, limits: Limits, columns: Columns) -> Event:
  try:
    row = json.loads(line.decode("utf-8-sig"))
  except UnicodeDecodeError as e:
    return Gone(where, f"not UTF-8 ({e.reason})", _MEND)
  except (ValueError, RecursionError) as e:
    return Gone(where, f"want a JSON object ({_line(e)})", _MEND)
  if isinstance(row, dict):
    return columns.event(row, name, where, limits)
  return Gone(where, f"want a JSON object, got {type(row).__name__}", _MEND)


def rows(file: pathlib.Path, name: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  """Yields an event for each row of a parquet file, or of a shard of a TFDS data set.

  Raises:
    UserError: if the text has another type, or a package is missing.
  """
  kind = ROWS.search(file.name)
  assert kind
  if kind[1] == "parquet":
    yield from _parquet(file, name, limits, columns)
    return
  proto = package("tensorflow_datasets.proto", f"{file}").tf_example_pb2
  from google.protobuf.message import DecodeError

  records = _array_record(file) if kind[1] == "array_record" else _tfrecord(file, limits)
  for number, record in enumerate(records, 1):
    if isinstance(record, Gone):
      yield record
      continue
    try:
      example = proto.Example.FromString(record)
    except DecodeError as e:
      yield Gone(f"row {number}", f"no tf.train.Example: {_line(e)}")
      continue
    row = {key: _value(feature) for key, feature in example.features.feature.items()}
    yield columns.event(row, name, f"row {number}", limits)


def shards(directory: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Lists the files of a split of a data set that TFDS has prepared.

  Args:
    directory: holds dataset_info.json.
    split: as a whole; slices such as "train[:1%]" are not read.

  Raises:
    UserError: if it is none, has no such split, or a file is missing.
  """
  path = directory / "dataset_info.json"
  try:
    info = json.loads(path.read_text(encoding="utf-8"))
    splits = {s["name"]: s for s in info["splits"]}
    if split not in splits:
      raise UserError(f'{directory}: no split "{split}"{nearest(split, splits)}')
    count = len(splits[split]["shardLengths"])
    template = splits[split].get("filepathTemplate") or _TEMPLATE
    names = {"DATASET": info["name"], "SPLIT": split, "NUM_SHARDS": f"{count:05d}"}
    names["FILEFORMAT"] = info.get("fileFormat") or "tfrecord"
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f"{path}: no description of a prepared TFDS data set: {_line(e)}") from e
  found = []
  for i in range(count):
    here = names | {"SHARD_INDEX": f"{i:05d}", "SHARD_X_OF_Y": f"{i:05d}-of-{count:05d}"}
    file = re.sub(r"\{(\w+)\}", lambda m, here=here: str(here.get(m[1], m[0])), template)
    if not ROWS.search(file) or "/" in file:
      raise UserError(f"{directory}: {file}: want files of array_record, tfrecord or parquet")
    if not (directory / file).is_file():
      raise UserError(f"{directory}: {file} is missing; prepare the data set again")
    found.append(directory / file)
  return found


def prepared(name: str) -> pathlib.Path:
  """Returns the directory of a TFDS data set, such as "c4/en" or "c4/en:3.0.1"; else the newest.

  It is looked for in $TFDS_DATA_DIR or ~/tensorflow_datasets. Nothing is downloaded.

  Raises:
    UserError: if it has not been prepared.
  """
  name, _, version = name.partition(":")
  root = pathlib.Path(
    os.environ.get("TFDS_DATA_DIR") or pathlib.Path.home() / "tensorflow_datasets"
  )
  place = root / name
  versions = [
    p.parent for p in place.glob("*/dataset_info.json") if _VERSION.fullmatch(p.parent.name)
  ]
  versions = [v for v in versions if version in ("", v.name)]
  if versions:
    return max(versions, key=lambda v: [int(n) for n in v.name.split(".")])
  others = sorted({p.parent.parent.name for p in place.glob("*/*/dataset_info.json")})
  if others:
    raise UserError(f"tfds:{name}: say which: {', '.join(f'tfds:{name}/{o}' for o in others)}")
  wanted = f"tfds build {name} --file_format=array_record"
  raise UserError(
    f"tfds:{name}: not in {root}; run `{wanted}`, set TFDS_DATA_DIR, or use tfds_dir:"
  )


_VERSION = re.compile(r"\d+\.\d+\.\d+")


def hugging_face(name: str, split: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  """Yields an event for each row of a data set of the Hugging Face hub, or of a local folder.

  Its rows are streamed. Code of data sets is never run: releases of `datasets` from 4 on cannot,
  and older ones are told not to.

  Args:
    name: "org/name" or "org/name/config"; a path begins with "/" or ".".
    split: its name.
    limits: caps.
    columns: names.

  Raises:
    UserError: if `datasets` is not installed, or says that there is no such data set.
  """
  datasets = package("datasets", f"hf:{name}")
  parts = name.split("/")
  place, config = ("/".join(parts[:2]), "/".join(parts[2:]) or None)
  if name.startswith(("/", ".")):
    place, config = name, None
  refuse = {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
  try:
    found = datasets.load_dataset(place, config, split=split, streaming=True, **refuse)
    iterator = iter(found)
  except Exception as e:  # The library passes on whatever the network and the files raise.
    raise UserError(f"hf:{name}: {type(e).__name__}: {_line(e)}") from e
  number = 0
  while True:
    number += 1
    try:
      row = next(iterator)
    except StopIteration:
      return
    except Exception as e:
      yield Gone(f"row {number}", f"{type(e).__name__}: {_line(e)}; {REST}")
      return
    yield columns.event(row, f"hf:{name}#{split}", f"row {number}", limits)


def _parquet(file: pathlib.Path, name: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  parquet = package("pyarrow.parquet", f"{file}")
  errors = (package("pyarrow", f"{file}").ArrowException, OSError)
  try:
    table = parquet.ParquetFile(
      file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
  except errors as e:
    yield Gone(f"byte {file.stat().st_size}", f"no parquet: {_line(e)}; {REST}")
    return
  with table:
    names = table.schema_arrow.names
    if columns.text not in names:
      raise UserError(f"{file}: {columns.missing(names)}; {_NAME}")
    wanted = [n for n in dict.fromkeys((columns.text, columns.id, columns.url)) if n in names]
    first = 1
    for group in range(table.num_row_groups):
      meta = table.metadata.row_group(group)
      end = first + meta.num_rows
      sizes = [(c.total_uncompressed_size, c.total_compressed_size) for c in _chunks(meta, wanted)]
      if any(limits.bomb(*size) for size in sizes):
        times = f"they expand more than {limits.max_ratio:g} times (config.reader.max_ratio)"
        yield Gone(f"rows {first} to {end - 1}", times, "raise it")
      else:
        for row in _group(table, group, wanted, errors, range(first, end)):
          found = isinstance(row, Gone)
          yield row if found else columns.event(row[1], name, f"row {row[0]}", limits)
      first = end


def _group(
  table: Any, group: int, wanted: list[str], errors: tuple, numbers: range
) -> Iterator[tuple[int, dict] | Gone]:
  """Yields the rows of a row group with their numbers."""
  number = numbers.start
  batches = table.iter_batches(_BATCH, row_groups=[group], columns=wanted, use_threads=False)
  while True:
    try:
      batch = next(batches, None)
      lists = {n: _values(batch.column(n)) for n in wanted} if batch is not None else {}
    except errors as e:
      yield Gone(f"rows {number} to {numbers.stop - 1}", _line(e))
      return
    if batch is None:
      return
    for i in range(batch.num_rows):
      yield number, {n: values[i] for n, values in lists.items()}
      number += 1


def _values(array: Any) -> list:
  """Returns a column as Python's values, strings as bytes: they may be no UTF-8."""
  arrow = package("pyarrow", "parquet")
  if arrow.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  strings = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_string_view)
  if any(test(array.type) for test in strings):
    array = array.cast(arrow.large_binary())
  return array.to_pylist()


def _chunks(meta: Any, names: Iterable[str]) -> list[Any]:
  chunks = [meta.column(i) for i in range(meta.num_columns)]
  return [c for c in chunks if c.path_in_schema.split(".")[0] in names]


def _array_record(file: pathlib.Path) -> Iterator[bytes | Gone]:
  module = package("array_record.python.array_record_module", f"{file}")
  reader = module.ArrayRecordReader(str(file), "readahead_buffer_size:0")
  try:
    for i in range(reader.num_records()):
      try:
        yield reader.read([i])[0]
      except RuntimeError as e:
        yield Gone(f"row {i + 1}", f"broken ArrayRecord: {_line(e)}")
  finally:
    whole = reader.ok()  # A file that is none has no records, and says so only here ...
    try:
      reader.close()  # ... or here.
      reason = "it cannot be opened"
    except RuntimeError as e:
      reason = _line(e)
  if not whole:
    yield Gone(f"byte {file.stat().st_size}", f"no ArrayRecord: {reason}; {REST}")


def _tfrecord(file: pathlib.Path, limits: Limits) -> Iterator[bytes | Gone]:
  """Yields records of [length u64, checksum u32, data, checksum u32], little-endian."""
  number = 0
  with Stream(file, limits) as stream:
    while head := stream.read(12):
      number += 1
      where = f"row {number}"
      if len(head) < 12 or _checksum(head[:8]) != struct.unpack("<I", head[8:])[0]:
        yield Gone(where, f"its length is cut or broken; {REST}")
        return
      length = struct.unpack("<Q", head[:8])[0]
      if length > limits.max_bytes and stream.skip(length + 4) == length + 4:
        yield limits.over(where, f"a record of {length:,} bytes")
        continue
      data, check = (
        (b"", b"") if length > limits.max_bytes else (stream.read(length), stream.read(4))
      )
      if len(check) < 4:
        yield Gone(where, f"the file is cut; {REST}")
        return
      right = _checksum(data) == struct.unpack("<I", check)[0]
      yield data if right else Gone(where, "its checksum does not match")


def _checksum(data: bytes) -> int:
  """Returns TFRecord's masked CRC-32C, two bytes at a time."""
  table, crc = _table(), 0xFFFFFFFF
  pairs = len(data) // 2
  for pair in struct.unpack_from(f"<{pairs}H", data):
    crc = table[(crc ^ pair) & 0xFFFF] ^ (crc >> 16)
  if len(data) % 2:
    last = (crc ^ data[-1]) & 0xFF
    crc = table[last << 8] ^ (crc >> 8)  # A byte's entry is that of the pair of a zero and it.
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


@functools.cache
def _table() -> list[int]:
  """Returns the remainders of all pairs of bytes by the polynomial of Castagnoli."""
  one = []
  for byte in range(256):
    for _ in range(8):
      byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    one.append(byte)
  firsts = [(one[pair & 0xFF], pair >> 8) for pair in range(1 << 16)]
  return [one[(first & 0xFF) ^ second] ^ (first >> 8) for first, second in firsts]


def _value(feature: Any) -> Any:
  values = getattr(feature, feature.WhichOneof("kind") or "bytes_list").value
  return values[0] if len(values) == 1 else list(values)


def _string(value: Any) -> str:
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  return "" if value is None else str(value)


def _line(error: Exception) -> str:
  return (str(error) or type(error).__name__).strip().split("\n")[0]
