"""From the bytes of an HTTP response to a page: status, transfer and content coding, characters."""

import codecs
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

from llm_jax.data.readers.compression import package
from llm_jax.data.readers.streams import Limits
from llm_jax.errors import UserError

_BLANK = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,4096})?\r?\n")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_HEAD = 2048  # Bytes of a page in which its encoding may be declared.
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# What browsers decode by for what pages say (WHATWG Encoding Standard, 4.2), where Python's codec
# of that name knows fewer characters.
_WIDER = {
  "iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874",
  "tis-620": "cp874", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
  "euc_kr": "cp949", "big5": "big5hkscs", "utf-16": "utf-16-le",
}  # fmt: skip
# Codecs of Python that no page means.
_STRANGE = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7"}
_CODINGS = 4  # Content codings on top of each other, at most.


class Unreadable(Exception):
  """A response that cannot be decoded; the message is the reason."""


class Response(NamedTuple):
  """An HTTP response; names of headers are in lower case, repeated ones joined by commas."""

  status: int
  headers: dict[str, str]
  body: bytes


def parse(block: bytes) -> Response:
  """Takes a response apart.

  Raises:
    Unreadable: if it does not begin with a status line.
  """
  found = _STATUS.match(block)
  if not found:
    raise Unreadable("no HTTP status line")
  blank = _BLANK.search(block)
  head, body = (block[: blank.start()], block[blank.end() :]) if blank else (block, b"")
  headers: dict[str, str] = {}
  for line in head.split(b"\n")[1:]:
    key, colon, value = line.decode("latin-1").partition(":")
    if colon:
      key, value = key.strip().lower(), value.strip()
      headers[key] = f"{headers[key]}, {value}" if headers.get(key) else value
  return Response(int(found[1]), headers, body)


def content(response: Response, limits: Limits) -> bytes:
  """Returns the body without its transfer and content codings.

  Many crawlers store a decoded body below the headers of the coded one: a body that does not begin
  as its coding does is taken as it is.

  Raises:
    Unreadable: if it is cut, broken or over a limit.
  """
  body = response.body
  if "chunked" in response.headers.get("transfer-encoding", "").lower():
    body = _dechunk(body)
  names = response.headers.get("content-encoding", "").replace(",", " ").lower().split()
  if len(names) > _CODINGS:
    raise Unreadable(f"{len(names)} content codings on top of each other")
  for name in reversed(names):
    if name in _CODINGS_BY_NAME and not _decoded(body):
      body = _CODINGS_BY_NAME[name](body, limits)
    elif name not in _CODINGS_BY_NAME and name not in _PLAIN and not _decoded(body):
      raise Unreadable(f'unknown content coding "{name[:40]}"')
  return body


def decode(body: bytes, content_type: str = "") -> str:
  """Decodes a page by its byte order mark, header or own declaration, else as UTF-8 or cp1252.

  A page never fails: a wrong declaration gives way to UTF-8 if that fits, and bytes that fit
  nowhere become U+FFFD, as in a browser.
  """
  for bom, name in _BOMS:
    if body.startswith(bom):
      return body[len(bom) :].decode(name, "replace")
  declared = _CHARSET.search(content_type.encode()) or _CHARSET.search(body[:_HEAD])
  encoding = _codec(declared[1].decode("ascii", "replace")) if declared else ""
  for name in (encoding, "utf-8"):
    try:
      if name:
        return body.decode(name)
    except UnicodeError:
      continue
  if encoding and encoding != "utf-8":
    return body.decode(encoding, "replace")
  # A page in UTF-8 with a few broken bytes, or one in what browsers take an unknown page for?
  text = body.decode("utf-8", "replace")
  broken = text.count("\ufffd")
  fits = sum(c > "\x7f" for c in text) - broken
  return text if fits >= broken else body.decode("cp1252", "replace")


def _codec(label: str) -> str:
  """Returns the codec that is meant by `label`; "" if there is none."""
  try:
    name = codecs.lookup(label).name
  except (LookupError, ValueError):
    return ""
  return "" if name in _STRANGE else _WIDER.get(name, name)


def _decoded(body: bytes) -> bool:
  return body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _dechunk(body: bytes) -> bytes:
  parts, pos = [], 0
  while True:
    head = _CHUNK.match(body, pos)
    if not head:
      if pos == 0:
        return body
      cut = len(body) - pos < 3
      raise Unreadable("the chunked body is cut" if cut else f"a broken chunk at its byte {pos:,}")
    size = int(head[1], 16)
    if not size:
      return b"".join(parts)
    pos = head.end() + size
    if pos > len(body):
      raise Unreadable("the chunked body is cut")
    parts.append(body[head.end() : pos])
    if body.startswith((b"\r\n", b"\n"), pos):
      pos += 2 if body.startswith(b"\r", pos) else 1


def _gunzip(body: bytes, limits: Limits) -> bytes:
  return _inflate(body, 31, limits) if body.startswith(b"\x1f\x8b") else body


def _deflate(body: bytes, limits: Limits) -> bytes:
  """RFC 9110 says zlib's format; some servers send the bare one."""
  try:
    return _inflate(body, 15, limits)
  except Unreadable as e:
    if e.args[0] != _BROKEN:
      raise
    return _inflate(body, -15, limits)


_BROKEN = "broken compressed body"


def _inflate(body: bytes, bits: int, limits: Limits) -> bytes:
  decoder = zlib.decompressobj(bits)
  try:
    out = decoder.decompress(body, limits.max_bytes + 1)
  except zlib.error as e:
    raise Unreadable(_BROKEN) from e
  return _checked(out, len(body), decoder.eof, limits)


def _brotli(body: bytes, limits: Limits) -> bytes:
  brotli = _optional("brotli", "br")
  decoder = brotli.Decompressor()
  out = bytearray()
  try:
    out += decoder.process(body, output_buffer_limit=limits.max_bytes + 1)
    while not decoder.can_accept_more_data() and len(out) <= limits.max_bytes:
      more = decoder.process(b"", output_buffer_limit=limits.max_bytes + 1 - len(out))
      if not more:
        break
      out += more
  except brotli.error as e:
    raise Unreadable(_BROKEN) from e
  return _checked(bytes(out), len(body), decoder.is_finished(), limits)


def _unzstd(body: bytes, limits: Limits) -> bytes:
  zstandard = _optional("zstandard", "zstd")
  if not body.startswith(b"\x28\xb5\x2f\xfd"):
    return body
  decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
  out = bytearray()
  try:
    for pos in range(0, len(body), 256):
      out += decoder.decompress(body[pos : pos + 256])
      if decoder.eof or len(out) > limits.max_bytes:
        break
  except zstandard.ZstdError as e:
    raise Unreadable(_BROKEN) from e
  return _checked(bytes(out), len(body), decoder.eof, limits)


def _checked(out: bytes, taken: int, ended: bool, limits: Limits) -> bytes:
  if len(out) > limits.max_bytes:
    raise Unreadable(
      f"its body is over the cap of {limits.max_bytes:,} bytes (config.reader.max_bytes)"
    )
  if limits.bomb(len(out), taken):
    raise Unreadable(
      f"its body expands more than {limits.max_ratio:g} times (config.reader.max_ratio)"
    )
  if not ended:
    raise Unreadable("the compressed body is cut")
  return out


def _optional(name: str, coding: str):
  try:
    return package(name, f"a body of coding {coding}")
  except UserError as e:
    raise Unreadable(str(e)) from e


_PLAIN = {"identity", "none", "utf-8", "binary", "8bit", "7bit"}
_CODINGS_BY_NAME: dict[str, Callable[[bytes, Limits], bytes]] = {
  "gzip": _gunzip, "x-gzip": _gunzip, "deflate": _deflate, "br": _brotli, "zstd": _unzstd,
}  # fmt: skip
