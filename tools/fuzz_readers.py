"""Breaks inputs of the readers at random and checks that every record is read, lost or skipped.

python -m tools.fuzz_readers --runs=10000 --seed=0
"""

import argparse
import bz2
import collections
import dataclasses
import gzip
import json
import lzma
import pathlib
import random
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator

from llm_jax.data import crawl
from llm_jax.data.readers.streams import REST
from llm_jax.errors import UserError

HOW = ("flip", "flips", "cut", "delete", "insert", "repeat", "zeros", "swap")
_PLACE = re.compile(r"(byte|line|row|rows) \d+( to \d+)?")
_SLOW = 5.0  # Seconds from which a run hangs.
_CAP = 1 << 20  # Bytes of a record.
_OPTIONS = crawl.Options(max_bytes=_CAP)


@dataclasses.dataclass(frozen=True)
class Input:
  """A file as it should be.

  Attributes:
    name: its name says its format.
    data: its bytes.
    ends: bytes on disk before the end of each record, if every record can be found on its own.
    bodies: of the records that are read.
    count: records, also those that are skipped.
  """

  name: str
  data: bytes
  ends: tuple[int, ...]
  bodies: frozenset[str]
  count: int


@dataclasses.dataclass
class Outcome:
  """What came of a broken file.

  Attributes:
    read: records.
    lost: records or rests of a file.
    skipped: records.
    changed: records read that are not as they were: without a checksum nobody can know.
    missing: records that are not read as they were.
    seconds: of two passes.
    problem: what is wrong; "" if nothing is.
  """

  read: int = 0
  lost: int = 0
  skipped: int = 0
  changed: int = 0
  missing: int = 0
  seconds: float = 0.0
  problem: str = ""


def main(argv: list[str] | None = None) -> int:
  """Prints a Markdown table, and each problem; returns 1 if there is one."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=int, default=10_000)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args(argv)
  rows: dict[str, list[Outcome]] = collections.defaultdict(list)
  problems = []
  with tempfile.TemporaryDirectory() as folder:
    for number, what, how, outcome in run(options.runs, options.seed, pathlib.Path(folder)):
      rows[what].append(outcome)
      if outcome.problem:
        problems.append(f"run {number}: {what}, {how}: {outcome.problem}")
  print("| input | runs | read | changed | lost | skipped | worst ms | problems |")
  print("|---|" + "--:|" * 7)
  for what, found in sorted(rows.items()):
    sums = [sum(getattr(o, key) for o in found) for key in ("read", "changed", "lost", "skipped")]
    cells = [len(found), *sums, round(1000 * max(o.seconds for o in found))]
    cells.append(sum(bool(o.problem) for o in found))
    print(f"| {what} | " + " | ".join(f"{n:,}" for n in cells) + " |")
  print("\n".join(problems[:50]))
  return int(bool(problems))


def run(runs: int, seed: int, folder: pathlib.Path) -> Iterator[tuple[int, str, str, Outcome]]:
  """Yields (number, input, how it was broken, outcome); the same ones for the same seed."""
  known = inputs()
  for number in range(runs):
    rng = random.Random(f"{seed}:{number}")
    given = known[number % len(known)]
    how = HOW[number // len(known) % len(HOW)]
    yield number, given.name, how, check(given, how, broken(given.data, how, rng), folder)


def broken(data: bytes, how: str, rng: random.Random) -> bytes:
  """Returns `data` with one accident of the kind `how`."""
  out = bytearray(data)
  begin = rng.randrange(len(data))
  end = min(begin + rng.choice((1, 4, 30, 300, 3000)), len(data))
  if how in ("flip", "flips"):
    for _ in range(1 if how == "flip" else rng.randrange(2, 20)):
      out[rng.randrange(len(out))] ^= rng.randrange(1, 256)
  elif how == "cut":
    del out[begin:]
  elif how == "delete":
    del out[begin:end]
  elif how == "insert":
    piece = rng.choice((b"\n", b"\r\n\r\n", b"WARC/1.0\r\n", b"\x1f\x8b\x08\0", b"", b"{"))
    out[begin:begin] = piece or rng.randbytes(rng.randrange(1, 100))
  elif how == "repeat":
    out[begin:begin] = out[begin:end] * rng.choice((1, 1, 5))
  elif how == "zeros":
    out[begin:end] = bytes(end - begin)
  else:
    place = rng.randrange(len(data))
    piece = out[begin:end]
    del out[begin:end]
    out[place:place] = piece
  return bytes(out)


def check(given: Input, how: str, data: bytes, folder: pathlib.Path) -> Outcome:
  """Reads a broken file twice: with everything lost recorded, and up to the first error."""
  path = folder / given.name
  path.write_bytes(data)
  out = Outcome()
  lost: list[crawl.Lost] = []
  kinds: list[str] = []
  begin = time.perf_counter()
  try:
    raws = list(crawl.read(path, lost=lost.append, skipped=kinds.append, options=_OPTIONS))
    error = _error(path)
    for raw in raws if "html" in given.name else []:
      for extractor in ("blocks", "trafilatura"):
        crawl.extract(raw.body, extractor)
  except Exception as e:
    out.problem = f"{type(e).__name__}: {e}"
    return out
  out.seconds = time.perf_counter() - begin
  bodies = {raw.body for raw in raws}
  out.read, out.lost, out.skipped = len(raws), len(lost), len(kinds)
  out.changed = sum(raw.body not in given.bodies for raw in raws)
  out.missing = len(given.bodies - bodies)
  rest = [item.reason.endswith(REST) for item in lost]
  conditions = {
    "hangs": out.seconds < _SLOW,
    "an error without a loss, or none with one": bool(error) == bool(lost),
    "a file that is not named": not error or given.name in error,
    "an error of two lines": "\n" not in error,
    "a loss without a place": all(_PLACE.fullmatch(item.where) for item in lost),
    "a loss without a reason": all(item.reason for item in lost),
    "something after the rest was lost": not any(rest[:-1]),
    "a record is missing without a trace": _traced(given, how, data, out),
    "the numbers do not add up": _adds_up(given, how, data, out, any(rest)),
  }
  out.problem = ", ".join(what for what, good in conditions.items() if not good)
  return out


def _error(path: pathlib.Path) -> str:
  try:
    for _ in crawl.read(path, options=_OPTIONS):
      pass
  except UserError as e:
    return str(e)
  return ""


def _traced(given: Input, how: str, data: bytes, out: Outcome) -> bool:
  """A record may be gone without a trace only if all of its bytes may be."""
  skipped = out.skipped > given.count - len(given.bodies)  # It became another kind.
  return not out.missing or bool(out.lost or out.changed or skipped) or len(data) < len(given.data)


def _adds_up(given: Input, how: str, data: bytes, out: Outcome, rest: bool) -> bool:
  """Compares the numbers with what an independent look at the bytes says."""
  total = out.read + out.lost + out.skipped
  if ".jsonl" in given.name:
    plain, whole = _decoded(given.name, data)
    lines = [line for line in plain.split(b"\n") if line.strip()]
    if whole:
      return total == len(lines) + rest  # The library's functions ignore bytes behind the end.
    return rest and out.lost >= 1 and total <= len(lines) + 2
  if ".html" in given.name:
    return total == 1
  if ".arc" in given.name:  # Its records end in one newline: two may go where one is broken.
    return how != "flip" or out.missing <= 2
  if how == "flip":
    return total == given.count and out.missing <= 1
  if how == "cut":
    complete = sum(end <= len(data) for end in given.ends)
    return total in (complete, complete + 1) and out.read + out.skipped >= complete
  if how in ("insert", "zeros", "delete", "repeat"):
    touched = 3000 // min(b - a for a, b in zip((0, *given.ends), given.ends, strict=False)) + 2
    return out.missing <= touched
  return True


def _decoded(name: str, data: bytes) -> tuple[bytes, bool]:
  """Returns what can be decoded, and whether that is all of it."""
  decoders: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}
  decoders[".xz"] = lzma.decompress
  decoder = decoders.get(pathlib.Path(name).suffix)
  if decoder is None:
    return data, True
  try:
    return decoder(data), bool(data)
  except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
    return _prefix(name, data), False


def _prefix(name: str, data: bytes) -> bytes:
  """Returns at least what comes before the place where decoding fails."""
  makers = {".gz": lambda: zlib.decompressobj(31), ".bz2": bz2.BZ2Decompressor}
  decoder = makers.get(pathlib.Path(name).suffix, lzma.LZMADecompressor)()
  out = b""
  try:
    for i in range(len(data)):
      out += decoder.decompress(data[i : i + 1])
  except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
    pass
  return out


def inputs() -> list[Input]:
  """Returns a whole file of each format, with every kind of record that matters."""
  blocks, bodies = _blocks()
  warc = [_warc(*block) for block in blocks]
  members = [gzip.compress(record, mtime=0) for record in warc]
  arc = [_arc(i, block) for i, (kind, _, block) in enumerate(blocks) if kind == "response"]
  lines = [json.dumps({"id": i, "text": f"line {i} " * (i + 1), "url": "u"}) for i in range(20)]
  texts = frozenset(json.loads(line)["text"] for line in lines)
  plain = "".join(line + "\n" for line in lines).encode()
  pages = frozenset(body for body in bodies if body.startswith("<"))
  page = max(pages, key=len).encode()
  jsonl = {"": plain, ".gz": gzip.compress(plain, mtime=0), ".bz2": bz2.compress(plain)}
  jsonl[".xz"] = lzma.compress(plain)
  found = [Input(f"a.jsonl{end}", d, (), texts, len(lines)) for end, d in jsonl.items()]
  found += [
    Input("a.warc", b"".join(warc), _ends(warc), bodies, len(warc)),
    Input("a.warc.gz", b"".join(members), _ends(members), bodies, len(warc)),
    Input("a.arc", b"".join(arc), (), pages, len(arc)),
    Input("a.html", page, (), frozenset((page.decode(),)), 1),
    Input("a.html.gz", gzip.compress(page, mtime=0), (), frozenset((page.decode(),)), 1),
  ]
  return found


def _blocks() -> tuple[list[tuple[str, str, bytes]], frozenset[str]]:
  """Returns (type, content type, block) of records, and the bodies of those that are pages."""
  blocks, bodies = [("warcinfo", "application/warc-fields", b"software: fuzz\r\n")], []
  for i in range(6):
    body = f"<html><body><p>page {i}</p>{'<p>some words</p>' * 20 * i}</body></html>"
    bodies.append(body)
    sent, extra = body.encode(), ""
    if i % 3 == 1:
      sent, extra = gzip.compress(sent, mtime=0), "Content-Encoding: gzip\r\n"
    if i % 3 == 2:
      half = len(sent) // 2
      parts = (sent[:half], sent[half:], b"")
      sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
      extra = "Transfer-Encoding: chunked\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{extra}\r\n".encode()
    blocks.append(("request", "application/http", b"GET / HTTP/1.1\r\n\r\n"))
    blocks.append(("response", "application/http", head + sent))
  text = "the text of a page, as a crawl hands it out\n" * 5
  blocks.append(("conversion", "text/plain", text.encode()))
  return blocks, frozenset([*bodies, text])


def _warc(kind: str, content_type: str, block: bytes) -> bytes:
  digest = zlib.crc32(block)
  head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a/{digest}\r\n"
  head += f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
  return head.encode() + block + b"\r\n\r\n"


def _arc(number: int, block: bytes) -> bytes:
  head = f"http://a/{number} 10.0.0.1 20200101000000 text/html {len(block)}\n"
  return head.encode() + block + b"\n"


def _ends(parts: list[bytes]) -> tuple[int, ...]:
  ends, total = [], 0
  for part in parts:
    total += len(part)
    ends.append(total)
  return tuple(ends)


if __name__ == "__main__":
  sys.exit(main())
