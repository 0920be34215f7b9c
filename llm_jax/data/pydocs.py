"""The documentation of this Python installation as a crawl: real text on every machine, offline.

Pages are made with their boilerplate and their duplicates, and written as WARC records, so that
what follows is the same work as on a crawl of the web.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import pathlib
import pydoc_data.topics
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llm_jax.data import docsite, docstrings
from llm_jax.data.docstrings import Entry
from llm_jax.data.workers import batched, ordered_map

__all__ = ["Entry", "Module", "crawl", "entries", "modules"]

_HOST = "https://docs.invalid"  # RFC 2606: a name that never resolves.
_DATE = "2000-01-01T00:00:00Z"  # The time of writing would change the bytes.
_CHUNK = 16  # Modules per task of a worker.
_TIMEOUT = 120  # Seconds that a task of a worker may take.
_TESTS = re.compile(r"(^|[._])tests?([._]|$)|(^|\.)(conftest|testing|idle_test)(\.|$)")
# They act when they are imported, or need a display; their sources are read all the same.
_NOT_IMPORTED = {"antigravity", "this", "turtle", "turtledemo", "idlelib", "tkinter", "lib2to3"}
_NO_PAGES = {"idlelib", "lib2to3", "turtledemo", "ensurepip", "__phello__", "pydoc_data", "this"}


@dataclasses.dataclass(frozen=True)
class Module:
  """A module that can have a page.

  Attributes:
    name: dotted name.
    package: "stdlib" or the distribution's name.
    path: its source; "" for a module written in C.
    topic: the module is a chapter of the language reference instead.
  """

  name: str
  package: str
  path: str = ""
  topic: bool = False

  @property
  def url(self) -> str:
    """Address of its page."""
    return f"{_HOST}/{'language' if self.topic else self.package}/{self.name}.html"


@dataclasses.dataclass(frozen=True)
class _Page:
  """What a worker makes of a module."""

  url: str
  html: str
  entries: tuple[Entry, ...]
  text_bytes: int


def modules(seed: int = 0) -> list[Module]:
  """Lists what can be crawled: standard library, language topics, packages in a seeded order."""
  topics = [Module(name, "stdlib", topic=True) for name in sorted(pydoc_data.topics.topics)]
  installed = sorted(_installed(), key=lambda m: (_hash(f"{seed}:{m.name}"), m.url))
  return [*_stdlib(), *topics, *installed]


def entries(workers: int = 1) -> Iterator[Entry]:
  """Yields every documented object of the installation; modules come before their objects."""
  for made in _pages([m for m in modules() if not m.topic], workers, render=False):
    yield from (entry for entry in made.entries if entry.doc)


def crawl(
  path: str | pathlib.Path, max_bytes: int = 0, seed: int = 0, workers: int = 1
) -> list[Entry]:
  """Writes one page per module to a WARC file; the same installation gives the same bytes.

  Args:
    path: the file, `.warc.gz` (one gzip member per record) or `.warc`.
    max_bytes: stop after so many bytes of documentation text; 0: all.
    seed: order of the packages' modules.
    workers: processes.

  Returns:
    The documented objects of the pages that were written.
  """
  found: list[Entry] = []
  size = 0
  with open(path, "wb") as f:
    writer = WARCWriter(f, gzip=str(path).endswith(".gz"), warc_version="1.1")
    for made in _pages(modules(seed), workers):
      if max_bytes and size >= max_bytes:
        break
      if made.html:
        _write(writer, made)
        size += made.text_bytes
        found += (entry for entry in made.entries if entry.doc)
  return found


def _stdlib() -> list[Module]:
  """The standard library, sorted by name; private C modules are here for what they implement."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  sources = {}
  for file in root.rglob("*.py"):
    name = _module_name(file.relative_to(root))
    if name.partition(".")[0] in sys.stdlib_module_names and not _TESTS.search(name):
      sources[name] = str(file)
  in_c = {n for n in sys.stdlib_module_names if importlib.util.find_spec(n)} - set(sources)
  names = sorted(set(sources) | in_c)
  return [
    Module(name, "stdlib", sources.get(name, ""))
    for name in names
    if name.partition(".")[0] not in _NO_PAGES and not _TESTS.search(name)
  ]


def _installed() -> Iterator[Module]:
  """Modules of the installed distributions, vendored copies included, this project left out."""
  seen = set()
  for distribution in importlib.metadata.distributions():
    package = (distribution.metadata["Name"] or "").lower()
    if package in ("", "llm-jax", "llm_jax") or package in seen:
      continue
    seen.add(package)
    for file in distribution.files or ():
      if file.suffix != ".py" or ".." in file.parts or not file.parts[0].isidentifier():
        continue
      name = _module_name(file)
      if not _TESTS.search(name):
        yield Module(name, package, str(distribution.locate_file(file)))


def _module_name(file: pathlib.PurePath) -> str:
  parts = file.with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _pages(listed: Sequence[Module], workers: int, render: bool = True) -> Iterator[_Page]:
  """Makes pages in the order of `listed`, a chunk of neighbours at a time."""
  make = functools.partial(_make, render=render)
  chunks = batched(listed, _CHUNK)
  yield from itertools.chain.from_iterable(ordered_map(make, chunks, workers, _TIMEOUT))


def _make(listed: Sequence[Module], render: bool) -> list[_Page]:
  names = [module.name for module in listed]
  return [_page(module, names, render) for module in listed]


def _page(module: Module, siblings: Sequence[str], render: bool) -> _Page:
  if module.topic:
    text = pydoc_data.topics.topics[module.name]
    return _Page(module.url, docsite.topic(module.name, text, siblings), (), len(text.encode()))
  found = _entries(module)
  html = ""
  if render and module.package == "stdlib" and _importable(module.name):
    html = docsite.pydoc_page(module.name)
  if render and not html and any(entry.doc for entry in found):
    html = docsite.page(module.name, module.package, found, siblings)
  return _Page(module.url, html, tuple(found), sum(len(e.doc.encode()) for e in found))


def _entries(module: Module) -> list[Entry]:
  if not module.path:
    return _inspected(module)
  try:
    source = pathlib.Path(module.path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError):
    return []
  if '"""' not in source and "'''" not in source:
    return []  # Hardly anything to read, and parsing is what takes the time.
  return docstrings.from_source(source, module.name, module.package, module.url)


def _inspected(module: Module) -> list[Entry]:
  if not _importable(module.name):
    return []
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      imported = importlib.import_module(module.name)
  except ImportError:
    return []
  return docstrings.from_module(imported, "stdlib", lambda name: Module(name, "stdlib").url)


def _importable(name: str) -> bool:
  return name.partition(".")[0] not in _NOT_IMPORTED and not name.endswith("__main__")


def _write(writer: WARCWriter, made: _Page) -> None:
  headers = StatusAndHeaders(
    "200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1"
  )
  body = made.html.encode("utf-8", "replace")
  record = writer.create_warc_record(
    made.url,
    "response",
    payload=io.BytesIO(body),
    length=len(body),
    http_headers=headers,
    warc_headers_dict={
      "WARC-Date": _DATE,
      "WARC-Record-ID": f"<urn:uuid:{_uuid(made.url)}>",
    },
  )
  writer.write_record(record)


def _uuid(url: str) -> str:
  digits = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
  return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode(), digest_size=8).digest()
