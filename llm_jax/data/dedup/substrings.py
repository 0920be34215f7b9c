"""Exact repeats: every stretch of at least `tokens` words that stands in a corpus more than once.

Lee et al. 2021 (arXiv:2107.06499, "ExactSubstr") find them with a suffix array of the corpus. Here:
a word is in a repeated stretch of at least k words if and only if it is in a repeated window of
exactly k. So all windows are hashed, sorting finds the hashes that occur twice, and the words
themselves, not the hashes, decide. A part is a list of texts, some MB:

    windows    part -> hashes of its windows, sorted                          map over the parts
    repeated   all parts -> which windows occur twice, and where              reduce, by hash range
    quote      part -> the words of those windows that others are compared to map over the parts
    spans      part -> what is repeated of each text                          map over the parts
    cut        text, spans -> text

Canonical order: parts, their texts, the words in a text. A word is what `words.split` says it is,
case and all; what stands between words (spaces, punctuation) is not compared. No window reaches
from one text into the next.

**What is repeated.** With `keep_first`, of every window all occurrences but the first; where one
overlaps its own first ("ha ha ha ..."), only what lies behind that, so that k words stay. Without,
all occurrences. A word that goes has its like in what stays, though perhaps not with the same k
words around it: their first occurrence can overlap a repeat of another. After a cut with
`keep_first`, a window stands twice only if it reaches over a seam, where new neighbours met.

W words of a part, M windows, R repeated ones.
"""

import bisect
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.data import words
from llm_jax.errors import UserError

TOKENS = 50  # Words of a window: the length that Lee et al. and RefinedWeb (2306.01116) use.

WINDOW = np.dtype([("hash", "<u8"), ("word", "<u4")])
REPEAT = np.dtype([(name, "<u4") for name in ("part", "word", "rank", "other_part", "other_word")])

_CHARS = 4_000_000  # Characters of a part that `find` makes.
_GROUP = np.uint64(0x9FB21C651E98DF25)  # Odd, so that multiplying loses nothing.
_LOW = np.uint64(2**32 - 1)

Path = str | os.PathLike[str]
Span = tuple[int, int]


class Quotes(NamedTuple):
  """Some of the words of a part, Q of them in B bytes, for other parts to compare theirs to.

  Attributes:
    words: [Q] int64, their numbers in the part, ascending.
    ends: [Q + 1] int64, 0 and where each ends in `text`.
    text: [B] uint8, UTF-8, a space after each word.
  """

  words: np.ndarray
  ends: np.ndarray
  text: np.ndarray


def windows(texts: Sequence[str], tokens: int = TOKENS) -> np.ndarray:
  """Returns the windows of a part [M] WINDOW: hash and first word, in the order of both.

  It takes 12 bytes a word to keep, some 90 while it is made. `np.save` it: `repeated` reads files.

  Raises:
    ValueError: if `tokens` < 1, or the part has 2^32 words.
  """
  if tokens < 1:
    raise ValueError(f"tokens must be at least 1, got {tokens}")
  found = words.split(texts)
  if len(found.hashes) >= 2**32:
    raise ValueError(f"a part of {len(found.hashes)} words is too large: make parts below 2^32")
  hashes = _rolling(found.hashes, tokens)
  end = np.repeat(found.bounds[1:], np.diff(found.bounds))[: len(hashes)]  # Of a window's text.
  at = np.flatnonzero(np.arange(tokens, len(hashes) + tokens) <= end)
  order = np.argsort(hashes[at], kind="stable")
  rows = np.empty(len(at), WINDOW)
  rows["word"] = at[order]
  rows["hash"] = hashes[at[order]]
  return rows


def repeated(
  parts: Sequence[np.ndarray | Path], partition: int = 0, partitions: int = 1
) -> np.ndarray:
  """Returns the windows [R] REPEAT of all parts whose hash occurs more than once.

  A row is an occurrence: where it is (part, word), how many stand before it (rank), and where the
  one is that its words must equal: the first occurrence or, for the first, the second. Rows are in
  canonical order. All partitions together, in any order, give what one gives.

  Memory: 11 bytes a window of the partition, and 80 for each that is repeated.

  Args:
    parts: what `windows` returned, in canonical order: arrays or .npy files of them.
    partition: which of equal ranges of the hash to look at, from 0.
    partitions: how many ranges there are.

  Raises:
    ValueError: if there is no such partition.
    UserError: if a file holds something else.
  """
  if not 0 <= partition < partitions:
    raise ValueError(f"partition must be in [0, {partitions}), got {partition}")
  low, high = (-(-(p << 64) // partitions) for p in (partition, partition + 1))
  limits = [_between(_opened(part, WINDOW)["hash"], low, high) for part in parts]
  hashes = np.empty(sum(b - a for a, b in limits), np.uint64)
  filled = 0
  for part, (a, b) in zip(parts, limits, strict=True):
    hashes[filled : filled + b - a] = _opened(part, WINDOW)["hash"][a:b]
    filled += b - a
  hashes.sort()
  same = hashes[1:] == hashes[:-1]
  same[1:] &= ~same[:-1]  # The second of a hash, not the third.
  twice = hashes[1:][same]
  del hashes, same
  keys, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
  for number, (part, (a, b)) in enumerate(zip(parts, limits, strict=True)):
    rows = _opened(part, WINDOW)[a:b]
    at = np.searchsorted(twice, rows["hash"])
    hit = at < len(twice)
    hit[hit] = twice[at[hit]] == rows["hash"][hit]
    keys.append(rows["hash"][hit])
    places.append(rows["word"][hit] | np.uint64(number << 32))
  return _ranked(np.concatenate(keys), np.concatenate(places))


def of_part(repeats: Sequence[np.ndarray | Path], part: int) -> np.ndarray:
  """Returns the rows of one part, in the order of its words.

  Args:
    repeats: what `repeated` returned for each partition: arrays or .npy files of them.
    part: number of the part, from 0.
  """
  found = [np.zeros(0, REPEAT)]
  for source in repeats:
    rows = _opened(source, REPEAT)
    a, b = _between(rows["part"], part, part + 1)
    found.append(rows[a:b])
  rows = np.concatenate(found)
  return rows[np.argsort(rows["word"])]


def quote(
  texts: Sequence[str], rows: np.ndarray, tokens: int = TOKENS, keep_first: bool = True
) -> Quotes:
  """Returns the words of a part that `spans` asks for; the arguments are as there."""
  asked = rows["word"][rows["rank"] < (1 if keep_first else 2)].astype(np.int64)
  if not len(asked):
    return Quotes(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.uint8))
  found, joined = words.split(texts), "\n".join(texts)
  numbers = np.flatnonzero(_covered(asked, asked + tokens, len(found.hashes)))
  quoted = [f"{word} ".encode() for word in _read(found, joined, numbers)]
  ends = np.cumsum([0, *map(len, quoted)])
  return Quotes(numbers, ends, np.frombuffer(b"".join(quoted), np.uint8))


def spans(
  texts: Sequence[str],
  rows: np.ndarray,
  quotes: Callable[[int], Quotes],
  tokens: int = TOKENS,
  keep_first: bool = True,
) -> list[list[Span]]:
  """Returns what is repeated of each text: (start, end) in characters, apart and ascending.

  A span starts with a word and ends with one. Rows whose words differ from those that they should
  equal (two windows of one hash) are passed over; so is, then, a true copy of such a window
  elsewhere: a collision can save a repeat, never delete a text.

  Args:
    texts: of the part, as `windows` got them.
    rows: [R] REPEAT, `of_part` of this part.
    quotes: gives the `quote` of any part by its number; each is asked for once.
    tokens: as for `windows`.
    keep_first: the first occurrence stays.
  """
  rows = rows[rows["rank"] > 0] if keep_first else rows
  if not len(rows):
    return [[] for _ in texts]
  found = words.split(texts)
  read = functools.partial(_read, found, "\n".join(texts))
  rows = rows[_verified(read, rows, quotes, tokens)]
  begin = rows["word"].astype(np.int64)
  end = begin + tokens
  if keep_first and len(rows):
    own_part = rows["other_part"] == rows["part"]
    begin = np.where(own_part, np.maximum(begin, rows["other_word"] + np.int64(tokens)), begin)
  _, starts, ends, bounds, offsets = found
  out: list[list[Span]] = [[] for _ in texts]
  for a, b in _runs(_covered(begin, end, len(starts)), bounds):
    text = int(np.searchsorted(bounds, a, side="right")) - 1
    out[text].append((int(starts[a] - offsets[text]), int(ends[b - 1] - offsets[text])))
  return out


def find(texts: Sequence[str], tokens: int = TOKENS, keep_first: bool = True) -> list[list[Span]]:
  """Returns what is repeated of each of `texts`, as `spans` does; all in memory.

  Raises:
    ValueError: if `tokens` < 1.
  """
  sized = zip(texts, itertools.accumulate(map(len, texts)), strict=True)
  groups = itertools.groupby(sized, key=lambda pair: pair[1] // _CHARS)
  parts = [[text for text, _ in group] for _, group in groups]
  rows = repeated([windows(part, tokens) for part in parts])
  mine = [of_part([rows], number) for number in range(len(parts))]
  quoted = [quote(part, own, tokens, keep_first) for part, own in zip(parts, mine, strict=True)]
  return [
    found
    for part, own in zip(parts, mine, strict=True)
    for found in spans(part, own, quoted.__getitem__, tokens, keep_first)
  ]


def share(text: str, found: Sequence[Span]) -> float:
  """Returns the fraction of the characters of `text` in the spans `found`: to drop, not to cut."""
  return sum(end - start for start, end in found) / max(len(text), 1)


def cut(text: str, found: Sequence[Span]) -> str:
  """Returns `text` without the spans `found`; the rest is as it was, but for white space at seams.

  With a stretch goes the punctuation inside it; what follows it, up to white space or a word (a
  full stop, a closing quote); what precedes it, from white space on (an opening bracket); and what
  else is on its first line before it or on its last line after it, if no word is (a bullet, a
  heading's marks). White space around a cut becomes one separator, the strongest that was there:
  blank line, newline, space, none. If no word is left, nothing is.

  Args:
    text: any.
    found: spans of it, apart and ascending, each from the start of a word to the end of one.
  """
  if not found:
    return text
  pieces, done = [], 0
  for start, end in found:
    pieces.append(text[done : _reach(text, start, -1)])
    done = _reach(text, end, 1)
  pieces.append(text[done:])
  if not any(_in_word(c) for piece in pieces for c in piece):
    return ""
  out = [pieces[0].rstrip()]
  for left, right in itertools.pairwise(pieces):
    out += [_separator(left, right), right.strip()]
  out[-1] = pieces[-1].lstrip()
  return "".join(out)


def _verified(read: Callable, rows: np.ndarray, quotes: Callable, tokens: int) -> np.ndarray:
  """Returns [R] bool: the words of the window are those that they should equal.

  Windows that follow each other, and whose others do too, are compared in one piece.
  """
  order = np.argsort(rows["other_part"], kind="stable")
  part, word, other = (
    rows[name][order].astype(np.int64) for name in ("other_part", "word", "other_word")
  )
  follows = (np.diff(part) == 0) & (np.diff(word) == 1) & (np.diff(other) == 1)
  cuts = np.flatnonzero(np.concatenate([[True], ~follows, [True]])).tolist()
  same = np.ones(len(rows), bool)
  asked, theirs = -1, None
  for a, b in itertools.pairwise(cuts):
    if theirs is None or part[a] != asked:
      asked = int(part[a])
      theirs = quotes(asked)
    count = b - a + tokens - 1
    mine = read(slice(word[a], word[a] + count))
    yours = _quoted(theirs, int(other[a]), count)
    if mine != yours:
      wrong = np.cumsum([0, *(x != y for x, y in zip(mine, yours, strict=True))])
      same[a:b] = wrong[tokens:] == wrong[:-tokens]
  return same[np.argsort(order)]


def _read(found: words.Words, joined: str, numbers: slice | np.ndarray) -> list[str]:
  """Returns the words of these numbers, of texts joined by newlines."""
  ends = zip(found.starts[numbers].tolist(), found.ends[numbers].tolist(), strict=True)
  return [joined[a:b] for a, b in ends]


def _quoted(quotes: Quotes, first: int, count: int) -> list[str]:
  at = int(np.searchsorted(quotes.words, first))
  if not np.array_equal(quotes.words[at : at + count], np.arange(first, first + count)):
    raise ValueError(f"words {first} to {first + count} are not quoted: are these other repeats?")
  return bytes(quotes.text[quotes.ends[at] : quotes.ends[at + count]]).decode().split(" ")[:-1]


def _rolling(hashes: np.ndarray, n: int) -> np.ndarray:
  """Returns a hash [max(W - n + 1, 0)] of every n words in a row, in 2 log2 n passes at most.

  The hash of 2m words is that of two hashes of m, the hash of m + 1 that of m and of one more.
  """
  if len(hashes) < n:
    return hashes[:0]
  out, size = hashes, 1
  for bit in f"{n:b}"[1:]:
    out = words.mix(out[:-size] * _GROUP + out[size:])
    size *= 2
    if bit == "1":
      out = words.mix(out[:-1] * _GROUP + hashes[size:])
      size += 1
  return out


def _ranked(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Returns rows [R] REPEAT of hashes [R], each there twice, at places [R] part * 2^32 + word."""
  order = np.lexsort((places, keys))
  keys, places = keys[order], places[order]
  new = np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])
  starts = np.flatnonzero(new)
  start = starts[np.cumsum(new) - 1]
  other = places[start]
  other[starts] = places[starts + 1]
  rank = np.arange(len(keys)) - start
  order = np.argsort(places)
  rows = np.empty(len(keys), REPEAT)
  rows["part"], rows["word"] = places[order] >> np.uint64(32), places[order] & _LOW
  rows["other_part"], rows["other_word"] = other[order] >> np.uint64(32), other[order] & _LOW
  rows["rank"] = rank[order]
  return rows


def _opened(source: np.ndarray | Path, kind: np.dtype) -> np.ndarray:
  """Returns the rows of an array or a file of them, mapped, not read."""
  if isinstance(source, np.ndarray):
    return source
  try:
    rows = np.load(source, mmap_mode="r").view(np.ndarray)
    if rows.dtype != kind:
      raise ValueError(f"it holds {rows.dtype}")
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"cannot read {source} ({error}): remove it and make it again") from error
  return rows


def _between(keys: np.ndarray, low: int, high: int) -> tuple[int, int]:
  """Returns the range of the sorted `keys` in [low, high); a mapped file is probed, not read."""
  first = bisect.bisect_left(keys, low, key=int)
  return first, bisect.bisect_left(keys, high, lo=first, key=int)


def _covered(begin: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
  """Returns [size] bool: in one of the ranges [begin, end)."""
  change = np.bincount(begin, minlength=size + 1) - np.bincount(end, minlength=size + 1)
  return np.cumsum(change[:size]) > 0


def _runs(covered: np.ndarray, bounds: np.ndarray) -> Iterator[tuple[int, int]]:
  """Yields the ranges that are `covered` [W], cut where they cross one of `bounds`."""
  first, last = covered.copy(), covered.copy()
  first[1:] &= ~covered[:-1]
  last[:-1] &= ~covered[1:]
  inner = bounds[(bounds > 0) & (bounds < len(covered))]
  first[inner] = covered[inner]
  last[inner - 1] = covered[inner - 1]
  yield from zip(np.flatnonzero(first).tolist(), (np.flatnonzero(last) + 1).tolist(), strict=True)


def _reach(text: str, at: int, step: int) -> int:
  """Returns where a cut ends whose first (step -1) or last (step 1) word ends at `at`."""

  def ahead(i: int) -> str:
    i += min(step, 0)
    return text[i] if 0 <= i < len(text) else "\n"

  line = glued = at
  while ahead(line) != "\n" and not _in_word(ahead(line)):
    line += step
  if ahead(line) == "\n":
    return line
  while not (ahead(glued).isspace() or _in_word(ahead(glued))):
    glued += step
  return glued if step > 0 or ahead(glued).isspace() else at


def _separator(left: str, right: str) -> str:
  """Returns what to put between two pieces of a text whose white space at the seam goes."""
  before, after = left[len(left.rstrip()) :], right[: len(right) - len(right.lstrip())]
  if not right.strip():
    return "\n" if "\n" in right else ""  # A text that ended with a newline still does.
  indent = after.rpartition("\n")[2] if "\n" in after else ""
  if not left.strip():
    return indent
  lines = max(before.count("\n"), after.count("\n"))
  if lines:
    return "\n" * min(lines, 2) + indent
  met = words.split([left[-1] + right[0]])  # Would they become one word?
  return " " if before or after or 2 in met.ends - met.starts else ""


@functools.lru_cache(1 << 12)
def _in_word(character: str) -> bool:
  return len(words.split([character]).hashes) > 0
