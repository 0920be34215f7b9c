"""Repeated substrings: what is found, what is never touched, and how text looks after a cut."""

import random
import tracemalloc
from collections import defaultdict
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_jax.data import words
from llm_jax.data.dedup import substrings
from llm_jax.errors import UserError

ALPHABET = ["a", "b", "B", "ähm", "漢"]
GAPS = [" ", "  ", ", ", ".\n", "\n\n- ", " (", "–"]
passages = st.lists(st.tuples(st.sampled_from(ALPHABET), st.sampled_from(GAPS)), max_size=14)
corpora = st.lists(passages, max_size=6)
ROLLING = substrings._rolling
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiouy" for c in "bdfgklmnprst"]


def text_of(passage):
  return "".join(word + gap for word, gap in passage)


def own_words(text):
  """(start, end) of each word, found one character after the other."""
  out, inside = [], False
  for i, c in enumerate(text):
    alone = "\u3400" <= c <= "\u9fff"
    if c.isalnum() and inside and not alone:
      out[-1][1] = i + 1
    elif c.isalnum():
      out.append([i, i + 1])
    inside = c.isalnum() and not alone
  return out


def reference(texts, k, keep_first):
  """{(text, word)} of what is repeated, from a dictionary of all windows."""
  places = defaultdict(list)
  for t, text in enumerate(texts):
    own = [text[a:b] for a, b in own_words(text)]
    for i in range(len(own) - k + 1):
      places[tuple(own[i : i + k])].append((t, i))
  gone = set()
  for (first_text, first), *later in places.values():
    if later and not keep_first:
      gone |= {(first_text, first + j) for j in range(k)}
    for t, i in later:
      begin = max(i, first + k) if keep_first and t == first_text else i
      gone |= {(t, j) for j in range(begin, i + k)}
  return gone


def covered(texts, found):
  """{(text, word)} of the words in the spans, each of which must hold whole words."""
  assert len(found) == len(texts)
  out = set()
  for t, (text, spans) in enumerate(zip(texts, found, strict=True)):
    own = own_words(text)
    assert {a for a, _ in spans} <= {a for a, _ in own}
    assert {b for _, b in spans} <= {b for _, b in own}
    assert all(b < a for (_, b), (a, _) in zip(spans, spans[1:], strict=False))
    out |= {(t, i) for i, (a, b) in enumerate(own) for c, d in spans if c <= a and b <= d}
  return out


def in_parts(parts, tokens, keep_first, partitions, folder):
  """The spans of all texts, by way of files."""
  for i, part in enumerate(parts):
    np.save(folder / f"windows{i}.npy", substrings.windows(part, tokens))
  files = [folder / f"windows{i}.npy" for i in range(len(parts))]
  repeats = [folder / f"repeats{p}.npy" for p in range(partitions)]
  for p, file in enumerate(repeats):
    np.save(file, substrings.repeated(files, p, partitions))
  rows = [substrings.of_part(repeats, i) for i in range(len(parts))]
  quotes = [substrings.quote(*x, tokens, keep_first) for x in zip(parts, rows, strict=True)]
  for part, own in zip(parts, rows, strict=True):
    yield from substrings.spans(part, own, quotes.__getitem__, tokens, keep_first)


@settings(deadline=None, max_examples=300)
@given(corpora, st.integers(1, 5), st.booleans())
@example([[("a", " ")] * 14], 4, True)
@example([[("a", " "), ("b", " ")] * 7, [("b", " "), ("a", " ")] * 4], 3, True)
def test_what_is_found_is_what_a_dictionary_of_all_windows_finds(corpus, tokens, keep_first):
  texts = [text_of(passage) for passage in corpus]
  found = substrings.find(texts, tokens, keep_first)
  assert covered(texts, found) == reference(texts, tokens, keep_first)


@settings(deadline=None, max_examples=80)
@given(corpora, st.integers(1, 4), st.booleans(), st.integers(1, 5), st.data())
def test_parts_and_partitions_do_not_matter(
  tmp_path_factory, corpus, tokens, keep_first, partitions, data
):
  texts = [text_of(passage) for passage in corpus]
  size = data.draw(st.integers(1, max(len(texts), 1)))
  parts = [texts[i : i + size] for i in range(0, len(texts), size)]
  folder = tmp_path_factory.mktemp("parts")
  found = list(in_parts(parts, tokens, keep_first, partitions, folder))
  assert found == substrings.find(texts, tokens, keep_first)


@settings(deadline=None, max_examples=150)
@given(corpora, st.integers(1, 4), st.booleans(), st.integers(1, 4))
def test_equal_hashes_of_different_words_cut_nothing(corpus, tokens, keep_first, values):
  def weak(hashes, n):
    real = ROLLING(hashes, n)
    return words.mix(real % np.uint64(values))

  texts = [text_of(passage) for passage in corpus]
  with mock.patch.object(substrings, "_rolling", weak):
    found = substrings.find(texts, tokens, keep_first)
  assert covered(texts, found) <= reference(texts, tokens, keep_first)


def test_a_collision_saves_a_repeat_and_never_deletes_a_text():
  def weak(hashes, n):
    real = ROLLING(hashes, n)
    of = {text: ROLLING(words.split([text]).hashes, n)[0] for text in ("x y", "p q")}
    return np.where(real == of["p q"], of["x y"], real)

  texts = ["x y", "p q", "p q", "a b", "a b"]
  assert substrings.find(texts, 2) == [[], [], [(0, 3)], [], [(0, 3)]]
  with mock.patch.object(substrings, "_rolling", weak):
    assert substrings.find(texts, 2) == [[], [], [], [], [(0, 3)]]


def test_hashes_differ_where_words_do_and_only_there():
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**63, 3000, dtype=np.uint64)
  for n in (1, 2, 3, 31, 50, 64, 100):
    whole = ROLLING(hashes, n)
    assert len(whole) == len(np.unique(whole)) == 3000 - n + 1
    np.testing.assert_array_equal(ROLLING(hashes[700 : 700 + n], n), whole[700:701])
  swapped = hashes.copy()
  swapped[[10, 20]] = hashes[[20, 10]]
  assert (ROLLING(swapped, 50) != ROLLING(hashes, 50)).sum() == 21  # Order counts.


def passage(rng, size):
  return " ".join(rng.choices(VOCABULARY, k=size))


def test_planted_repeats_are_found_to_the_word_and_nothing_else_is():
  rng = random.Random(0)
  texts = [passage(rng, 400) for _ in range(60)]
  assert substrings.find(texts) == [[] for _ in texts]  # Negative control.
  planted = set()
  for i, size in enumerate((49, 50, 51, 120, 400)):
    source = texts[i].split()
    for target in (40 + i, 50 + i):  # In other texts, amid their own words.
      own = texts[target].split()
      texts[target] = " ".join([*own[:100], *source[-size:], *own[100:]])
      if size >= 50:
        planted |= {(target, 100 + j) for j in range(size)}
  own = texts[30].split()
  texts[30] = " ".join([*own, "between", *own[7:77], "end"])  # And within one text.
  planted |= {(30, 401 + j) for j in range(70)}
  assert covered(texts, substrings.find(texts)) == planted
  both = covered(texts, substrings.find(texts, keep_first=False))
  assert planted < both
  assert len(both) == len(planted) + sum((50, 51, 120, 400, 70))


def test_what_stands_between_words_is_not_compared_but_case_is():
  assert substrings.find(["one two, three", "(one) -- two\nthree!"], 3) == [[], [(1, 18)]]
  assert substrings.find(["one two three", "One two three"], 3) == [[], []]


def test_stammering_keeps_one_window():
  text = " ".join(["ha"] * 200)
  (found,) = substrings.find([text])
  assert substrings.cut(text, found) == " ".join(["ha"] * 50)
  (found,) = substrings.find([text], keep_first=False)
  assert substrings.cut(text, found) == ""


@settings(deadline=None, max_examples=150)
@given(corpora, st.integers(1, 4))
def test_after_a_cut_only_windows_over_a_seam_are_repeated(corpus, tokens):
  texts = [text_of(passage) for passage in corpus]
  vocabulary = {text[a:b] for text in texts for a, b in own_words(text)}
  seam = 0
  for t, spans in enumerate(substrings.find(texts, tokens)):
    for start, end in reversed(spans):  # A word of its own at each seam leaves no such window.
      texts[t] = f"{texts[t][:start]} seam{seam} {texts[t][end:]}"
      seam += 1
  assert not any(substrings.find(texts, tokens))
  assert vocabulary <= {text[a:b] for text in texts for a, b in own_words(text)}  # None is lost.


def test_a_seam_can_make_a_new_repeat_which_a_second_pass_finds():
  texts = ["x y", "m n", "x m n y"]
  for expected in (["x y", "m n", "x y"], ["x y", "m n", ""], ["x y", "m n", ""]):
    texts = [substrings.cut(*x) for x in zip(texts, substrings.find(texts, 2), strict=True)]
    assert texts == expected


@pytest.mark.parametrize(
  ("text", "kept"),
  [
    ("keep one [two three four]. five", "keep one five"),
    ('keep "[two three] four" five', 'keep four" five'),
    ("keep one.\n\n[Two three.\n\nFour five].\n\n\n\nSix", "keep one.\n\nSix"),
    ("keep one. [Two three].\n\nSix", "keep one.\n\nSix"),
    ("keep one.\n\n[Two three]. Six", "keep one.\n\nSix"),
    ("- one\n- [two three\n- four]\n- five\n", "- one\n- five\n"),
    ("if x:\n  [two(three)\n  four(five])\n  six()\n", "if x:\n  six()\n"),
    ("## [Copyright\n\nCopyright waived via] CC0.\n", "CC0.\n"),
    ("[one two] three", "three"),
    ("  [one two]\n  three", "  three"),
    ("one [two three]", "one"),
    ("one\n[two three]!\n", "one\n"),
    ("one-[two three]-four", "one-four"),
    ("漢[字漢字。]字", "漢字"),
    ("one漢[two]漢three", "one漢漢three"),
    ("one[漢字]two", "one two"),
    ("*[one two]*\n", ""),
    ("one [two] three [four] five", "one three five"),
    ("one two", "one two"),
  ],
)
def test_the_seam_of_a_cut_looks_like_text(text, kept):
  found, plain = [], ""
  for piece in text.split("["):
    inside, close, after = piece.rpartition("]")
    if close:
      end = len(inside.rstrip("。"))
      found.append((len(plain), len(plain) + end))
    plain += inside + after
  assert substrings.cut(plain, found) == kept


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=60), passages.map(text_of)), st.data())
@example("\ud800a b\ud800c", None)
def test_a_cut_takes_its_words_and_leaves_what_is_between_the_others(text, data):
  def split(text):
    found = words.split([text])
    return list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))

  own = split(text)
  flags = [True] * len(own) if data is None else data.draw(st.lists(st.booleans()))
  gone = [i < len(flags) and flags[i] for i in range(len(own))]
  spans = []
  for (start, end), cut, before in zip(own, gone, [False, *gone], strict=False):
    if cut and before:
      spans[-1] = (spans[-1][0], end)
    elif cut:
      spans.append((start, end))
  out = substrings.cut(text, spans)
  stay = [i for i, cut in enumerate(gone) if not cut]
  left = split(out)
  assert [out[a:b] for a, b in left] == [text[own[i][0] : own[i][1]] for i in stay]
  for k, (i, j) in enumerate(zip(stay, stay[1:], strict=False)):
    if j == i + 1:
      assert out[left[k][1] : left[k + 1][0]] == text[own[i][1] : own[j][0]]


def test_share_is_of_characters():
  assert substrings.share("abcde fghi", [(0, 2), (6, 10)]) == 0.6
  assert substrings.share("", []) == 0


def test_memory_of_the_reduce_is_bounded_by_its_partition(tmp_path):
  rng = np.random.default_rng(0)
  files = [tmp_path / f"{i}.npy" for i in range(8)]
  for file in files:
    rows = np.zeros(100_000, substrings.WINDOW)
    rows["hash"] = np.sort(rng.integers(0, 2**64, len(rows), dtype=np.uint64))
    rows["hash"][:1024] = np.arange(1024, dtype=np.uint64) << np.uint64(54)  # In every file.
    rows["word"] = np.arange(len(rows))
    rows.sort(order="hash")
    np.save(file, rows)
  peaks, sizes = [], []
  for partitions in (1, 8):
    tracemalloc.start()
    sizes.append(len(substrings.repeated(files, 0, partitions)))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert sizes == [8192, 1024]
  for peak, size, windows in zip(peaks, sizes, (800_000, 100_000), strict=True):
    assert peak < 11 * windows + 80 * size + 50_000


def test_bad_arguments_and_files_are_named(tmp_path):
  with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
    substrings.windows(["a"], 0)
  with pytest.raises(ValueError, match=r"partition must be in \[0, 2\), got 2"):
    substrings.repeated([], 2, 2)
  (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
  np.save(tmp_path / "other.npy", np.zeros(3))
  for name in ("cut.npy", "other.npy", "missing.npy"):
    with pytest.raises(UserError, match=f"cannot read .*{name} .*: remove it and make it again"):
      substrings.repeated([tmp_path / name])
  rows = substrings.repeated([substrings.windows(["a b", "a b"], 2)])
  empty = substrings.quote([], rows[:0])
  with pytest.raises(ValueError, match="words 0 to 2 are not quoted"):
    substrings.spans(["a b", "a b"], rows, lambda part: empty, 2)
