"""Published rules: each speaks at its bound, and good prose passes all of them."""

import pytest

from llm_jax.data import filters
from llm_jax.data.documents import Document

WORDS = "the quick brown fox and a lazy dog of that old house went to be with some friends".split()
PROSE = "\n\n".join(
  " ".join(WORDS[(i * 7 + j * (i + 1)) % len(WORDS)] for j in range(23)) + f" on day {i}."
  for i in range(12)
)


def doc(text):
  return Document("x", text)


@pytest.mark.parametrize(
  "rule",
  [
    filters.length,
    filters.letters,
    filters.c4_page,
    filters.gopher_quality,
    filters.fineweb,
  ],
)
def test_prose_passes(rule):
  assert rule(doc(PROSE)) is None


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("the " * 49, "word count"),
    ("incomprehensibilities " * 60, "mean word length"),
    (PROSE + " # ... # ... # ... #" * 40, "symbols"),
    ("- the and words here\n" * 60, "bullets"),
    ("the words are here and...\n" * 60, "symbols"),
    ("the and 1234 5678 " * 40, "without a letter"),
    ("some words without any glue " * 20, "stop words"),
  ],
)
def test_gopher_quality_names_the_rule(text, reason):
  assert reason in filters.gopher_quality(doc(text))


def test_word_count_bound_is_inclusive():
  assert filters.gopher_quality(doc("the and " * 25)) is None


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("one line of text\n" * 10, "repeated lines"),
    (" ".join(f"w{i} spam eggs" for i in range(100)), "2-gram"),
    (" ".join([f"a{i}" for i in range(90)] * 2), "repeated 5-grams"),
  ],
)
def test_gopher_repetition_names_the_rule(text, reason):
  assert reason in filters.gopher_repetition(doc(text))
  assert filters.gopher_repetition(doc(text), 100, 100) is None


def test_overlapping_repeats_are_counted_once():
  words = [f"w{i}" for i in range(10)]
  assert filters._in_repeated_grams(words * 2, 5) == 20
  assert filters._in_repeated_grams(words, 5) == 0


def test_c4_pages():
  assert "curly" in filters.c4_page(doc(PROSE + "{"))
  assert filters.c4_page(doc(PROSE + "{"), braces=False) is None
  assert "lorem" in filters.c4_page(doc(PROSE + "Lorem Ipsum"))
  assert "few" in filters.c4_page(doc("One. Two"))


def test_c4_lines():
  text = (
    "This is a fine line indeed.\nno end here at all\nToo short.\nEnable javascript to see it all."
  )
  assert filters.c4_lines(text) == "This is a fine line indeed."
  assert "no end here at all" in filters.c4_lines(text, terminal=False)
  assert filters.c4_lines("As was shown before [12] by them.") == "As was shown before  by them."


def test_fineweb():
  assert "end" in filters.fineweb(doc("a line with no end at all of more than thirty\n" * 9))
  assert "short" in filters.fineweb(doc("\n".join(f"short {i}." for i in range(9))))
  assert "repeated" in filters.fineweb(doc("this sentence stands here again and again.\n" * 9))
