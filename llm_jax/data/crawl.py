"""Reads raw sources: web archives, HTML, JSON lines, tables, plain text, or a folder of them.

  crawl/            every file of a folder that ends in one of SUFFIXES, in the order of their names
  pages.warc.gz     a file; .gz .bz2 .xz .zst may follow (and .json.gz is taken for JSON lines)
  tfds:c4/en        a TFDS data set that was prepared on this machine
  tfds_dir:data/c4  the same, by the directory that holds its dataset_info.json
  hf:org/name       a data set of the Hugging Face hub, streamed

The last three may end in "#validation"; else they are read from the split "train".
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

from llm_jax.data import extraction, jsonl
from llm_jax.data.documents import identity
from llm_jax.data.readers import archives, responses, tables
from llm_jax.data.readers.compression import CODECS
from llm_jax.data.readers.streams import (
  FETCH,
  MAX_BYTES,
  MAX_RATIO,
  REST,
  Event,
  Gone,
  Limits,
  Lost,
  Raw,
  Skip,
  Stream,
)  # fmt: skip
from llm_jax.data.readers.tables import Columns
from llm_jax.errors import UserError

__all__ = [
  "DEFAULTS", "SUFFIXES", "Lost", "Options", "Raw", "Unreadable", "extract", "files", "name_of",
  "read", "read_file", "read_lines",
]  # fmt: skip

SUFFIXES = (".warc", ".arc", ".wet", ".html", ".htm", ".jsonl", ".txt", ".parquet")
_SOURCE = re.compile(r"(tfds|tfds_dir|hf):(.+?)(?:#(.+))?")


@dataclasses.dataclass(frozen=True)
class Options:
  """How records are read: names of columns, and caps.

  Attributes:
    text: column of JSON lines and tables that holds the text.
    id: column that holds an id, unique in the source; it may be missing.
    url: column that holds an address; it may be missing.
    html: whether the column `text` holds pages of HTML, still to be extracted.
    max_bytes: of a record, decoded: a page, a line, a text. A larger one is lost. Default 64 MiB.
    max_ratio: what becomes larger than 64 MiB and so many times larger than it was compressed is
      taken for a decompression bomb, and the rest of it is lost. Default 200; gzip cannot do more
      than 1,032, and text that people wrote reaches about 20.
  """

  text: str = "text"
  id: str = "id"
  url: str = "url"
  html: bool = False
  max_bytes: int = MAX_BYTES
  max_ratio: float = MAX_RATIO

  def columns(self) -> Columns:
    """Returns the names."""
    return Columns(self.text, self.id, self.url, self.html)

  def limits(self) -> Limits:
    """Returns the caps.

    Raises:
      UserError: unless both are positive.
    """
    limits = Limits(self.max_bytes, self.max_ratio)
    limits.check()
    return limits


DEFAULTS = Options()


class Unreadable(UserError):
  """A record cannot be read, and nobody takes what is lost."""


def read(
  source: str | pathlib.Path,
  *,
  lost: Callable[[Lost], None] | None = None,
  skipped: Callable[[str], None] | None = None,
  options: Options = DEFAULTS,
) -> Iterator[Raw]:
  """Yields the records of a source, in the order of `files` and of each file.

  Of a crawl these are the successful HTML responses, resources of type HTML, and the text of
  conversion records. Memory holds a few records, however large the files are.

  Args:
    source: a file, a folder, or a data set (see the module).
    lost: gets each record that cannot be read, and reading goes on with the next one if the format
      lets it be found. None: the first one is an error.
    skipped: gets the kind of each record that is not meant to be read: "request record",
      "status 404", "not HTML".
    options: columns and caps.

  Raises:
    UserError: if there is nothing to read, or a package is missing; without `lost` also if a
      record cannot be read. Says the file, the place, the reason and what to do.
  """
  limits, columns = options.limits(), options.columns()
  kind, name, split = _parse(source)
  if kind == "hf":
    events = tables.hugging_face(name, split, limits, columns)
    yield from _records(events, f"hf:{name}", f"hf:{name}#{split}", lost, skipped)
    return
  for file in files(source):
    called = name_of(file, source)
    yield from _records(_events(file, called, limits, columns), file, called, lost, skipped)


def read_file(
  file: str | pathlib.Path,
  name: str,
  *,
  lost: Callable[[Lost], None] | None = None,
  skipped: Callable[[str], None] | None = None,
  options: Options = DEFAULTS,
) -> Iterator[Raw]:
  """Yields the records of one of `files`, for those who read many at a time.

  Args:
    file: its path.
    name: `source` of its records, and part of the id of those without one: unique in the source.
    lost: as all others, see `read`.
    skipped: see `read`.
    options: columns and caps.

  Raises:
    UserError: see `read`.
  """
  file = pathlib.Path(file)
  events = _events(file, name, options.limits(), options.columns())
  yield from _records(events, file, name, lost, skipped)


def read_lines(
  part: jsonl.Range,
  name: str,
  *,
  lost: Callable[[Lost], None] | None = None,
  options: Options = DEFAULTS,
) -> Iterator[Raw]:
  """Yields the records of some of the lines of a plain file of JSON lines.

  Args:
    part: which lines.
    name: `source` of the records, and part of the id of those without one.
    lost: as all others, see `read`; its `where` is the byte at which the line begins.
    options: columns and the cap on a line.

  Raises:
    UserError: see `read`.
  """
  limits, columns = options.limits(), options.columns()

  def events() -> Iterator[Event]:
    for at, line in jsonl.lines(part, limits.max_bytes):
      where = f"byte {at}"
      if len(line) > limits.max_bytes:
        event = limits.over(where, "the line")
      else:
        event = tables.json_line(line, name, where, limits, columns)
      if lost is None and isinstance(event, Gone):  # It is the end: now there is time to count.
        event = event._replace(where=f"line {jsonl.numbers(part.path, [at])[at]}")
      yield event

  yield from _records(events(), part.path, name, lost, None)


def files(source: str | pathlib.Path) -> list[pathlib.Path]:
  """Lists the files that `read` reads, in a fixed order; none for a source "hf:...".

  Raises:
    UserError: if there is nothing to read.
  """
  kind, name, split = _parse(source)
  if kind == "hf":
    return []
  if kind:
    return tables.shards(tables.prepared(name) if kind == "tfds" else pathlib.Path(name), split)
  path = pathlib.Path(name)
  if not path.exists():
    raise UserError(f'config.source: there is no "{path}"; give "pydocs", a file or a folder')
  if path.is_file():
    found = [path] if _kind(path) else []
  else:
    if (path / ".building").exists():
      raise UserError(f"{path} is of a run that is not finished: finish it, or name another source")
    found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in SUFFIXES)
    hidden = (any(part.startswith(".") for part in p.relative_to(path).parts) for p in found)
    found = [p for p, away in zip(found, hidden, strict=True) if not away]
  if not found:
    hint = (
      "; it holds metadata, the text is in the .warc or .wet" if ".wat" in path.suffixes else ""
    )
    wanted, packed = " ".join(SUFFIXES), " ".join(CODECS)
    raise UserError(f"{path}: no file that ends in one of {wanted} (then maybe {packed}){hint}")
  return found


def name_of(file: pathlib.Path, source: str | pathlib.Path) -> str:
  """Returns what one of `files` is called as the `source` of its records."""
  folder = pathlib.Path(source)
  return file.relative_to(folder).as_posix() if folder.is_dir() else file.name


def extract(
  html: str,
  extractor: str = "trafilatura",
  seconds: float = extraction.SECONDS,
  max_chars: int = extraction.MAX_CHARS,
) -> str:
  """Returns the main text of a page; "" if it has none.

  Args:
    html: a page.
    extractor: "trafilatura" (best on articles), "resiliparse" (fast) or "blocks" (keeps
      all text outside navigation: documentation, tables).
    seconds: the page may take; see `deadline.limited` for what that can end.
    max_chars: the page may have.

  Raises:
    UserError: if there is no such extractor, or its package is not installed.
    TimeoutError: if the page takes longer.
    extraction.PageTooLarge: if the page is larger.
  """
  return extraction.run(extraction.get(extractor), html, seconds, max_chars)


def _parse(source: str | pathlib.Path) -> tuple[str, str, str]:
  """Returns (scheme or "", name or path, split)."""
  found = _SOURCE.fullmatch(str(source))
  return (found[1], found[2], found[3] or "train") if found else ("", str(source), "")


def _kind(file: pathlib.Path) -> str:
  """Returns by which suffix a file is read; "" if by none."""
  suffixes = [s.lower() for s in file.suffixes]
  if rows := tables.ROWS.search(file.name):
    return f".{rows[1]}"
  if compressed := bool(suffixes and suffixes[-1] in CODECS):
    suffixes.pop()
  suffix = suffixes[-1] if suffixes else ""
  if suffix == ".json" and compressed:
    return ".jsonl"
  return suffix if suffix in _READERS else ""


def _records(
  events: Iterable[Event],
  file: object,
  name: str,
  lost: Callable[[Lost], None] | None,
  skipped: Callable[[str], None] | None,
) -> Iterator[Raw]:
  """Hands out what is not a record."""
  for event in events:
    if isinstance(event, Raw):
      yield event
    elif isinstance(event, Skip):
      if skipped:
        skipped(event.kind)
    elif lost:
      lost(Lost(name, event.where, event.reason, event.start))
    else:
      kind, _, number = event.where.partition(" ")
      where = f":{number}" if kind == "line" else f": {event.where}"
      if kind == "byte" and event.todo == FETCH:
        where = f": broken at or before {event.where}"
      raise Unreadable(f"{file}{where}: {event.reason}; {event.todo}")


def _events(file: pathlib.Path, name: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  kind = _kind(file)
  try:
    if kind not in _READERS:
      yield from tables.rows(file, name, limits, columns)
      return
    with Stream(file, limits) as stream:
      other = None if stream.compressed else _misnamed(stream)
      yield from [other] if other else _READERS[kind](stream, name, limits, columns)
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}") from e


def _misnamed(stream: Stream) -> Gone | None:
  """Finds a compressed file whose name does not say so."""
  head = stream.peek(6)
  for suffix, codec in CODECS.items():
    if head.startswith(codec.magic):
      reason = f"this is {codec.name} data, which its name does not say; {REST}"
      return Gone("byte 0", reason, f"rename it to end in {suffix}")
  return None


def _archive(stream: Stream, name: str, limits: Limits, columns: Columns, arc: bool = False):
  return archives.read(stream, name, limits, arc)


def _html(stream: Stream, name: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  body = stream.read(limits.max_bytes + 1)
  if stream.failure:
    yield stream.rest()
  elif len(body) > limits.max_bytes:
    yield limits.over("byte 0", "the page")
  else:
    yield Raw(identity(name), name, responses.decode(body), True, name)


def _text(stream: Stream, name: str, limits: Limits, columns: Columns) -> Iterator[Event]:
  body = stream.read(limits.max_bytes + 1)
  if stream.failure:
    yield stream.rest()
  elif len(body) > limits.max_bytes:
    yield limits.over("byte 0", "the text")
  else:
    try:
      yield Raw(identity(name), name, body.decode("utf-8-sig"), False, name)
    except UnicodeDecodeError as e:
      yield Gone(f"byte {e.start}", "not UTF-8", "convert the file")


_READERS = {
  ".warc": _archive,
  ".arc": functools.partial(_archive, arc=True),
  ".wet": _archive,
  ".html": _html,
  ".htm": _html,
  ".jsonl": tables.json_lines,
  ".txt": _text,
}
