"""Duplicates against another corpus, by containment, and with clusters joined in rounds."""

import json
import random

import numpy as np
import pytest

from llm_jax.data import dedup, jsonl
from llm_jax.data.dedup import components, search, verify
from llm_jax.data.pipeline import engines, recipe, shards
from llm_jax.errors import UserError

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "prstvz"]


def passage(rng, size=120):
  return rng.choices(WORDS, k=size)


def near(rng, words):
  """A copy with one word of the middle replaced: Jaccard similarity about .92."""
  copy = list(words)
  copy[rng.randrange(20, 100)] = "changed"
  return copy


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows))


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def two_corpora(tmp_path):
  """A corpus of 60, of which 10 are copies and 10 near copies of another one's documents."""
  rng = random.Random(3)
  other = [passage(rng) for _ in range(40)]
  mine = [passage(rng) for _ in range(40)]
  mine += [list(words) for words in other[:10]] + [near(rng, words) for words in other[10:20]]
  # The other corpus repeats itself: that is none of our business.
  other += [list(other[0]), near(rng, other[1]), near(rng, mine[0])]
  write(tmp_path / "mine.jsonl", [(f"m{i}", " ".join(words)) for i, words in enumerate(mine)])
  write(tmp_path / "other.jsonl", [(f"o{i}", " ".join(words)) for i, words in enumerate(other)])
  return tmp_path


def test_what_another_corpus_has_goes_from_this_one_only(two_corpora):
  report = dedup.deduplicate(
    two_corpora / "mine.jsonl", two_corpora / "out", against=two_corpora / "other.jsonl"
  )
  kept = [row["id"] for row in read(two_corpora / "out/kept/mine.jsonl")]
  assert kept == [f"m{i}" for i in range(1, 40)]  # m0 has a near copy in the other corpus.
  removed = {row["id"]: row for row in read(two_corpora / "out/removed.jsonl")}
  assert set(removed) == {"m0", *(f"m{i}" for i in range(40, 60))}
  assert all(row["in"] == str(two_corpora / "other.jsonl") for row in removed.values())
  assert [removed[f"m{i}"]["rule"] for i in range(40, 60)] == ["exact"] * 10 + ["near"] * 10
  assert removed["m55"]["kept"] == "o15"
  assert report["documents"] == 60
  assert report["kept"] == 39
  clusters = read(two_corpora / "out/clusters.jsonl")
  assert all(any(m.startswith("m") for m in row["members"]) for row in clusters)
  assert sum(report["removed"].values()) == 21


def test_equal_ids_in_the_other_corpus_are_no_clash(tmp_path):
  write(tmp_path / "a.jsonl", [("x", "one two three four five six")])
  write(tmp_path / "b.jsonl", [("x", "One two  three four five six")])
  dedup.deduplicate(tmp_path / "a.jsonl", tmp_path / "out", against=tmp_path / "b.jsonl")
  (row,) = read(tmp_path / "out/removed.jsonl")
  assert (row["id"], row["kept"], row["rule"]) == ("x", "x", "exact")
  assert row["in"].endswith("b.jsonl")


@pytest.mark.parametrize("parts", [1, 3])
def test_the_step_drops_what_a_source_holds(two_corpora, parts, monkeypatch):
  from llm_jax.data.pipeline import inputs

  monkeypatch.setattr(inputs, "_PLAIN", 40_000 // parts)
  step = f"duplicates(threshold=0.7, against='{two_corpora / 'other.jsonl'}')"
  with engines.Local() as engine:
    made = recipe.run((step,), two_corpora / "mine.jsonl", two_corpora / f"work{parts}", engine)
  kept = [d.id for path in made.documents for d in shards.documents(path)]
  assert kept == [f"m{i}" for i in range(1, 40)]
  drops = [row for path in made.drops for _, row in jsonl.rows(jsonl.Range(path))]
  reasons = {row["id"]: row["reason"] for row in drops}
  assert reasons["m40"] == f"exact duplicate in {two_corpora / 'other.jsonl'}"
  assert reasons["m50"] == f"near duplicate in {two_corpora / 'other.jsonl'}"


def test_pages_that_are_not_extracted_are_no_reference(tmp_path):
  write(tmp_path / "mine.jsonl", [("a", "one two three")])
  (tmp_path / "page.html").write_text("<p>one two three</p>")
  step = f"duplicates(against='{tmp_path / 'page.html'}')"
  with engines.Local() as engine, pytest.raises(UserError, match="prepare them first"):
    recipe.run((step,), tmp_path / "mine.jsonl", tmp_path / "work", engine)
  with engines.Local() as engine, pytest.raises(UserError, match=r'there is no "gone"'):
    recipe.run(("duplicates(against='gone')",), tmp_path / "mine.jsonl", tmp_path / "w2", engine)


def test_containment_takes_the_part_of_the_one_that_goes():
  a, b = np.arange(10, dtype=np.uint64), np.arange(6, 12, dtype=np.uint64)
  assert verify.containment(a, b) == 4 / 6
  assert verify.containment(b, a) == 4 / 10
  assert verify.containment(a, b[:0]) == 1.0
  pairs = np.array([[0, 1], [1, 0]])
  assert verify.possible(pairs, np.array([10, 4]), 0.5, "containment").tolist() == [[0, 1]]
  assert verify.possible(pairs, np.array([10, 4]), 0.5).tolist() == []


def test_by_containment_a_beginning_goes_that_jaccard_keeps(tmp_path):
  words = passage(random.Random(5), 200)
  rows = [("whole", " ".join(words)), ("part", " ".join(words[:130]))]  # Jaccard .64
  write(tmp_path / "in.jsonl", rows)
  dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "jaccard", threshold=0.8)
  assert read(tmp_path / "jaccard/removed.jsonl") == []
  dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "part", threshold=0.8, measure="containment")
  assert read(tmp_path / "part/removed.jsonl") == [
    {"id": "part", "kept": "whole", "score": 1.0, "rule": "near"}
  ]
  with pytest.raises(UserError, match='did you mean "jaccard"'):
    dedup.deduplicate(tmp_path / "in.jsonl", tmp_path / "x", measure="jacard")


@pytest.mark.parametrize("workers", [1, 2])
def test_rounds_on_disk_join_the_clusters_that_memory_joins(two_corpora, tmp_path, workers):
  ranges = [jsonl.Range(str(two_corpora / f"{name}.jsonl")) for name in ("mine", "other")]
  with engines.Local(workers) as engine:
    table = search.columns(ranges, str(tmp_path / "w"), engine)
    inside = search.decide(table, str(tmp_path / "w"), engine, 0.7)
    rounds = search.decide(table, str(tmp_path / "w"), engine, 0.7, in_memory=0)
  assert inside.counts["edges"] > 10
  for name in ("kept", "scores", "exact", "edges", "clusters"):
    np.testing.assert_array_equal(getattr(inside, name), getattr(rounds, name))
  assert not (tmp_path / "w" / "rounds").exists()


def test_another_threshold_does_not_go_on_with_what_an_interrupted_call_left(
  two_corpora, tmp_path, monkeypatch
):
  source = two_corpora / "mine.jsonl"
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

    def stop(*_):
      raise KeyboardInterrupt

    patch.setattr(components, "survivors", stop)
    dedup.deduplicate(source, tmp_path / "out", threshold=0.99)
  found = dedup.deduplicate(source, tmp_path / "out", threshold=0.5)
  assert found == dedup.deduplicate(source, tmp_path / "new", threshold=0.5)


def test_a_run_that_is_not_finished_is_no_corpus(tmp_path):
  write(
    tmp_path / "half" / ".building" / "work" / "pass0" / "00000.jsonl", [("a", "one two three")]
  )
  write(tmp_path / "mine.jsonl", [("a", "one two three")])
  step = f"duplicates(against='{tmp_path / 'half'}')"
  for source, recipe_ in ((tmp_path / "mine.jsonl", (step,)), (tmp_path / "half", ("repair",))):
    with engines.Local() as engine, pytest.raises(UserError, match="is not finished"):
      recipe.run(recipe_, source, tmp_path / "work", engine)


def test_a_broken_reference_is_found_before_the_source_is_read(tmp_path, monkeypatch):
  from llm_jax.data.pipeline import passes

  write(tmp_path / "mine.jsonl", [("a", "one two three")])
  (tmp_path / "other.jsonl.gz").write_bytes(b"\x1f\x8b\x08\0broken")
  monkeypatch.setattr(passes, "run", None)
  step = f"duplicates(against='{tmp_path / 'other.jsonl.gz'}')"
  with engines.Local() as engine, pytest.raises(UserError, match="other.jsonl.gz"):
    recipe.run((step,), tmp_path / "mine.jsonl", tmp_path / "work", engine)


def test_what_would_be_replaced_is_neither_source_nor_reference(tmp_path):
  write(tmp_path / "b.jsonl", [("b", "four five six")])
  write(tmp_path / "a.jsonl", [("a", "one two three")])
  dedup.deduplicate(tmp_path / "b.jsonl", tmp_path / "o")
  with pytest.raises(UserError, match="would be replaced"):
    dedup.deduplicate(tmp_path / "a.jsonl", tmp_path / "o", against=tmp_path / "o/kept")
  assert read(tmp_path / "o/kept/b.jsonl") == [{"id": "b", "text": "four five six"}]
  with pytest.raises(UserError, match="would be replaced"):
    dedup.deduplicate(tmp_path / "o/removed.jsonl", tmp_path / "o")
