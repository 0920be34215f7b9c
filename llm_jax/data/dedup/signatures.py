"""What of a text is compared: its normalised form, its set of word 5-grams, its MinHash bands.

N texts, S distinct 5-grams of a text, H = 108 hashes in 18 bands of 6. A pair of similarity s
becomes a candidate with probability 1 - (1 - s^6)^18: 0.996 at s = 0.8, 0.25 at 0.5, 0.001 at 0.2.
FineWeb's 14 bands of 8 cost the same and find 0.92 at 0.8; they must be choosy because their
candidates are removed unseen, ours are compared. Broder 1997 for MinHash, Leskovec et al. "Mining
of Massive Datasets" 3.4 for bands.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

NGRAM = 5
BANDS, ROWS = 18, 6

# Scripts that are written without spaces count a character as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[^\\W{_UNSPACED}]+|[{_UNSPACED}]")
_ASCII_WORD = re.compile(rb"[a-z0-9_]+")
_GROUP = np.uint64(0x9E3779B97F4A7C15)  # Odd, so that multiplying loses nothing.
_BLOCK = 4096  # 5-grams hashed at once: memory stays flat and time linear for a text of any size.


def _coefficients() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(20_210_714)
  draw = rng.integers(0, 2**32, size=(2, BANDS * ROWS, 1), dtype=np.uint32)
  return draw[0] | np.uint32(1), draw[1]


_FACTOR_H1, _OFFSET_H1 = _coefficients()


class Signatures(NamedTuple):
  """What stands for N texts until candidates are known.

  Attributes:
    digests: [N, 2] uint64, the 128-bit hash of each normalised text.
    sizes: [N] int64, S of each text.
    bands: [N, 18] uint64, a key per band; equal keys make a candidate pair.
  """

  digests: np.ndarray
  sizes: np.ndarray
  bands: np.ndarray


def normalise(text: str) -> str:
  """Returns `text` without differences of case, white space and Unicode composition."""
  if not text.isascii():
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
  return " ".join(text.casefold().split())


def shingles(text: str) -> np.ndarray:
  """Returns the distinct word 5-grams of `text`, as sorted uint64 hashes [S], S >= 1.

  Words are runs of letters, digits and underscores after `normalise`; punctuation is ignored. A
  text of fewer than five words is one n-gram; one without any word is its own, whole.
  """
  return _shingles(normalise(text))


def signatures(texts: Sequence[str]) -> Signatures:
  """Returns the signatures of `texts`, each of them independent of the others."""
  digests = np.empty((len(texts), 2), np.uint64)
  sizes = np.empty(len(texts), np.int64)
  hashes_NH = np.empty((len(texts), BANDS * ROWS), np.uint32)
  for i, text in enumerate(texts):
    plain = normalise(text)
    digests[i] = np.frombuffer(xxhash.xxh3_128_digest(plain.encode()), ">u8")
    grams_S = _shingles(plain)
    sizes[i] = len(grams_S)
    hashes_NH[i] = minhash(grams_S)
  return Signatures(digests, sizes, _bands(hashes_NH))


def minhash(grams: np.ndarray) -> np.ndarray:
  """Returns the MinHash [H] uint32 of `grams` [S] uint64.

  Two sets agree in each entry with a probability that is their Jaccard similarity.
  """
  grams_S = (grams >> np.uint64(32)).astype(np.uint32)  # 32 good bits: wide multiplies are slow.
  least_H = np.full(BANDS * ROWS, 2**32 - 1, np.uint32)
  for start in range(0, len(grams_S), _BLOCK):
    hashes_HS = grams_S[start : start + _BLOCK] * _FACTOR_H1 + _OFFSET_H1
    np.minimum(least_H, hashes_HS.min(axis=1), out=least_H)
  return least_H


def _shingles(plain: str) -> np.ndarray:
  if plain.isascii():
    words = _ASCII_WORD.findall(plain.encode())
  else:
    words = [word.encode() for word in _WORD.findall(plain)]
  words = words or [plain.encode()]
  hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, words), np.uint64, len(words))
  width = min(NGRAM, len(words))
  count = len(words) - width + 1
  grams = hashes[:count].copy()
  for k in range(1, width):
    grams = grams * _GROUP + hashes[k : k + count]
  grams = np.sort(_mix(grams))  # Then comparing neighbours takes a quarter of np.unique's time.
  return grams[np.concatenate([[True], grams[1:] != grams[:-1]])]


def _bands(hashes_NH: np.ndarray) -> np.ndarray:
  rows = hashes_NH.reshape(-1, BANDS, ROWS).astype(np.uint64)
  keys = np.zeros(rows.shape[:2], np.uint64)
  for k in range(ROWS):
    keys = _mix(keys * _GROUP + rows[:, :, k])
  return keys


def _mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64: every input bit reaches every output bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
