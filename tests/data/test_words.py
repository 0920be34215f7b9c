"""Words as hashes: the same words as a regular expression finds, whatever stands around them."""

import re
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import words

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[^\\W{UNSPACED}]+|[{UNSPACED}]")
TEXTS = st.lists(
  st.text(st.sampled_from("ab1_ -.\t\n\u00e9\u0301\u6f22\u30ab\u0e01\U0001f600"), max_size=30),
  max_size=6,
)


def spelt(texts, found):
  joined = "\n".join(texts)
  return [joined[a:b] for a, b in zip(found.starts, found.ends, strict=True)]


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_words_are_those_of_a_regular_expression(texts):
  found = words.split(texts)
  assert spelt(texts, found) == [w for text in texts for w in WORD.findall(text)]
  counts = np.diff(found.bounds).tolist()
  assert counts == [len(WORD.findall(text)) for text in texts]


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_spaced_words_are_those_of_split(texts):
  found = words.split(texts, spaced=True)
  assert spelt(texts, found) == [w for text in texts for w in text.split()]


def test_equal_words_have_equal_hashes_and_others_do_not():
  texts = [f"w{i} x{i % 7} \u00e9{i}" for i in range(20_000)]
  names = defaultdict(set)
  for part in (texts, [" ".join(texts)], [t.upper().lower() for t in texts[:9]]):
    found = words.split(part)
    for name, key in zip(spelt(part, found), found.hashes.tolist(), strict=True):
      names[name].add(key)
  assert all(len(keys) == 1 for keys in names.values())
  assert len({key for keys in names.values() for key in keys}) == len(names) == 40_007


@pytest.mark.parametrize("size", [words.LONGEST, words.LONGEST + 1, 3 * words.LONGEST, 600_000])
def test_a_long_run_is_cut(size):
  found = words.split(["a " + "x" * size + " b", "c"])
  sizes = (found.ends - found.starts).tolist()
  assert sizes[0] == sizes[-1] == 1 and max(sizes) <= words.LONGEST
  assert sum(sizes) == size + 3
  assert np.diff(found.bounds).tolist() == [2 + -(-size // words.LONGEST), 1]


def test_a_block_edge_changes_nothing():
  text = " ".join(f"word{i}" for i in range(100_000))
  whole = words.split([text]).hashes
  parts = words.split(text.split(" ")).hashes
  np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_grams_are_hashes_of_words_in_a_row(n):
  hashes = words.split(["a b c a b c a b d"]).hashes
  found = words.grams(hashes, n)
  rows = ["a b c a b c a b d".split()[i : i + n] for i in range(9 - n + 1)]
  same = [[a == b for b in rows] for a in rows]
  np.testing.assert_array_equal(found[:, None] == found[None, :], same)
  assert len(words.grams(hashes[:2], 5)) == 0


def test_no_text_has_no_words():
  for texts in ([], [""], ["", " "]):
    found = words.split(texts)
    assert len(found.hashes) == 0 and found.bounds.tolist() == [0] * (len(texts) + 1)
