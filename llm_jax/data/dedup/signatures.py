"""What of a text is compared: its normalised form, its set of word 5-grams, its MinHash bands.

N texts, S distinct 5-grams of a text, H = 120 hashes in 24 bands of 5. A pair of similarity s
becomes a candidate with probability 1 - (1 - s^5)^24: 0.9999 at s = 0.8, 0.988 at 0.7, 0.008 at
0.2. FineWeb's 14 bands of 8 find 0.92 at 0.8 and 0.56 at 0.7; they must be choosy, for their
candidates are removed unseen, while ours are compared. Broder 1997 for MinHash, Leskovec et al.
"Mining of Massive Datasets" 3.4 for bands.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from llm_jax.data import words

NGRAM = 5
BANDS, ROWS = 24, 5

_GROUP = np.uint64(0x9E3779B97F4A7C15)  # Odd, so that multiplying loses nothing.
_BLOCK = 1 << 14  # 5-grams hashed at once: what is computed for them stays in the cache.
_CHARS = 1 << 20  # A longer text is not split into a list of words.
_SPACES = re.compile(r"\s+")


def _coefficients() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(20_210_714)
  draw = rng.integers(0, 2**32, size=(2, BANDS * ROWS), dtype=np.uint32)
  return draw[0] | np.uint32(1), draw[1]


_FACTOR_H, _OFFSET_H = _coefficients()


class Signatures(NamedTuple):
  """What stands for N texts until candidates are known.

  Attributes:
    digests: [N, 2] uint64, the 128-bit hash of each normalised text.
    sizes: [N] int64, S of each text.
    bands: [N, 24] uint64, a key per band; equal keys make a candidate pair.
  """

  digests: np.ndarray
  sizes: np.ndarray
  bands: np.ndarray


def normalise(text: str) -> str:
  """Returns `text` without differences of case, white space and Unicode composition."""
  if not text.isascii():
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
  text = text.casefold()
  if len(text) > _CHARS:  # Twice the time, but no million of little strings.
    return _SPACES.sub(" ", text).strip(" ")
  return " ".join(text.split())


def digest(plain: str) -> np.ndarray:
  """Returns the 128-bit hash [2] uint64 of a normalised text."""
  return np.frombuffer(xxhash.xxh3_128_digest(plain.encode()), ">u8").astype(np.uint64)


def shingles(text: str) -> np.ndarray:
  """Returns the distinct word 5-grams of `text`, as sorted uint64 hashes [S], S >= 1.

  Words are runs of letters, digits and underscores after `normalise`; punctuation is ignored. A
  text of fewer than five words is one n-gram; one without any word is its own, whole.
  """
  return shingle_sets([normalise(text)])[0]


def shingle_sets(plain: Sequence[str], most_words: int = 0) -> list[np.ndarray]:
  """Returns the `shingles` of each of the normalised texts `plain`.

  A text of more than `most_words` words (0: no limit) gets an empty set.
  """
  sets = []
  for part in words.batches(plain):
    found = words.split(part)
    grams = words.grams(found.hashes, NGRAM)
    for text, a, b in zip(part, found.bounds[:-1].tolist(), found.bounds[1:].tolist(), strict=True):
      if 0 < most_words < b - a:
        sets.append(grams[:0])
      elif b - a > NGRAM:
        own = np.sort(grams[a : b - NGRAM + 1])
        # Comparing neighbours takes a quarter of np.unique's time.
        sets.append(own[np.concatenate([[True], own[1:] != own[:-1]])])
      elif b > a:  # One n-gram, of all the words that there are.
        sets.append(words.grams(found.hashes[a:b], b - a))
      else:
        sets.append(np.array([xxhash.xxh3_64_intdigest(text.encode())], np.uint64))
  return sets


def signatures(texts: Sequence[str]) -> Signatures:
  """Returns the signatures of `texts`, each of them independent of the others."""
  plain = [normalise(text) for text in texts]
  return of_sets(plain, shingle_sets(plain))


def of_sets(plain: Sequence[str], sets: Sequence[np.ndarray]) -> Signatures:
  """Returns the signatures of normalised texts whose `shingle_sets` are known."""
  digests = np.array([digest(text) for text in plain], np.uint64).reshape(-1, 2)
  sizes = np.fromiter(map(len, sets), np.int64, len(sets))
  return Signatures(digests, sizes, _bands(minhash(sets)))


def minhash(sets: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the MinHash [N, H] uint32 of N sets of uint64 hashes.

  Two sets agree in each entry with a probability that is their Jaccard similarity; an empty one
  has the largest number in all of them.
  """
  everyone = np.full((len(sets), BANDS * ROWS), 2**32 - 1, np.uint32)
  full = [i for i, own in enumerate(sets) if len(own)]
  if full:
    everyone[full] = _least([sets[i] for i in full])
  return everyone


def _least(sets: Sequence[np.ndarray]) -> np.ndarray:
  least_NH = np.full((len(sets), BANDS * ROWS), 2**32 - 1, np.uint32)
  sizes = np.fromiter(map(len, sets), np.int64, len(sets))
  starts = np.cumsum(sizes) - sizes
  # 32 good bits: wide multiplies are slow.
  grams = (np.concatenate(sets) >> np.uint64(32)).astype(np.uint32)
  hashes = np.empty(_BLOCK, np.uint32)
  for begin in range(0, len(grams), _BLOCK):
    part = grams[begin : begin + _BLOCK]
    # The sets that have a part in this block, the first of which may have begun before it.
    first = int(np.searchsorted(starts, begin, side="right")) - 1
    last = int(np.searchsorted(starts, begin + len(part)))
    cuts = np.maximum(starts[first:last] - begin, 0)
    for h in range(BANDS * ROWS):
      out = hashes[: len(part)]
      np.multiply(part, _FACTOR_H[h], out=out)
      np.add(out, _OFFSET_H[h], out=out)
      column = least_NH[first:last, h]
      np.minimum(column, np.minimum.reduceat(out, cuts), out=column)
  return least_NH


def _bands(hashes_NH: np.ndarray) -> np.ndarray:
  rows = hashes_NH.reshape(-1, BANDS, ROWS).astype(np.uint64)
  keys = np.zeros(rows.shape[:2], np.uint64)
  for k in range(ROWS):
    keys = words.mix(keys * _GROUP + rows[:, :, k])
  return keys
