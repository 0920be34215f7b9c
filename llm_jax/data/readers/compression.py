"""Decoders of .gz, .bz2, .xz and .zst that keep what they decoded before an error."""

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from llm_jax.errors import UserError

_MEMORY = 256 << 20  # Bytes of dictionary that an .xz or .zst file may ask for.
_SLICE = 256  # Bytes fed at once to decoders without a limit: 4 bytes of zstd may hold 128 kB.


class Undecodable(Exception):
  """Broken data.

  Attributes:
    output: what was decoded before.
    taken: bytes of the input before the place where it showed.
  """

  def __init__(self, reason: str, output: bytes, taken: int):
    super().__init__(reason)
    self.output = output
    self.taken = taken


class Decoder(Protocol):
  """Decodes one member.

  Attributes:
    hungry: nothing more comes without more input.
    eof: the member has ended, and its checksum is right.
    unused: input behind the end of the member.
  """

  hungry: bool
  eof: bool
  unused: bytes

  def decode(self, data: bytes, limit: int) -> bytes:
    """Takes all of `data`; returns about `limit` bytes at most. Raises `Undecodable`."""
    ...


class Codec(NamedTuple):
  """A way to compress.

  Attributes:
    name: as a user knows it.
    magic: a member begins with it.
    load: imports what is needed and returns what makes decoders.
  """

  name: str
  magic: bytes
  load: Callable[[], Callable[[], Decoder]]

  def begins(self, data: bytes) -> bool:
    """Tells whether a member, or a frame that zstd skips, begins with `data`."""
    skipped = self.name == "zstd" and data[1:4] == b"\x2a\x4d\x18" and data[0] >> 4 == 5
    return data.startswith(self.magic) or skipped


def package(name: str, what: str) -> Any:
  """Imports an optional package.

  Raises:
    UserError: if it is not installed; says for what it is needed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as e:
    top = name.split(".")[0]
    raise UserError(f'{what}: needs the package "{top}"; pip install {top}') from e


class _Gzip:
  """A gzip member."""

  def __init__(self):
    self._object = zlib.decompressobj(31)
    self.hungry = True
    self.eof = False
    self.unused = b""

  def decode(self, data: bytes, limit: int) -> bytes:
    old = self._object.unconsumed_tail
    before = self._object.copy()
    try:
      out = self._object.decompress(old + data, limit)
    except zlib.error as e:
      output, taken = _replay(before, old + data)
      raise Undecodable(_reason(e), output, max(taken - len(old), 0)) from e
    self.hungry = not self._object.unconsumed_tail and len(out) < limit
    self.eof, self.unused = self._object.eof, self._object.unused_data
    return out


class _Sliced:
  """A member of another kind, fed in slices: their decoders have no limit, or lose output."""

  def __init__(self, decoder: Any, errors: tuple[type[Exception], ...]):
    self._object = decoder
    self._errors = errors
    self._left = b""
    self.hungry = True
    self.eof = False
    self.unused = b""

  def decode(self, data: bytes, limit: int) -> bytes:
    old = len(self._left)
    data = self._left + data
    out = bytearray()
    pos = 0
    while pos < len(data) and len(out) < limit and not self._object.eof:
      try:
        out += self._object.decompress(data[pos : pos + _SLICE])
      except self._errors as e:
        raise Undecodable(_reason(e), bytes(out), max(pos - old, 0)) from e
      pos += _SLICE
    self._left = data[pos:]
    self.hungry = not self._left
    self.eof = self._object.eof
    if self.eof:
      self.unused = self._object.unused_data + self._left
    return bytes(out)


def _replay(decoder: Any, data: bytes) -> tuple[bytes, int]:
  """Decodes byte by byte until the error comes again; returns the output and how many went in."""
  out = bytearray()
  for i in range(len(data)):
    try:
      out += decoder.decompress(data[i : i + 1])
    except zlib.error:
      return bytes(out), i
  return bytes(out), len(data)


def _reason(error: Exception) -> str:
  return (str(error) or type(error).__name__).strip().split("\n")[0]


def _gzip() -> Callable[[], Decoder]:
  return _Gzip


def _bzip2() -> Callable[[], Decoder]:
  return lambda: _Sliced(bz2.BZ2Decompressor(), (OSError, ValueError))


def _xz() -> Callable[[], Decoder]:
  errors = (lzma.LZMAError, MemoryError)
  return lambda: _Sliced(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY), errors)


def _zstd() -> Callable[[], Decoder]:
  zstandard = package("zstandard", "files that end in .zst")
  return lambda: _Sliced(
    zstandard.ZstdDecompressor(max_window_size=_MEMORY).decompressobj(), (zstandard.ZstdError,)
  )


CODECS = {
  ".gz": Codec("gzip", b"\x1f\x8b\x08", _gzip),
  ".bz2": Codec("bzip2", b"BZh", _bzip2),
  ".xz": Codec("xz", b"\xfd7zXZ\0", _xz),
  ".zst": Codec("zstd", b"\x28\xb5\x2f\xfd", _zstd),
}
