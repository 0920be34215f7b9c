"""FineWeb's, RefinedWeb's and NeMo's rules, and the simple bounds."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import filters
from llm_jax.data.documents import Document
from llm_jax.data.filters import web

PROSE = "\n\n".join(
  f"Here is a paragraph of some length, number {i}, and it ends." for i in range(9)
)
LINES = [
  "This is a plain line of text that stays.", "MOSTLY UPPER CASE", "One half UPPER",
  "2024", "12 34 56",
  "3 likes", "1,204 Shares", "12K followers", "3 likes and more", "Menu", "", "Sign-in to go on",
  "Sign-in", "The story so far Read more...",
  "Read more... is not at its end here, nor is this line short",
  "2 items in cart now", "Items in cart", "  indented line here", "\u00c9T\u00c9 \u00c0 PARIS",
]  # fmt: skip


def doc(text):
  return Document("x", text)


@pytest.mark.parametrize("rule", [filters.length, filters.letters, filters.fineweb, filters.nemo])
def test_prose_passes(rule):
  assert rule(doc(PROSE)) is None


@pytest.mark.parametrize("name", sorted(set(filters.__all__) - {"blocked_urls", "c4_words"}))
def test_nothing_is_broken_by_odd_text(name):
  step = getattr(filters, name)
  for text in ("", " \n\n ", "\ud800", "a", "{" * 99, "\u200b\n" * 60, "\u6f22" * 300):
    result = step(doc(text)) if step.__code__.co_varnames[0] == "document" else step(text)
    assert result is None or isinstance(result, str)


@pytest.mark.parametrize("name", sorted(set(filters.__all__) - {"blocked_urls", "c4_words"}))
def test_no_text_is_slow(name):
  step = getattr(filters, name)
  step(doc("warm")) if step.__code__.co_varnames[0] == "document" else step("warm")
  for piece in ("a", "a ", "\n", ".", "[1", "1,", "!", "http://", "A\n", "a b\n", "\ud800"):
    text = piece * (100_000 // len(piece))
    begin = time.process_time()
    step(doc(text)) if step.__code__.co_varnames[0] == "document" else step(text)
    assert time.process_time() - begin < 1.5, piece  # What is quadratic takes minutes.


def test_length_and_letters():
  assert filters.length(doc("x" * 200)) is None
  assert filters.length(doc("x" * 199)) == "too short"
  assert filters.length(doc("x" * 200), most=199) == "too long"
  assert filters.letters(doc("abc 12")) is None
  assert filters.letters(doc("abc 123")) == "few letters"


def test_addresses_go_and_names_stay():
  text = "See https://a.org/b?c=1#d, or WWW.B.org/x. And (ftp://c.net) but example.com.\n\n\n\nx"
  assert filters.without_addresses(text) == "See , or . And () but example.com.\n\nx"
  assert filters.without_addresses(PROSE) == PROSE


def test_fineweb_names_the_rule():
  assert "end" in filters.fineweb(doc("a line with no end at all of more than thirty\n" * 9))
  assert "short" in filters.fineweb(doc("\n".join(f"short {i}." for i in range(9))))
  assert "repeated" in filters.fineweb(doc("this sentence stands here again and again.\n" * 9))
  words = "\n".join(f"{'x' * 30}{i} y." for i in range(9))
  assert "many lines" in filters.fineweb(doc(words))


def test_both_bounds_of_fineweb():
  """One line of twenty repeats: 0.05 of the characters; the paper has 0.1, the code 0.01."""
  lines = [f"A line with a number in it, which is {i:02}, and an end." for i in range(19)]
  text = "\n".join([*lines, lines[0]])
  assert filters.fineweb(doc(text)) is None
  assert filters.fineweb(doc(text), repeated=0.01) == "fineweb: characters in repeated lines"
  quoted = "\n".join(f"'A line that is quoted and has the number {i}'" for i in range(9))
  assert filters.fineweb(doc(quoted)) == "fineweb: few lines end a sentence"
  assert filters.fineweb(doc(quoted), marks=".?!\"'") is None


def test_lines_that_are_furniture_go():
  kept = [
    "This is a plain line of text that stays.", "One half UPPER", "3 likes and more", "",
    "to go on", "The story so far", "Read more... is not at its end here, nor is this line short",
    "2 now", "  indented line here",
  ]  # fmt: skip
  assert filters.refinedweb_lines("\n".join(LINES)) == "\n".join(kept)


@settings(deadline=None, max_examples=200)
@given(
  st.text(st.sampled_from("aAB\u00c9\u00df .,-"), max_size=30),
  st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
)
def test_shouting_is_a_share_of_upper_case(line, most):
  assert web._shouts(line, most) == (sum(c.isupper() for c in line) > most * len(line))


def test_a_page_that_loses_more_than_a_twentieth_goes():
  body = "\n".join(["five words in this line"] * 19)
  assert filters.refinedweb_page(doc(f"{body}\nHOME NEWS SPORT LIFE MORE")) is None  # 5 of 100.
  assert filters.refinedweb_page(doc(f"{body}\nHOME NEWS SPORT LIFE MORE\nMenu"))
  assert filters.refinedweb_page(doc(body + "\n" + "HOME " * 50), removed=0.9) is None
  assert filters.refinedweb_page(doc(body + "\n" + "HOME " * 50), uppercase=1.0) is None


def test_phrases_are_keywords():
  text = "share this page with your friends\ngo home now"
  assert filters.refinedweb_lines(text, anywhere=("with your",)).startswith(
    "share this page friends"
  )
  assert filters.refinedweb_lines(text, starts=("go home",)).endswith("\nnow")
  assert filters.refinedweb_lines(text, least_words=4) == text.split("\n")[0]
  assert filters.refinedweb_lines("Sign-in here", starts=()) == "Sign-in here"


def test_nemo_counts_what_is_unique():
  same, others = "again.", [f"another line {i} here." for i in range(10)]
  assert filters.nemo(doc("\n".join([same] * 4 + others[:6]))) is None  # 7 of 10 are different.
  assert filters.nemo(doc("\n".join([same] * 4 + others[:5]))) == "nemo: repeated lines"
  long = "a much longer line of text that stands here two times over, it does."
  assert "characters" in filters.nemo(doc("\n".join([long, long, *others[:3]])))
  assert "paragraphs" in filters.nemo(doc("\n\n".join([same] * 2 + ["\n".join(others)])))
  lines = [f"no end in line {i}" for i in range(17)]
  assert filters.nemo(doc("\n".join([*lines, *others[:3]]))) is None  # 17 of 20 is 0.85.
  assert "end a sentence" in filters.nemo(doc("\n".join([*lines, *others[:2]])))
