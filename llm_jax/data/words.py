"""Words of many texts at once, as hashes: what duplicates and repetition are counted on.

N texts, W words of all of them, C characters. No Python object is made per word: a page costs
about ten microseconds, where a regular expression and a hash per word cost three hundred.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 4096  # Characters of a word; a longer run is cut into words of so many.

_CHARS = 1_000_000  # Of the texts that go together.
_BLOCK = 1 << 18  # Characters hashed at once.
# Scripts that are written without spaces count a character as a word.
_UNSPACED = (
  (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF),
  (0xF900, 0xFAFF),
)  # fmt: skip
_OUT, _IN, _ALONE = 0, 1, 2  # What a character is: between words, part of one, one by itself.
_BASE = np.uint64(0xD6E8FEB86659FD93)  # Odd: it has an inverse modulo 2^64.
_GROUP = np.uint64(0x9E3779B97F4A7C15)  # Odd, so that multiplying loses nothing.


class Words(NamedTuple):
  """The words of N texts, in order.

  Attributes:
    hashes: [W] uint64; equal words have equal ones, in any text and any call.
    starts: [W] int64, where each word starts, in characters of the texts joined by one newline.
    ends: [W] int64, where it ends.
    bounds: [N + 1] int64: text n has the words bounds[n] to bounds[n + 1].
    offsets: [N] int64, where each text starts in the joined ones.
  """

  hashes: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  bounds: np.ndarray
  offsets: np.ndarray


def split(texts: Sequence[str], spaced: bool = False) -> Words:
  """Returns the words of `texts`.

  Args:
    texts: any strings; lone surrogates count as separators.
    spaced: a word is what stands between white space, as for `str.split`; else it is a run of
      letters, digits and underscores, or one character of a script that is written without spaces.
  """
  joined = "\n".join(texts)
  if joined.isascii():
    codes = np.frombuffer(joined.encode(), np.uint8)
    kinds = _classes(spaced, 128)[codes]
  else:
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _classes(spaced, 0x110000)[codes]
  starts, ends = _runs(kinds)
  sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
  offsets = np.cumsum(sizes) - sizes
  bounds = np.append(np.searchsorted(starts, offsets), len(starts)).astype(np.int64)
  return Words(_hashes(codes, starts, ends), starts, ends, bounds, offsets)


def grams(hashes: np.ndarray, n: int) -> np.ndarray:
  """Returns a hash [max(W - n + 1, 0)] of every n words in a row, as they follow in `hashes` [W].

  Those that reach over the end of a text are among them; drop them by `bounds`.
  """
  count = max(len(hashes) - n + 1, 0)
  out = hashes[:count].copy()
  for k in range(1, n):
    out *= _GROUP
    out += hashes[k : k + count]
  return mix(out)


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
  """Yields `texts` in lists of about a million characters; one text may be longer."""
  batch: list[str] = []
  size = 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _CHARS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64 on uint64 [...]: every input bit reaches every output bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _runs(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns where words start and end among characters of these kinds [C]."""
  edge = np.zeros(len(kinds) + 1, np.uint8)
  edge[:-1] = kinds
  previous = np.zeros_like(edge)
  previous[1:] = kinds
  alone, was_alone = edge == _ALONE, previous == _ALONE
  starts = np.flatnonzero(alone | ((edge == _IN) & (previous != _IN)))
  ends = np.flatnonzero(was_alone | ((previous == _IN) & (edge != _IN)))
  if len(starts) and (ends - starts).max() > LONGEST:
    counts = -(-(ends - starts) // LONGEST)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(starts, counts) + nth * LONGEST
    ends = np.minimum(starts + LONGEST, np.repeat(ends, counts))
  return starts, ends


def _hashes(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """Returns mix(sum of (code + 1) base^i over a word's characters i), modulo 2^64, for each word.

  A word's sum is a difference of running sums, times the inverse of base^start.
  """
  powers, inverses = _powers()
  out = np.empty(len(starts), np.uint64)
  first = 0
  while first < len(starts):
    begin = starts[first]
    last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK, side="right")))
    part = codes[begin : ends[last - 1]].astype(np.uint64)
    part += np.uint64(1)
    sums = np.zeros(len(part) + 1, np.uint64)
    np.cumsum(part * powers[: len(part)], out=sums[1:])
    at = starts[first:last] - begin
    out[first:last] = (sums[ends[first:last] - begin] - sums[at]) * inverses[at]
    first = last
  return mix(out)


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
  """Returns base^i and base^-i modulo 2^64 for the positions of a block."""
  size = _BLOCK + LONGEST
  inverse = np.uint64(pow(int(_BASE), -1, 2**64))
  tables = []
  for factor in (_BASE, inverse):
    table = np.full(size, factor)
    table[0] = 1
    tables.append(np.cumprod(table, dtype=np.uint64))
  return tables[0], tables[1]


@functools.cache
def _classes(spaced: bool, size: int) -> np.ndarray:
  """Returns the kind of every code point below `size`."""
  characters = list(map(chr, range(size)))
  if spaced:
    return np.array([_OUT if c.isspace() else _IN for c in characters], np.uint8)
  kinds = np.array([_IN if c.isalnum() or c == "_" else _OUT for c in characters], np.uint8)
  for low, high in _UNSPACED:
    kinds[low : high + 1] = _ALONE
  return kinds
