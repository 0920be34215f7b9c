"""Gopher's rules: each speaks at its bound, and the fast n-gram counts are the definition's."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import words
from llm_jax.data.documents import Document
from llm_jax.data.filters import gopher, gopher_quality, gopher_repetition

BAG = "the quick brown fox and a lazy dog of that old house went to be with some friends".split()
PROSE = "\n\n".join(
  " ".join(BAG[(i * 7 + j * (i + 1)) % len(BAG)] for j in range(23)) + f" on day {i}."
  for i in range(12)
)


def doc(text):
  return Document("x", text)


def repetitive(tokens, n, first):
  """Characters in n-grams that stand more than once, each counted once: the definition."""
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  counts = Counter(grams)
  seen, covered = set(), set()
  for i, gram in enumerate(grams):
    if counts[gram] > 1 and (first or gram in seen):
      covered |= set(range(i, i + n))
    seen.add(gram)
  return sum(len(tokens[i]) for i in covered)


def most_frequent(tokens, n):
  """Characters of the most frequent n-gram times its count; of several the longest."""
  counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
  most = max(counts.values(), default=0)
  if most < 2:
    return 0
  return most * max(sum(map(len, gram)) for gram, count in counts.items() if count == most)


def counted(tokens, first):
  """What `gopher_repetition` counts, by n."""
  hashes, offsets = gopher._words(" ".join(tokens))
  top, covered = {}, {}
  for n, at, again, chars in gopher._repeats(hashes, offsets, first):
    top[n], covered[n] = chars, gopher._covered(at[again], n, offsets)
  return top, covered


@settings(deadline=None, max_examples=300)
@given(
  st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "\u00e9"]), max_size=60),
  st.sampled_from([1, 2, 7]),
  st.booleans(),
)
def test_grams_are_counted_as_defined(tokens, times, first):
  tokens = tokens * times
  top, covered = counted(tokens, first)
  for n in range(2, 11):
    assert covered.get(n, 0) == repetitive(tokens, n, first)
    if n <= 4:
      assert top.get(n, 0) == most_frequent(tokens, n)


def test_grams_are_counted_as_defined_in_a_long_text():
  rng = random.Random(0)
  tokens = [f"w{int(rng.paretovariate(0.4)) % 5000}" for _ in range(20_000)]
  tokens += tokens[500:900]
  for first in (False, True):
    top, covered = counted(tokens, first)
    for n in (2, 3, 5, 10):
      assert covered[n] == repetitive(tokens, n, first)
    assert [top[n] for n in (2, 3, 4)] == [most_frequent(tokens, n) for n in (2, 3, 4)]


def test_a_word_longer_than_the_table_is_one_word():
  size = words.LONGEST
  tokens = ["x" * size, "y" * (size + 1), "z", "x" * (3 * size), "y" * (size + 1), "z", "x" * size]
  hashes, offsets = gopher._words(" ".join(tokens))
  assert np.diff(offsets).tolist() == list(map(len, tokens))
  named = dict(zip(hashes.tolist(), tokens, strict=True))
  assert [named[key] for key in hashes.tolist()] == tokens and len(named) == 4


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("one line of text\n" * 10, "repeated lines"),
    ("a b c\nd e f\n\n" * 3 + "\n".join(f"{i} {i}x" for i in range(20)), "repeated paragraphs"),
    (" ".join(f"w{i} spam eggs" for i in range(100)), "2-gram"),
    (" ".join([f"a{i}" for i in range(90)] * 2), "repeated 5-grams"),
  ],
)
def test_repetition_names_the_rule(text, reason):
  assert reason in gopher_repetition(doc(text))
  assert gopher_repetition(doc(text), 100, 100) is None


@pytest.mark.parametrize(("unique", "reason"), [(69, "gopher: repeated 5-grams"), (70, None)])
def test_a_share_at_its_bound_stays(unique, reason):
  """Three times five words repeat apart, so no 6-gram does: 15 of 100 words is 5-grams' 0.15."""
  runs = [[f"r{i}{j}" for j in range(5)] for i in range(3)]
  others = [f"u{i:02}"[-3:] for i in range(unique)]
  text = " ".join(w for i in range(6) for w in [*runs[i % 3], *others[i::6]])
  assert gopher_repetition(doc(text)) == reason


def test_the_first_time_may_count_too():
  tokens = [f"r{i:02}" for i in range(9)]
  text = " ".join([*tokens, *(f"u{i:02}" for i in range(82)), *tokens])
  assert gopher_repetition(doc(text)) is None  # 9 of 100 words.
  assert gopher_repetition(doc(text), first=True) == "gopher: repeated 5-grams"  # 18 of 100.
  assert gopher.repeated(["a", "bb", "bb"]) == (1, 2)
  assert gopher.repeated(["a", "bb", "bb"], first=True) == (2, 4)


def test_prose_passes():
  assert gopher_quality(doc(PROSE)) is None


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("the " * 49, "word count"),
    ("", "word count"),
    ("incomprehensibilities " * 60, "mean word length"),
    (PROSE + " # ... # ... # ... #" * 40, "symbols"),
    ("- the and words here\n" * 60, "bullets"),
    ("the words are here and...\n" * 60, "symbols"),
    ("the words are here and all of this is one line with that...\n" * 60, "ellipses"),
    ("the and 1234 5678 " * 40, "without a letter"),
    ("some words without any glue " * 20, "stop words"),
  ],
)
def test_quality_names_the_rule(text, reason):
  assert reason in gopher_quality(doc(text))


def test_bounds_are_inclusive():
  assert gopher_quality(doc("the and " * 25)) is None
  assert gopher_quality(doc("the and of to 12 " * 25), mean_length=(2, 10)) is None
  assert "letter" in gopher_quality(doc("the and of 12 " * 25), mean_length=(2, 10))
  assert gopher_quality(doc("the and , " * 25), with_letter=0.6) is None  # A mark is no word.


def test_stop_words_are_different_ones_or_any():
  text = "the houses stand where houses stood, " * 20
  assert gopher_quality(doc(text)) == "gopher: stop words"
  assert gopher_quality(doc(text), distinct=False) is None
  assert gopher_quality(doc(text.replace("where", "AND"))) is None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["the", "1", "a1", "1a", "--", "\u00e9", "'x", "."]), max_size=99))
def test_quality_counts_words_as_it_says(tokens):
  spoken = [t for t in tokens if any(map(str.isalnum, t))]
  lettered = [t for t in tokens if any(map(str.isalpha, t))]
  free = {"bullets": 1.0, "stop_words": 0, "mean_length": (0, 99), "words": (1, 99)}
  text = doc(" ".join(tokens))
  expected = "word count" if not spoken else ""
  if spoken and len(lettered) < 0.8 * len(tokens):
    expected = "without a letter"
  assert expected in (gopher_quality(text, **free) or "")
  mean = sum(map(len, spoken)) / max(len(spoken), 1)
  bounds = free | {"mean_length": (mean, mean), "with_letter": 0}
  assert bool(gopher_quality(text, **bounds)) == (not spoken)
