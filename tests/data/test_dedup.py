"""Deduplication: what is found, what is never removed, and that order and workers do not matter."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import dedup
from llm_jax.data.dedup import candidates, components, signatures, table, verify
from llm_jax.errors import UserError

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "prstvz"] * 4
VOCABULARY = [f"{word}{i // 240}" for i, word in enumerate(WORDS)]


def passage(rng, size=300):
  return " ".join(rng.choices(VOCABULARY, k=size))


def edited(rng, text, changes):
  words = text.split(" ")
  for i in rng.sample(range(len(words)), changes):
    words[i] = rng.choice(VOCABULARY) + "x"
  return " ".join(words)


def true_jaccard(a, b):
  """Independent of the code under test: sets of tuples of words."""
  a, b = (
    {tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a.split(), b.split())
  )
  return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def corpus():
  """300 passages, 150 edited copies of which many are near duplicates, 30 exact copies."""
  rng = random.Random(0)
  base = [passage(rng) for _ in range(300)]
  texts = base + [edited(rng, base[i], i % 15) for i in range(150)] + base[-30:]
  return texts, [f"d{i:04d}" for i in range(len(texts))]


def check(texts, ids, kept, removed, threshold=0.7):
  """What must hold of any result."""
  stays = {ids[i] for i in kept}
  text_of = dict(zip(ids, texts, strict=True))
  assert kept == sorted(kept)
  assert sorted(stays | {row["id"] for row in removed}) == sorted(ids)
  assert len(stays) + len(removed) == len(ids)
  for row in removed:
    assert row["kept"] in stays
    mine, other = (signatures.shingles(text_of[row[key]]) for key in ("id", "kept"))
    assert row["score"] == verify.jaccard(mine, other) >= threshold
    assert row["rule"] in ("exact", "near")
    assert row["rule"] == "near" or row["score"] == 1.0
    rank = [(-len(text_of[row[key]]), row[key]) for key in ("kept", "id")]
    assert rank[0] < rank[1]


def test_invariants_and_recall_on_planted_copies(corpus):
  texts, ids = corpus
  kept, removed = dedup.near_duplicates(texts, ids)
  check(texts, ids, kept, removed)
  pairs = [(i, 300 + i) for i in range(150)] + [(270 + i, 450 + i) for i in range(30)]
  gone = {row["id"] for row in removed}
  similarity = [true_jaccard(texts[a], texts[b]) for a, b in pairs]
  found = [ids[a] in gone or ids[b] in gone for a, b in pairs]
  above = [f for f, s in zip(found, similarity, strict=True) if s >= 0.7]
  expected = np.mean(
    [1 - (1 - s**signatures.ROWS) ** signatures.BANDS for s in similarity if s >= 0.7]
  )
  assert 60 < len(above) < 180  # Both sides of the threshold are there.
  assert np.mean(above) >= expected - 0.02
  assert not any(f for f, s in zip(found, similarity, strict=True) if s < 0.7)
  assert all(found[150:])
  assert len(gone) == sum(found)  # And nothing else goes.


def test_order_does_not_matter(corpus):
  texts, ids = corpus
  kept, removed = dedup.near_duplicates(texts, ids)
  for seed in range(3):
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    again, gone = dedup.near_duplicates([texts[i] for i in order], [ids[i] for i in order])
    assert sorted(order[i] for i in again) == kept
    assert gone == removed


def test_workers_do_not_matter(corpus):
  texts, ids = corpus
  assert dedup.find(texts, ids, workers=2) == dedup.find(texts, ids, workers=1)


@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.lists(st.sampled_from(["a", "b", "é", "漢字", "-", "a\n", "B"]), max_size=12).map(" ".join),
    max_size=12,
  ),
  st.floats(0.1, 1.0),
)
def test_invariants_on_any_texts(texts, threshold):
  ids = [f"{i}" for i in range(len(texts))]
  kept, removed = dedup.near_duplicates(texts, ids, threshold)
  check(texts, ids, kept, removed, threshold)
  plain = [signatures.normalise(texts[i]) for i in kept]
  assert len(set(plain)) == len(plain)  # No exact duplicate is ever left.


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1), st.integers(0, 3))
def test_case_and_white_space_do_not_make_a_text_new(text, spaces):
  copy = f"\n{text}".replace(" ", " " * (spaces + 1)) + "\t"
  kept, removed = dedup.near_duplicates([text, copy], ["a", "b"])
  assert len(kept) == len(removed) == 1
  assert removed[0]["rule"] == "exact"


def test_longest_text_stays_then_the_smallest_id():
  text = passage(random.Random(1))
  longer = text + " tail"
  _, removed = dedup.near_duplicates([text, longer, text], ["a", "b", "c"])
  assert [(row["id"], row["kept"]) for row in removed] == [("a", "b"), ("c", "b")]
  _, removed = dedup.near_duplicates([text, text.upper()], ["z", "y"])
  assert [(row["id"], row["kept"]) for row in removed] == [("z", "y")]


def test_a_template_does_not_chain_pages_into_one():
  # Three quarters of every page are the same: many share bands, none is a duplicate of another.
  rng = random.Random(2)
  template = passage(rng, 225)
  texts = [f"{template} {passage(rng, 75)}" for _ in range(200)]
  ids = [str(i) for i in range(200)]
  result = dedup.find(texts, ids)
  assert result.counts["candidates"] > 500
  assert (result.kept, result.removed, result.edges) == (list(range(200)), [], [])


def test_a_chain_of_small_changes_keeps_its_far_end():
  # Every version is near the one before, the last shares nothing with the first.
  rng = random.Random(3)
  words = passage(rng, 400).split()
  texts = []
  for step in range(0, 400, 10):
    words[step : step + 10] = [f"new{step + i}word" for i in range(10)]
    texts.append(" ".join(words))
  ids = [f"v{i:02d}" for i in range(len(texts))]
  result = dedup.find(texts, ids)
  check(texts, ids, result.kept, result.removed)
  assert result.counts["largest_cluster"] > 30
  assert len(result.kept) > 3


def test_copies_follow_their_original_to_its_survivor():
  text = passage(random.Random(4))
  longest = text + " more words at the end"
  _, removed = dedup.near_duplicates([text, text.upper(), longest], ["a", "b", "c"])
  assert [(row["id"], row["kept"], row["rule"]) for row in removed] == [
    ("a", "c", "near"),
    ("b", "c", "near"),
  ]


def test_threshold_one_leaves_only_equal_sets_of_ngrams():
  rng = random.Random(5)
  text = passage(rng)
  texts = [text, edited(rng, text, 1), text + "."]
  kept, removed = dedup.near_duplicates(texts, ["a", "b", "c"], threshold=1.0)
  assert len(kept) == 2
  assert [(row["id"], row["kept"]) for row in removed] == [("a", "c")]


def test_shingles_are_the_distinct_word_5grams():
  assert len(signatures.shingles("a b c d e f g")) == 3
  assert len(signatures.shingles("a b a b a b a b a b")) == 2
  assert len(signatures.shingles("one two")) == len(signatures.shingles("")) == 1
  assert len(signatures.shingles("漢字漢字仮名交じり文")) == 6  # A character is a word.
  same = ["A-b, c d: e\u0301 (f)", "a b c d \u00e9 f"]
  np.testing.assert_array_equal(*map(signatures.shingles, same))
  assert signatures.shingles("+ - *")[0] != signatures.shingles("+ - /")[0]
  assert len(signatures.shingles("broken \ud800 half")) == 1


@pytest.mark.parametrize("size", [40, 400, 20_000])
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9, 1.0])
def test_minhash_agrees_as_often_as_sets_overlap(size, shared):
  rng = np.random.default_rng(size)
  agree, truth = [], []
  for _ in range(30 if size < 1000 else 5):
    grams = rng.integers(0, 2**64, size=2 * size, dtype=np.uint64)
    common = int(size * shared)
    a, b = grams[:size], np.r_[grams[:common], grams[size : 2 * size - common]]
    agree.append(np.mean(np.equal(*signatures.minhash([a, b]))))
    truth.append(common / (2 * size - common))
  deviation = np.sqrt(truth[0] * (1 - truth[0]) / (signatures.BANDS * signatures.ROWS * len(agree)))
  assert abs(np.mean(agree) - np.mean(truth)) <= 4.5 * deviation


def test_candidates_are_all_pairs_of_small_buckets_and_few_of_large_ones():
  bands = np.array([[1, 5], [1, 6], [2, 6], [1, 7], [3, 8]], np.uint64)
  assert candidates.pairs(bands.T, len(bands)).tolist() == [[0, 1], [0, 3], [1, 2], [1, 3]]
  one_bucket = candidates.pairs(np.zeros((1, 10), np.uint64), 10)
  assert len(one_bucket) == 45
  large = candidates.pairs(np.zeros((18, 5000), np.uint64), 5000)
  assert 5000 < len(large) <= 9 * 5000
  assert set(large[:, 1]) == set(range(1, 5000))
  for size in (0, 1):
    assert candidates.pairs(np.zeros((18, size), np.uint64), size).shape == (0, 2)


def test_jaccard_in_closed_form():
  a, b = np.array([1, 2, 3, 5]), np.array([2, 3, 9])
  assert verify.jaccard(a, b) == verify.jaccard(b, a) == 2 / 5
  assert verify.jaccard(a, a) == verify.jaccard(a[:0], b[:0]) == 1.0
  assert verify.jaccard(a, b[:0]) == 0.0


def test_sizes_alone_rule_pairs_out_only_below_the_threshold():
  rng = np.random.default_rng(0)
  sets = [np.unique(rng.integers(0, 60, size=rng.integers(1, 60))) for _ in range(40)]
  pairs = np.array([(a, b) for a in range(40) for b in range(a)])
  sizes = np.array(list(map(len, sets)))
  left = {tuple(pair) for pair in verify.possible(pairs, sizes, 0.5)}
  assert len(left) < len(pairs)
  assert all((a, b) in left for a, b in pairs.tolist() if verify.jaccard(sets[a], sets[b]) >= 0.5)


def test_survivors_try_others_of_the_cluster():
  # 2 is unlike 0 and like 1; but 1 goes to 0, so 2 stays, and 3 goes to 2.
  edges, scores = np.array([(0, 1), (1, 2), (2, 3)]), np.array([0.9, 0.9, 0.85])
  removed, kept, score = components.survivors(edges, scores, 0.8, lambda a, b: 0.1)
  assert (removed.tolist(), kept.tolist(), score.tolist()) == ([1, 3], [0, 2], [0.9, 0.85])
  labels = components.labels(np.array([(4, 5), (1, 9), (5, 9)]), 10)
  assert labels.tolist() == [0, 1, 2, 3, 1, 1, 6, 7, 8, 1]


def test_a_text_of_a_megabyte_is_no_trouble():
  rng = random.Random(6)
  text = passage(rng, 180_000)
  assert len(text) > 700_000
  kept, removed = dedup.near_duplicates([text, edited(rng, text, 500), "short"], list("abc"))
  assert (len(kept), len(removed)) == (2, 1)


def test_bad_arguments():
  with pytest.raises(ValueError, match="2 texts and 1 ids"):
    dedup.near_duplicates(["a", "b"], ["a"])
  with pytest.raises(ValueError, match="only 1 differ"):
    dedup.near_duplicates(["a", "b"], ["a", "a"])
  with pytest.raises(ValueError, match="threshold"):
    dedup.near_duplicates(["a"], ["a"], threshold=0.0)
  assert dedup.near_duplicates([], []) == ([], [])


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_in_files_out(corpus, tmp_path):
  texts, ids = corpus
  rows = [{"text": t, "id": i, "extra": {"n": 1}} for t, i in zip(texts, ids, strict=True)]
  write(tmp_path / "in" / "b.jsonl", rows[:200])
  write(tmp_path / "in" / "a.jsonl", rows[200:])
  report = dedup.deduplicate(tmp_path / "in", tmp_path / "out")
  kept, removed = dedup.near_duplicates(texts, ids)
  out = read(tmp_path / "out/kept/b.jsonl") + read(tmp_path / "out/kept/a.jsonl")
  assert out == [rows[i] for i in kept]  # Whole records, in their files' order.
  assert read(tmp_path / "out/removed.jsonl") == removed
  edges = read(tmp_path / "out/edges.jsonl")
  assert len(edges) == report["edges"]
  assert all(edge["score"] >= 0.7 for edge in edges)
  assert report == json.loads((tmp_path / "out/report.json").read_text())
  assert report["documents"] == len(texts)
  assert report["kept"] == len(kept)
  assert sum(report["removed"].values()) == len(removed)


def test_workers_give_the_same_bytes_and_old_results_go(corpus, tmp_path):
  texts, ids = corpus
  write(tmp_path / "in.jsonl", [{"id": i, "text": t} for t, i in zip(texts, ids, strict=True)])
  for workers in (1, 2):
    write(tmp_path / f"out{workers}/kept/stale.jsonl", [{"id": "old", "text": "old"}])
    dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / f"out{workers}", workers)
  first, second = (
    {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.json*")}
    for name in ("out1", "out2")
  )
  assert first == second
  assert len(first) == 5  # kept/in.jsonl, removed, edges, clusters, report: nothing stale.


def test_an_interrupted_call_is_gone_on_with(corpus, tmp_path, monkeypatch):
  texts, ids = corpus
  write(tmp_path / "in.jsonl", [{"id": i, "text": t} for t, i in zip(texts, ids, strict=True)])
  whole = dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "whole")

  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(verify, "similarities", stop)
    dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "out")
  with monkeypatch.context() as patch:
    patch.setattr(table, "_blocks", stop)  # What was signed is not signed again.
    assert dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "out") == whole
  assert not (tmp_path / "out" / ".work").exists()
  for name in ("removed.jsonl", "edges.jsonl", "clusters.jsonl", "kept/in.jsonl"):
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_text_of_very_many_words_is_compared_by_its_hash_alone(monkeypatch):
  monkeypatch.setattr(table, "LONGEST", 250)
  rng = random.Random(7)
  long, short = passage(rng, 300), passage(rng, 200)
  texts = [long, edited(rng, long, 1), long.upper(), short, edited(rng, short, 1)]
  kept, removed = dedup.near_duplicates(texts, list("abcde"))
  assert [(row["id"], row["rule"]) for row in removed if row["id"] in "abc"] == [("c", "exact")]
  assert [row["rule"] for row in removed if row["id"] in "de"] == ["near"]


def test_number_ids_and_missing_last_newline(tmp_path):
  (tmp_path / "in.json").write_text('{"id": 7, "text": "a b"}\n\n{"id": 8, "text": "A b"}')
  dedup.deduplicate(tmp_path / "in.json", tmp_path / "out")
  assert read(tmp_path / "out/kept/in.jsonl") == [{"id": 7, "text": "a b"}]
  assert read(tmp_path / "out/removed.jsonl") == [
    {"id": 8, "kept": 7, "score": 1.0, "rule": "exact"}
  ]


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ('{"id": "a"', "not JSON"),
    ("[1]", "list"),
    ('{"text": "x"}', '"id" must be'),
    ('{"id": true, "text": "x"}', '"id" must be'),
    ('{"id": "b", "text": 3}', '"text" must be'),
    ('{"id": "a", "text": "x"}', "second time"),
  ],
)
def test_the_first_bad_row_is_named(tmp_path, row, reason):
  (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "x"}\n' + row + "\n")
  with pytest.raises(UserError, match=r"in\.jsonl, line 2: ") as error:
    dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "out")
  assert reason in str(error.value)
  assert not (tmp_path / "out").exists()


def test_bad_sources_are_named(tmp_path):
  with pytest.raises(UserError, match="missing"):
    dedup.deduplicate(tmp_path / "none.jsonl", tmp_path / "out")
  with pytest.raises(UserError, match="no .jsonl"):
    dedup.deduplicate(tmp_path, tmp_path / "out")
  write(tmp_path / "kept" / "a.jsonl", [{"id": "a", "text": "b"}])
  with pytest.raises(UserError, match="would be replaced"):
    dedup.deduplicate(tmp_path / "kept", tmp_path)
  assert (tmp_path / "kept" / "a.jsonl").exists()
