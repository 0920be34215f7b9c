"""Reads web archives: WARC (ISO 28500), its text form WET, and ARC, the format before it.

A broken record costs that record: the next one is found by its gzip member, or by the line that it
begins with.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from llm_jax.data.documents import identity
from llm_jax.data.readers import responses
from llm_jax.data.readers.responses import Unreadable
from llm_jax.data.readers.streams import REST, Event, Gone, Limits, Raw, Skip, Stream

_HEAD = 1 << 16  # Bytes of a record's header, at most.
_USUAL = 1 << 11  # ... and mostly.
_BLANK = re.compile(rb"\r?\n\r?\n")
_WARC = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n")
_WARC_NEXT = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n[A-Za-z-]+:")
# Address, IP, time, type, (five more fields in version 2), length.
_ARC = re.compile(
  rb"([^\s\0][^\n\0]{0,2000}?) ([0-9A-Fa-f.:]{2,45}|-) (\d{8,20}) (\S{1,200})(?: \S{1,500}){0,5}"
  rb" (-?\w{1,20})\r?\n"
)
_ARC_NEXT = re.compile(rb"(?m)^" + _ARC.pattern)
_UNREAD = {"warcinfo", "request", "metadata", "revisit"}
_AGAIN = "fetch the file again"
_CUT = "the record is cut, or its length is wrong"
_LENGTH = "no record follows: its length is wrong"


def read(stream: Stream, name: str, limits: Limits, arc: bool = False) -> Iterator[Event]:
  """Yields an event for each record of an archive.

  Pages are HTML responses of status 200 and resources of type HTML; the text of conversions is
  text. Other records are skipped.

  Args:
    stream: the file.
    name: of the file.
    limits: a record whose block or decoded body is larger is gone.
    arc: the file is an ARC.
  """
  return _Reader(stream, name, limits, arc).events()


class _Header(NamedTuple):
  """What a record says of itself."""

  kind: str  # As in a WARC; "response" for all of an ARC.
  url: str
  content_type: str
  size: int  # Bytes of the header.
  length: int  # Bytes of the block that follows.
  segmented: bool = False


class _Reader:
  """Walks from record to record."""

  def __init__(self, stream: Stream, name: str, limits: Limits, arc: bool):
    self._stream, self._name, self._limits = stream, name, limits
    self._header = _arc_header if arc else _warc_header
    self._begin = _ARC if arc else _WARC
    self._next = _ARC_NEXT if arc else _WARC_NEXT
    self._done = False
    self._member = -1  # That of the current record, if it begins with the record.

  def events(self) -> Iterator[Event]:
    stream = self._stream
    while not self._done:
      self._blank()
      stream.mark()
      if stream.peek(1):
        yield self._record()
      elif stream.failure:
        yield self._failed()
      else:
        return

  def _record(self) -> Event:
    """Reads a record, and moves to where the next one begins."""
    stream, limits = self._stream, self._limits
    place, begin = stream.at(), stream.tell()
    where = f"byte {place}"
    self._member = place if stream.fresh() else -1
    header = self._header(stream)
    if isinstance(header, str):
      return self._resync(begin + 1, where, header)
    size = header.size + header.length
    left = stream.size - begin
    if not stream.compressed and size > left:
      return self._resync(begin + header.size, where, _CUT)
    if header.length > limits.max_bytes:
      return self._oversized(header, where)
    if not stream.peek(1, size - 1):
      return self._resync(begin + header.size, where, _CUT)
    if not self._ends(size):
      return self._resync(begin + header.size, where, _LENGTH)
    stream.skip(header.size)
    block = stream.read(header.length)
    self._blank()
    stream.settle()
    if stream.failure and stream.failure.member == place and stream.compressed:
      after = stream.peek(_USUAL)
      if not self._begin.match(after):  # Else the record is one of many in a member.
        return self._failed()
    try:
      return _content(header, block, self._name, limits)
    except Unreadable as e:
      return Gone(where, str(e), _AGAIN)

  def _oversized(self, header: _Header, where: str) -> Event:
    """Moves over a record without holding it."""
    stream = self._stream
    position, size = stream.tell() + header.size, header.size + header.length
    if stream.skip(size, within=stream.compressed) < size or not self._ends(0):
      return self._resync(position, where, _LENGTH)
    if header.kind in _UNREAD:
      return Skip(f"{header.kind} record")
    return self._limits.over(where, f"a record of {header.length:,} bytes")

  def _ends(self, ahead: int) -> bool:
    """Tells whether a record ends so many bytes ahead."""
    tail = self._stream.peek(_USUAL, ahead)
    rest = tail.lstrip(b"\r\n")
    return tail.startswith(b"\r\n\r\n") or not rest or bool(self._begin.match(rest))

  def _blank(self) -> None:
    """Moves over empty lines."""
    while data := self._stream.peek(_USUAL):
      rest = len(data.lstrip(b"\r\n"))
      self._stream.skip(len(data) - rest)
      if rest:
        return

  def _resync(self, position: int, where: str, reason: str) -> Gone:
    """Moves to the next record behind `position` (decoded bytes)."""
    stream = self._stream
    if stream.failure and stream.failure.member == self._member:
      return self._failed()  # What looks like a record in broken data is a copy of this one.
    stream.back(position)
    if stream.scan(self._next):
      return Gone(where, reason, _AGAIN)
    if stream.failure:
      return self._failed()
    self._done = True
    return Gone(f"byte {stream.size}", f"from {where} on: {reason}; {REST}")

  def _failed(self) -> Gone:
    """Moves to the next member whose content begins as a record."""
    failure = self._stream.failure
    assert failure
    self._done = not self._stream.recover(lambda data: bool(self._begin.match(data)))
    rest = f"; {REST}" if self._done else f" in the member from byte {failure.member} on"
    return Gone(f"byte {failure.byte}", failure.reason + rest)


def _warc_header(stream: Stream) -> _Header | str:
  """Returns the header that comes next, or why it is none."""
  for size in (_USUAL, _HEAD):
    data = stream.peek(size)
    blank = _BLANK.search(data)
    if blank or len(data) < size:
      break
  if not _WARC.match(data):
    return "no WARC header"
  if not blank:
    return "a WARC header without an end"
  head = data[: blank.start()]
  if b"\0" in head or _WARC.search(head, 1):
    return "a broken WARC header"
  fields: dict[bytes, bytes] = {}
  for line in head.split(b"\n")[1:]:
    key, colon, value = line.partition(b":")
    if colon and not key[:1].isspace():
      fields.setdefault(key.strip().lower(), value.strip())
  length = fields.get(b"content-length", b"")
  kind = fields.get(b"warc-type", b"").decode("ascii", "replace").lower()
  if not (length.isdigit() and len(length) < 19):
    return "a WARC header without Content-Length"
  if not kind:
    return "a WARC header without WARC-Type"
  return _Header(
    kind,
    _url(fields.get(b"warc-target-uri", b"")),
    fields.get(b"content-type", b"").decode("latin-1"),
    blank.end(),
    int(length),
    b"warc-segment-number" in fields,
  )


def _arc_header(stream: Stream) -> _Header | str:
  """Returns the header that comes next, or why it is none."""
  data = stream.peek(_USUAL)
  found = _ARC.match(data) or _ARC.match(stream.peek(_HEAD))
  if not found:
    return "no ARC header"
  url = _url(found[1])
  if not found[5].isdigit():
    return "an ARC header without a length"
  return _Header("response", url, found[4].decode("latin-1"), found.end(), int(found[5]))


def _url(value: bytes) -> str:
  return value.decode("utf-8", "replace").strip("<>").replace(" ", "%20")


def _content(header: _Header, block: bytes, name: str, limits: Limits) -> Raw | Skip:
  """Returns the page or text of a record.

  Raises:
    Unreadable: if it cannot be decoded.
  """
  kind, url = header.kind, header.url
  if kind == "conversion":
    try:
      text = block.decode("utf-8")
    except UnicodeDecodeError as e:
      raise Unreadable(f"its byte {e.start} is not UTF-8") from e
    return Raw(identity(url or text), url, text, False, name)
  if kind == "resource":
    return _page(url, block, header.content_type, name)
  if kind != "response":
    return Skip(f"{kind[:20]} record")
  if header.segmented:
    raise Unreadable("the record is in segments")
  if not (url.startswith(("http:", "https:")) or block.startswith(b"HTTP/")):
    return Skip("not HTTP")
  response = responses.parse(block)
  if response.status != 200:
    return Skip(f"status {response.status}")
  content_type = response.headers.get("content-type", "")
  if "html" not in content_type.lower():
    return Skip("not HTML")
  return _page(url, responses.content(response, limits), content_type, name)


def _page(url: str, body: bytes, content_type: str, name: str) -> Raw | Skip:
  if "html" not in content_type.lower():
    return Skip("not HTML")
  text = responses.decode(body, content_type)
  return Raw(identity(url or text), url, text, True, name)
