"""Gopher's rules for MassiveWeb: is it prose, and does it repeat itself.

Source: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1. Words stand between white
space; the paper does not say how it found them. W words of a document.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data import words as hashed
from llm_jax.data.documents import Document

_STOP = frozenset("the be to of and that have with".split())
_BULLETS = ("-", "*", "\u2022", "\u2023", "\u25cf", "\u25e6")
_ELLIPSES = ("...", "\u2026")
_TOP_FRACTIONS = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED_FRACTIONS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_ODD = np.uint64(0x9E3779B97F4A7C15)


def gopher_quality(
  document: Document,
  words: tuple[int, int] = (50, 100_000),
  mean_length: tuple[float, float] = (3, 10),
  symbols: float = 0.1,
  bullets: float = 0.9,
  ellipses: float = 0.3,
  with_letter: float = 0.8,
  stop_words: int = 2,
  distinct: bool = True,
) -> str | None:
  """Gopher's quality rules; each keyword is the bound of one of them, and a page at a bound stays.

  Args:
    document: to judge.
    words: fewest and most words that hold a letter or digit.
    mean_length: bounds of their mean length, in characters.
    symbols: hashes per word, and ellipses per word, at most.
    bullets: fraction of lines that start with a bullet, at most.
    ellipses: fraction of lines that end in an ellipsis, at most.
    with_letter: fraction of words that hold a letter, at least.
    stop_words: words of "the be to of and that have with", at least.
    distinct: two times "the" is one stop word, as the paper reads ("two of the following words");
      False counts every occurrence, as DCLM and datatrove have it.
  """
  text = document.text
  tokens = text.split()
  others = [token for token in tokens if not token[0].isalpha()]  # The rest has a letter in front.
  mute = [token for token in others if not any(map(str.isalnum, token))]
  spoken = len(tokens) - len(mute)
  if not spoken or not words[0] <= spoken <= words[1]:
    return "gopher: word count"
  mean = (sum(map(len, tokens)) - sum(map(len, mute))) / spoken
  if not mean_length[0] <= mean <= mean_length[1]:
    return "gopher: mean word length"
  dots = sum(text.count(ellipsis) for ellipsis in _ELLIPSES)
  if max(text.count("#"), dots) > symbols * len(tokens):
    return "gopher: symbols"
  lines = [line.strip() for line in text.split("\n") if line.strip()]
  if sum(line.startswith(_BULLETS) for line in lines) > bullets * len(lines):
    return "gopher: bullets"
  if sum(line.endswith(_ELLIPSES) for line in lines) > ellipses * len(lines):
    return "gopher: ellipses"
  without = sum(not any(map(str.isalpha, token)) for token in others)
  if len(tokens) - without < with_letter * len(tokens):
    return "gopher: words without a letter"
  if not _has_stop_words(tokens, stop_words, distinct):
    return "gopher: stop words"
  return None


def gopher_repetition(
  document: Document, scale: float = 1.0, gram_scale: float = 1.0, first: bool = False
) -> str | None:
  """Gopher's repetition rules, thirteen bounds; a page at a bound stays.

  Lines and paragraphs that stood before: 0.30 of their number, 0.20 of the text's characters. Of
  the characters in words: 0.20, 0.18, 0.16 in the most frequent 2-, 3-, 4-gram (of several the
  longest), each time it stands; 0.15, 0.14, ... 0.10 in 5- to 10-grams that stood before, no
  character counted twice.

  Args:
    document: to judge.
    scale: factor of all bounds on lines and paragraphs.
    gram_scale: factor of all bounds on n-grams.
    first: what repeats counts from its first time on, as DCLM has it; the paper's "contained within
      all duplicate n-grams" can be read so. Else, as datatrove has it, from the second.
  """
  text = document.text
  paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
  lines = [line.strip() for line in text.split("\n") if line.strip()]
  for name, parts in (("line", lines), ("paragraph", paragraphs)):
    count, chars = repeated(parts, first)
    if count > 0.30 * scale * len(parts):
      return f"gopher: repeated {name}s"
    if chars > 0.20 * scale * len(text):
      return f"gopher: characters in repeated {name}s"
  hashes, offsets = _words(text)
  for n, at, again, top in _repeats(hashes, offsets, first):
    if n in _TOP_FRACTIONS and top > _TOP_FRACTIONS[n] * gram_scale * offsets[-1]:
      return f"gopher: most frequent {n}-gram"
    if n in _REPEATED_FRACTIONS:
      covered = _covered(at[again], n, offsets)
      if covered > _REPEATED_FRACTIONS[n] * gram_scale * offsets[-1]:
        return f"gopher: repeated {n}-grams"
  return None


def repeated(parts: Sequence[str], first: bool = False) -> tuple[int, int]:
  """Returns (number, characters) of the parts that stood before; if `first`, also of their firsts.

  Args:
    parts: lines or paragraphs.
    first: count a repeated part from its first time on.
  """
  counts = Counter(parts)
  if len(counts) == len(parts):
    return 0, 0
  more = [(part, n) for part, n in counts.items() if n > 1]
  return (
    sum(n - (not first) for _, n in more),
    sum((n - (not first)) * len(part) for part, n in more),
  )


def _has_stop_words(tokens: Sequence[str], least: int, distinct: bool) -> bool:
  found: list[str] = []
  for token in tokens:
    if len(found) >= least:
      return True
    word = token.lower().strip(".,;:()'\"")
    if word in _STOP and not (distinct and word in found):
      found.append(word)
  return len(found) >= least


def _words(text: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the words' hashes [W] and the characters before each word, and in all [W + 1]."""
  found = hashed.split([text], spaced=True)
  hashes, lengths = found.hashes, found.ends - found.starts
  if len(lengths) and lengths.max() == hashed.LONGEST:  # A longer word came in pieces.
    begins = np.flatnonzero(np.append(True, found.starts[1:] != found.ends[:-1]))
    piece = np.arange(len(hashes)) - np.repeat(begins, np.diff(begins, append=len(hashes)))
    hashes = np.add.reduceat(hashed.mix(hashes + piece.astype(np.uint64)), begins)
    lengths = np.add.reduceat(lengths, begins)
  return hashes, np.append(0, np.cumsum(lengths))


def _repeats(
  hashes: np.ndarray, offsets: np.ndarray, first: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
  """Yields (n, at, again, top) for n from 2 on, while any n-gram repeats.

  `at` are positions among which all repeats are, in order, `again` marks the repeats, and `top` is
  the number of characters that the most frequent n-gram covers. An n-gram can only repeat where
  both of its (n - 1)-grams do, so there are few places left to look at.
  """
  at = np.arange(max(len(hashes) - 1, 0))
  grams = hashes[:-1]
  for n in range(2, max(_REPEATED_FRACTIONS) + 1):
    grams = grams * _ODD + hashes[at + n - 1]
    order = np.argsort(grams, kind="stable")
    ordered = grams[order]
    same = ordered[1:] == ordered[:-1]
    if not same.any():
      return
    again = np.zeros(len(at), bool)
    again[order[1:][same]] = True
    every = again.copy()
    every[order[:-1][same]] = True
    top = _top(at[order], same, n, offsets) if n in _TOP_FRACTIONS else 0
    yield n, at, every if first else again, top
    places, keys = at[every], grams[every]
    follows = np.flatnonzero(places[1:] == places[:-1] + 1)
    at, grams = places[follows], keys[follows]


def _top(at: np.ndarray, same: np.ndarray, n: int, offsets: np.ndarray) -> int:
  """Returns the characters that the most frequent n-gram covers, counted each time it stands.

  Args:
    at: [G] positions of n-grams, equal ones side by side.
    same: [G - 1] whether an n-gram equals the one before.
    n: words of a gram.
    offsets: [W + 1] characters before each word.
  """
  begins = np.flatnonzero(np.append(True, ~same))
  counts = np.diff(begins, append=len(at))
  most = counts.max()
  places = at[begins[counts == most]]
  return int(most * (offsets[places + n] - offsets[places]).max())


def _covered(places: np.ndarray, n: int, offsets: np.ndarray) -> int:
  """Returns the characters in the n-grams at `places`, in order; none is counted twice."""
  if not len(places):
    return 0
  ends = places + n
  begins = np.maximum(places, np.append(0, ends[:-1]))
  return int((offsets[ends] - offsets[begins]).sum())
