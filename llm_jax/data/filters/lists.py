"""Files of words, phrases and domains, read once in every process."""

import functools
import gzip
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from llm_jax.errors import UserError

_RUN = re.compile("[a-z]+")


class Phrases(NamedTuple):
  """Words and phrases to look for in lower-cased text.

  Attributes:
    everything: all of them.
    words: those of the letters a-z only.
    others: phrases, and words with other characters; each with the runs of a-z in it.
  """

  everything: frozenset[str]
  words: frozenset[str]
  others: tuple[tuple[str, frozenset[str]], ...]

  def search(self, text: str, boundaries: bool = True) -> str | None:
    """Returns one that stands in `text`, or None.

    Args:
      text: in lower case.
      boundaries: want no letter a-z before or after it.
    """
    if not boundaries:
      return next((phrase for phrase in self.everything if phrase in text), None)
    runs = set(_RUN.findall(text))
    if hits := self.words & runs:
      return min(hits)
    for phrase, parts in self.others:
      if parts <= runs and _bounded(text, phrase):
        return phrase
    return None


@functools.lru_cache(maxsize=64)
def read_phrases(path: str) -> Phrases:
  """Reads a file of words and phrases, one a line; blank lines and those after "#" are skipped.

  Raises:
    UserError: if the file cannot be read or is empty.
  """
  phrases = frozenset(line.lower() for line in _lines(path))
  words = frozenset(phrase for phrase in phrases if _RUN.fullmatch(phrase))
  others = tuple((p, frozenset(_RUN.findall(p))) for p in sorted(phrases - words))
  return Phrases(phrases, words, others)


@functools.lru_cache(maxsize=16)
def read_names(path: str) -> np.ndarray:
  """Reads a file of domains or addresses, one a line, as sorted hashes [M] uint64 (`name_hash`).

  A name takes eight bytes, whatever its length; one that is not in the list is found with
  probability M / 2^64.

  Raises:
    UserError: if the file cannot be read or is empty.
  """
  digest = xxhash.xxh3_64_intdigest
  hashes = np.fromiter((digest(line.lower().encode()) for line in _lines(path)), np.uint64)
  hashes.sort()
  return hashes


def name_hash(name: str) -> int:
  """Returns the hash by which `read_names` keeps a name; case does not matter."""
  return xxhash.xxh3_64_intdigest(name.lower().encode("utf-8", "surrogatepass"))


def holds(hashes: np.ndarray, name: str) -> bool:
  """Tells whether `name` is among the names of `read_names`."""
  key = np.uint64(name_hash(name))
  at = int(np.searchsorted(hashes, key))
  return at < len(hashes) and hashes[at] == key


def _lines(path: str) -> Iterator[str]:
  if not os.path.isfile(path):
    raise UserError(f"{path}: there is no such list; want a file with one entry a line")
  entry = ""
  try:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
      for line in map(str.strip, file):
        if line and line[0] != "#":
          entry = line
          yield line
  except (OSError, EOFError, UnicodeDecodeError) as e:
    raise UserError(f"{path}: cannot be read as a list in UTF-8 ({e})") from e
  if not entry:
    raise UserError(f"{path}: the list is empty; leave the step out, or give it entries")


def _bounded(text: str, phrase: str) -> bool:
  """Tells whether `phrase` stands in `text` without a letter a-z at its sides."""
  at = text.find(phrase)
  while at >= 0:
    before, after = text[max(at - 1, 0) : at], text[at + len(phrase) : at + len(phrase) + 1]
    if not (_RUN.match(before) or _RUN.match(after)):
      return True
    at = text.find(phrase, at + 1)
  return False
