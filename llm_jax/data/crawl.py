"""Reads raw sources: WARC, ARC and WET files, HTML, JSON lines, plain text, or a folder of them."""

import dataclasses
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from llm_jax.data import extraction
from llm_jax.data.documents import identity
from llm_jax.errors import UserError

SUFFIXES = (".warc", ".arc", ".wet", ".html", ".htm", ".jsonl", ".txt")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_HEAD = 2048  # Bytes of a page in which its encoding may be declared.


@dataclasses.dataclass(frozen=True)
class Raw:
  """A record as it was found.

  Attributes:
    id: unique in its source; 16 hex digits of the address unless the source has ids.
    url: address of the page; a file's relative path if it has none.
    body: HTML, or text if `html` is false.
    html: the text is still to be extracted.
    source: name of the file.
  """

  id: str
  url: str
  body: str
  html: bool
  source: str


def read(source: str | pathlib.Path) -> Iterator[Raw]:
  """Yields the records of a file, or of all files of a folder in the order of their names.

  Of a crawl these are the successful HTML responses and the text of conversion records.

  Raises:
    UserError: if there is nothing to read, or a file is broken; says which and where.
  """
  path = pathlib.Path(source)
  for file in files(path):
    name = file.relative_to(path).as_posix() if path.is_dir() else file.name
    try:
      yield from _READERS[_suffix(file)](file, name)
    except (EOFError, zlib.error, gzip.BadGzipFile, ArchiveLoadFailed) as e:
      size = file.stat().st_size
      raise UserError(f"{file}: broken at or before byte {size}: {_line(e)}; fetch it again") from e
    except UnicodeDecodeError as e:
      raise UserError(f"{file}: byte {e.start} is not UTF-8; convert the file") from e


def files(path: str | pathlib.Path) -> list[pathlib.Path]:
  """Lists the files that `read` reads.

  Raises:
    UserError: if there are none.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise UserError(f'config.source: there is no "{path}"; give "pydocs", a file or a folder')
  found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
  found = [file for file in found if _suffix(file) in _READERS]
  if not found:
    wanted = " ".join(SUFFIXES)
    raise UserError(f"{path}: no file that ends in one of {wanted} (or that and .gz)")
  return found


def extract(html: str, extractor: str = "trafilatura") -> str:
  """Returns the main text of a page; "" if it has none.

  Args:
    html: a page.
    extractor: "trafilatura" (best on articles), "resiliparse" (fast) or "blocks" (keeps
      all text outside navigation: documentation, tables).

  Raises:
    UserError: if there is no such extractor, or its package is not installed.
  """
  return extraction.get(extractor)(html)


def _suffix(file: pathlib.Path) -> str:
  suffixes = [s.lower() for s in file.suffixes if s.lower() != ".gz"]
  return suffixes[-1] if suffixes else ""


def _open(file: pathlib.Path) -> BinaryIO:
  return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else open(file, "rb")


def _archive(file: pathlib.Path, name: str) -> Iterator[Raw]:
  with _open(file) as f:
    # Python's gzip reader, not warcio's: that one takes a cut file for a short one.
    for record in ArchiveIterator(f, arc2warc=True, check_digests=False):
      url = record.rec_headers.get_header("WARC-Target-URI") or ""
      if record.rec_type == "conversion":
        text = record.content_stream().read().decode("utf-8", "replace")
        yield Raw(identity(url or text), url, text, False, name)
      elif record.rec_type == "response" and record.http_headers:
        headers = record.http_headers
        kind = headers.get_header("Content-Type") or ""
        if headers.get_statuscode() == "200" and "html" in kind.lower():
          body = _decode(record.content_stream().read(), kind)
          yield Raw(identity(url or body), url, body, True, name)
      if getattr(record.raw_stream, "limit", 0) and not record.raw_stream.read(1):
        raise EOFError("the last record is cut")
    while f.read(1 << 20):  # warcio takes a gzip error between records for the end; this does not.
      pass


def _html(file: pathlib.Path, name: str) -> Iterator[Raw]:
  with _open(file) as f:
    yield Raw(identity(name), name, _decode(f.read()), True, name)


def _text(file: pathlib.Path, name: str) -> Iterator[Raw]:
  with _open(file) as f:
    yield Raw(identity(name), name, f.read().decode("utf-8-sig"), False, name)


def _jsonl(file: pathlib.Path, name: str) -> Iterator[Raw]:
  with _open(file) as f:
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
        text = row["text"]
      except (ValueError, KeyError, TypeError) as e:
        raise UserError(f'{file}:{number}: want a JSON object with "text": {_line(e)}') from e
      if not isinstance(text, str):
        raise UserError(f'{file}:{number}: "text" must be a string, got {type(text).__name__}')
      url = str(row.get("url") or "")
      yield Raw(str(row.get("id", "")) or identity(f"{name}:{number}"), url, text, False, name)


def _decode(body: bytes, content_type: str = "") -> str:
  """Decodes a page by its header, its own declaration, UTF-8, in this order."""
  declared = _CHARSET.search(content_type.encode()) or _CHARSET.search(body[:_HEAD])
  for encoding in ([declared[1].decode("ascii", "replace")] if declared else []) + ["utf-8"]:
    try:
      return body.decode(encoding)
    except (LookupError, UnicodeDecodeError):
      continue
  return body.decode("cp1252", "replace")  # What browsers take an unknown page for.


def _line(error: Exception) -> str:
  return (str(error) or type(error).__name__).strip().split("\n")[0]


_READERS = {
  ".warc": _archive,
  ".arc": _archive,
  ".wet": _archive,
  ".html": _html,
  ".htm": _html,
  ".jsonl": _jsonl,
  ".txt": _text,
}
