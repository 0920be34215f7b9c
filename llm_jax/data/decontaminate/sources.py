"""Reads evaluation sets: the texts of each row of JSON lines, JSON, CSV, TSV or crawled files."""

import bz2
import csv
import dataclasses
import gzip
import io
import json
import lzma
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from llm_jax.data import crawl
from llm_jax.errors import UserError, nearest

_TABLES = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", ".json", *_TABLES)
_CODECS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_COMPRESSED = (*_CODECS, ".zst")


@dataclasses.dataclass(frozen=True)
class Source:
  """An evaluation set.

  Attributes:
    name: what reports and reasons call it.
    path: a file.
    fields: names of the fields that are protected, dotted below the top ("options.text");
      (): every text in the row, except web addresses.
  """

  name: str
  path: str
  fields: tuple[str, ...] = ()


def expand(path: str, name: str = "", fields: tuple[str, ...] = ()) -> list[Source]:
  """Returns the evaluation set of a file, or one for each file of a folder that can be read.

  Args:
    path: a file or folder.
    name: of the set; "": the file's name without its suffix. Of a folder it is put before that.
    fields: see `Source`.

  Raises:
    UserError: if there is nothing to read.
  """
  top = pathlib.Path(path)
  if top.is_file():
    return [Source(name or _stem(top), str(top), fields)]
  if not top.is_dir():
    raise UserError(f"{path}: no such evaluation set; give a file or a folder")
  wanted = (*_SUFFIXES, *crawl.SUFFIXES)
  files = [p for p in sorted(top.rglob("*")) if p.is_file() and _suffix(p) in wanted]
  if not files:
    raise UserError(f"{path}: no file that ends in one of {' '.join(dict.fromkeys(wanted))}")
  prefix = f"{name}/" if name else ""
  return [
    Source(prefix + (p.relative_to(top).parent / _stem(p)).as_posix(), str(p), fields)
    for p in files
  ]


def rows(source: Source) -> Iterator[list[str]]:
  """Yields the protected texts of each row, in their order in the file; a row may have none.

  A row is a line of JSON lines (in a .json file too), an element of a JSON list or of the only list
  in a JSON object, a line of a table below its head, and a record of everything else: of plain text
  the whole file.

  Raises:
    UserError: if the file is broken or a row lacks one of the fields; says which and where.
  """
  path = pathlib.Path(source.path)
  if _suffix(path) not in _SUFFIXES:
    if source.fields:
      raise UserError(f"{path}: only rows of JSON, CSV or TSV have fields; leave them out")
    for raw in crawl.read(path):
      yield [_page(raw) if raw.html else raw.body]
    return
  try:
    text = _content(path)
    found = _READERS[_suffix(path)](text, path)
    for number, row in enumerate(found, 1):
      if source.fields:
        yield [t for field in source.fields for t in _named(row, field, f"{path}, row {number}")]
      else:
        yield _texts(row)
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
    raise UserError(f"{path}: cannot be read ({e}); fetch it again") from e
  except UnicodeDecodeError as e:
    raise UserError(f"{path}: byte {e.start} is not UTF-8; convert the file") from e
  except (ValueError, csv.Error) as e:
    raise UserError(f"{path}: {e}; correct the file") from e
  except RecursionError as e:
    raise UserError(f"{path}: JSON nested too deeply; correct the file") from e


def _page(raw: crawl.Raw) -> str:
  try:
    return crawl.extract(raw.body, "blocks")
  except UserError:
    raise
  except Exception as e:
    raise UserError(f"{raw.source}: no text from the page {raw.url} ({e}); give its text") from e


def _texts(value: Any) -> list[str]:
  """Returns the strings in a value of JSON, in their order."""
  if isinstance(value, str):
    return [] if value.startswith(("http://", "https://")) else [value]
  if isinstance(value, dict):
    value = list(value.values())
  return [t for item in value for t in _texts(item)] if isinstance(value, list) else []


def _named(row: Any, field: str, where: str) -> list[str]:
  """Returns the strings in a field; a list on the way stands for all of its elements."""
  values = [row]
  for part in field.split("."):
    values = [v for value in values for v in (value if isinstance(value, list) else [value])]
    for value in values:
      if not isinstance(value, dict) or part not in value:
        names = value if isinstance(value, dict) else ()
        raise UserError(f'{where}: no field "{field}"{nearest(part, names)}')
    values = [value[part] for value in values]
  return _texts(values)


def _content(path: pathlib.Path) -> str:
  with _CODECS.get(path.suffix.lower(), open)(path, "rb") as f:
    return f.read().decode("utf-8-sig")


def _jsonl(text: str, path: pathlib.Path) -> Iterator[Any]:
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        yield json.loads(line)
      except ValueError as e:
        raise UserError(f"{path}, line {number}: not JSON ({e}); correct or remove it") from e


def _json(text: str, path: pathlib.Path) -> Iterator[Any]:
  try:
    value = json.loads(text)
  except json.JSONDecodeError as e:
    if e.msg != "Extra data":
      raise
    yield from _jsonl(text, path)
    return
  if isinstance(value, dict):
    lists = [v for v in value.values() if isinstance(v, list)]
    value = lists[0] if len(lists) == 1 else None
  if not isinstance(value, list):
    raise UserError(f"{path}: want a list of rows, or an object with one list")
  yield from value


def _table(text: str, path: pathlib.Path) -> Iterator[Any]:
  table = csv.DictReader(io.StringIO(text), delimiter=_TABLES[_suffix(path)], strict=True)
  yield from table


def _suffix(path: pathlib.Path) -> str:
  suffixes = [s.lower() for s in path.suffixes if s.lower() not in _COMPRESSED]
  return suffixes[-1] if suffixes else ""


def _stem(path: pathlib.Path) -> str:
  name = path.name
  for suffix in (*_COMPRESSED, _suffix(path)):
    name = name[: -len(suffix)] if suffix and name.lower().endswith(suffix) else name
  return name


_READERS = {".jsonl": _jsonl, ".json": _json, **dict.fromkeys(_TABLES, _table)}
