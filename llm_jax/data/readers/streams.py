"""Opens files, plain or compressed, piece by piece, and says where a broken one breaks."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from llm_jax.data.readers.compression import CODECS, Codec, Decoder, Undecodable
from llm_jax.errors import UserError

MAX_BYTES = 64 << 20
MAX_RATIO = 200.0
REST = "the rest of the file is lost"
FETCH = "fetch it again"
START = 200  # Characters that are shown of a record that cannot be read.
_PIECE = 1 << 16  # Bytes read from disk at once.
_OUT = 1 << 18  # Bytes that a decoder returns at once, at most.
_SMALL = 64 << 20  # So much may come out of anything: small files may repeat themselves.
_PROBE = 4096  # Bytes by which the beginning of a record is recognised.
_TRIES = 200  # Places that may look like a member and be none, when one is searched for.
_NUMBER = re.compile(r"(?<!UTF-)(?<!\w)\d[\d,.]*")
_DETAIL = re.compile(r"[;(]")
_KIND = 60  # Characters of a kind of reason.


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


@dataclasses.dataclass(frozen=True)
class Lost:
  """A record that could not be read, or the rest of a file.

  Attributes:
    source: name of the file.
    where: "byte 1234" of the file as it is on disk (a record of a compressed file: where the
      member begins that holds it; damage: where it shows, which may be later than where it is);
      "line 17" or "row 17", both counted from 1.
    reason: a short line; ends in `REST` if nothing more can be read from the file.
    start: how the record begins, where that is known: at most `START` characters.
  """

  source: str
  where: str
  reason: str
  start: str = ""

  @property
  def kind(self) -> str:
    """The reason without what only this record has: what counts together, fit for a terminal."""
    found = _NUMBER.sub("N", _DETAIL.split(self.reason, maxsplit=1)[0])[:_KIND].strip()
    return "".join(c if c.isprintable() else "?" for c in found)


class Gone(NamedTuple):
  """What a reader yields for a record that it cannot read: place, reason, remedy, beginning."""

  where: str
  reason: str
  todo: str = FETCH
  start: str = ""


class Skip(NamedTuple):
  """What a reader yields for a record that is not meant to be read, such as a request."""

  kind: str


Event = Raw | Gone | Skip


class Limits(NamedTuple):
  """Caps: decoded bytes of a record, and how many times a file may expand."""

  max_bytes: int = MAX_BYTES
  max_ratio: float = MAX_RATIO

  def check(self) -> None:
    """Raises `UserError` unless both caps are positive."""
    if not (self.max_bytes > 0 and self.max_ratio > 0):
      raise UserError(f"{self}: must be positive")

  def bomb(self, out: int, taken: int) -> bool:
    """Tells whether `taken` bytes that became `out` were made to fill a disk or a memory."""
    return out > max(_SMALL, self.max_ratio * taken)

  def over(self, where: str, what: str) -> Gone:
    """Returns the event of a record that is over the cap on bytes."""
    reason = f"{what} is over the cap of {self.max_bytes:,} bytes"
    return Gone(where, reason, "raise config.reader.max_bytes")


class Failure(NamedTuple):
  """Why no more can be decoded, at which byte of the file, of a member that begins at another."""

  byte: int
  reason: str
  member: int


class Stream:
  """The decoded bytes of a file; holds no more of them than it is asked for.

  A compressed file is a sequence of members, each with a checksum (in a WARC file, one a record).
  If one is broken, what was decoded before it can still be read; then everything ends, and
  `failure` says why. `recover` goes on at a later member.

  Attributes:
    failure: None, or why the bytes end before the file does.
    size: bytes of the file on disk.
    compressed: the file is.
  """

  def __init__(self, file: pathlib.Path, limits: Limits):
    codec = CODECS.get(file.suffix.lower())
    self._new = codec.load() if codec else None
    self._codec: Codec | None = codec
    self._file = open(file, "rb")
    self._limits = limits
    self.size = file.stat().st_size
    self.failure: Failure | None = None
    self.compressed = codec is not None
    self._decoder: Decoder | None = None  # None between members.
    self._raw = b""  # Read from disk but not decoded ...
    self._raw_at = 0  # ... and the byte at which it begins there.
    self._member = 0  # The byte at which the current member begins ...
    self._out = [0, 0]  # ... and the bytes decoded of it, and of the whole file.
    self._buffer = bytearray()
    self._pos = 0
    self._base = 0  # Decoded bytes before the buffer.
    self._marks = collections.deque([(0, 0)])  # Of members: first decoded byte, byte on disk.

  def __enter__(self) -> "Stream":
    return self

  def __exit__(self, *_):
    self._file.close()

  def at(self) -> int:
    """Returns the byte of the file where the next byte is found, or where its member begins."""
    while len(self._marks) > 1 and self._marks[1][0] <= self.tell():
      self._marks.popleft()
    return self._marks[0][1] if self.compressed else self.tell()

  def fresh(self) -> bool:
    """Tells whether the next byte is the first one of a member."""
    self.at()
    return self.compressed and self._marks[0][0] == self.tell()

  def tell(self) -> int:
    """Returns the number of decoded bytes before the next one."""
    return self._base + self._pos

  def mark(self) -> None:
    """Forgets what was read so far."""
    if self._pos >= _OUT or self._pos == len(self._buffer):
      del self._buffer[: self._pos]
      self._base += self._pos
      self._pos = 0

  def back(self, position: int) -> bool:
    """Goes back to what `tell` returned; False if that was forgotten."""
    if position >= self._base:
      self._pos = position - self._base
    elif not self.compressed:
      self._file.seek(position)
      self._buffer.clear()
      self._base, self._pos = position, 0
    return position >= self._base

  def peek(self, size: int, ahead: int = 0) -> bytes:
    """Returns `size` bytes that are `ahead` of the next one; fewer at the end."""
    begin = self._pos + ahead
    while len(self._buffer) < begin + size and self._pump():
      pass
    return bytes(memoryview(self._buffer)[begin : begin + size])

  def read(self, size: int) -> bytes:
    """Returns the next `size` bytes, fewer at the end, and moves behind them."""
    data = self.peek(size)
    self._pos += len(data)
    return data

  def skip(self, size: int, within: bool = False) -> int:
    """Moves over `size` bytes and forgets them; returns how many there were.

    Args:
      size: bytes.
      within: stop where the member ends.
    """
    left = size
    while True:
      step = min(left, len(self._buffer) - self._pos)
      self.at()  # The first of the marks is now that of the current member.
      bounded = within and len(self._marks) > 1
      step = min(step, self._marks[1][0] - self.tell()) if bounded else step
      self._pos += step
      left -= step
      if not left or bounded:
        return size - left
      self.mark()
      if not self._pump():
        return size - left

  def line(self, limit: int) -> bytes | None:
    """Returns the next line with its end; b"" at the end; None if it is longer than `limit`.

    A line that is cut off by a failure is not returned.
    """
    self.mark()
    size = 0
    while (found := self._buffer.find(b"\n", self._pos + size)) < 0:
      size = len(self._buffer) - self._pos
      if size > limit:
        return self._drop_line()
      if not self._pump():
        return b"" if self.failure else self.read(size)
    line = self.read(found + 1 - self._pos)
    return line if len(line) <= limit else None

  def scan(self, pattern: re.Pattern[bytes]) -> bool:
    """Moves to the next match of `pattern` (of up to 4 kB); False, and to the end, if none."""
    while True:
      if found := pattern.search(self._buffer, self._pos):
        self._pos = found.start()
        return True
      self._pos = max(self._pos, len(self._buffer) - _PROBE)
      self.mark()
      if not self._pump():
        self._pos = len(self._buffer)
        return False

  def settle(self) -> None:
    """If all that is known of the current member was read: decodes on, up to its checksum."""
    while self._decoder is not None and self._pos == len(self._buffer) and self._pump():
      pass

  def recover(self, begins: Callable[[bytes], bool]) -> bool:
    """After a failure, moves to the next member in which a record begins.

    Returns:
      False if there is none: the failure stays.
    """
    failure, begin = self.failure, self._member
    for _ in range(_TRIES):
      begin = self._find(begin + 1) if self._codec else -1
      if begin < 0:
        break
      self._restart(begin)
      if begins(self.peek(_PROBE)):
        return True  # It may be broken further on; that shows when it is read.
    self.failure = failure
    self._pos = len(self._buffer)
    return False

  def rest(self) -> Gone:
    """Returns the event of a failure after which nothing is read."""
    assert self.failure
    return Gone(f"byte {self.failure.byte}", f"{self.failure.reason}; {REST}")

  def _drop_line(self) -> None:
    """Moves behind the current line without holding it."""
    while (found := self._buffer.find(b"\n", self._pos)) < 0:
      self._pos = len(self._buffer)
      self.mark()
      if not self._pump():
        return
    self._pos = found + 1

  def _pump(self) -> bool:
    """Decodes a piece more; False if there is none. It may be empty, as the end of a member is."""
    if self.failure:
      return False
    try:
      if self._codec is not None:
        return self._decode(self._codec)
      piece = self._file.read(_PIECE)
    except OSError as e:
      return self._fail(self._raw_at, f"cannot be read: {e.strerror or e}")
    self._buffer += piece
    return bool(piece)

  def _decode(self, codec: Codec) -> bool:
    if not self._raw and (self._decoder is None or self._decoder.hungry):
      self._raw = self._file.read(_PIECE)
    if self._decoder is None:
      return self._begin(codec)
    if not self._raw and self._decoder.hungry:
      return self._fail(self.size, f"the {codec.name} data is cut")
    try:
      self._add(self._decoder.decode(self._raw, _OUT))
    except Undecodable as e:
      self._add(e.output)
      self._fail(self._raw_at + e.taken, f"broken {codec.name} data: {e}")
      return bool(e.output)
    self._raw_at += len(self._raw)
    self._raw = b""
    if self._decoder.eof:
      self._raw = self._decoder.unused
      self._raw_at -= len(self._raw)
      self._decoder = None
    for out, begin in zip(self._out, (self._member, 0), strict=True):
      if self._limits.bomb(out, self._raw_at - begin):
        times = f"{self._limits.max_ratio:g} times (config.reader.max_ratio)"
        reason = f"expands more than {times}, as a decompression bomb does"
        return self._fail(self._raw_at, reason)
    return True

  def _begin(self, codec: Codec) -> bool:
    """Begins a member, behind zeros that may pad the one before."""
    padding = len(self._raw) - len(self._raw.lstrip(b"\0")) if self._raw_at else 0
    self._raw, self._raw_at = self._raw[padding:], self._raw_at + padding
    if not self._raw:
      return bool(padding) or (self.size == 0 and self._fail(0, "the file is empty"))
    while len(self._raw) < len(codec.magic) and (more := self._file.read(_PIECE)):
      self._raw += more
    self._member = self._raw_at
    if not codec.begins(self._raw):
      return self._fail(self._raw_at, f"no {codec.name} data begins here")
    assert self._new
    self._decoder = self._new()
    self._marks.append((self._base + len(self._buffer), self._member))
    self._out[0] = 0
    return True

  def _add(self, data: bytes) -> None:
    self._buffer += data
    self._out = [n + len(data) for n in self._out]

  def _fail(self, byte: int, reason: str) -> bool:
    self.failure = Failure(byte, reason, self._member)
    return False

  def _find(self, begin: int) -> int:
    """Returns where the codec's magic number stands next on disk; -1 if nowhere."""
    magic = self._codec.magic if self._codec else b""
    self._file.seek(begin)
    piece = b""
    while data := self._file.read(_PIECE):
      piece = piece[1 - len(magic) :] + data
      if (found := piece.find(magic)) >= 0:
        return self._file.tell() - len(piece) + found
    return -1

  def _restart(self, byte: int) -> None:
    self._base += len(self._buffer)
    self._buffer.clear()
    self._pos = 0
    self._file.seek(byte)
    self._raw, self._raw_at, self._decoder, self.failure = b"", byte, None, None
