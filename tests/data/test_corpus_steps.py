"""Steps on the whole corpus: what they find does not depend on how it is cut into shards."""

import random

import pytest

from llm_jax.data.documents import Document
from llm_jax.data.pipeline import engines, recipe, shards

SLOW = pytest.mark.slow
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "prstvz"]


def sentence(rng, size=12):
  return " ".join(rng.choices(WORDS, k=size)) + "."


def cleaned(tmp_path, texts, step, parts=1, urls=None):
  """The documents that a step leaves, and the drops."""
  source = tmp_path / f"in{parts}"
  source.mkdir(exist_ok=True)
  rows = [
    {"id": f"d{i:03d}", "text": text, "url": urls[i] if urls else ""}
    for i, text in enumerate(texts)
  ]
  size = -(-len(rows) // parts)
  for i in range(parts):
    # Files above the limit of those that go together become shards of their own.
    part = rows[i * size : (i + 1) * size]
    shards.write(str(source / f"{i}.jsonl"), part)
  with engines.Local() as engine:
    made = recipe.run((step,), source, tmp_path / f"work{parts}{len(step)}", engine)
  documents = [d for path in made.documents for d in shards.documents(path)]
  drops = [row for path in made.drops for row in _rows(path)]
  return documents, drops, made


def _rows(path):
  from llm_jax.data import jsonl

  return [row for _, row in jsonl.rows(jsonl.Range(path))]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  from llm_jax.data.pipeline import inputs

  monkeypatch.setattr(inputs, "_PLAIN", 1)
  monkeypatch.setattr(inputs, "_PARTS", 1)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_first_of_an_address_stays(tmp_path, parts):
  urls = ["a", "b", "a", "", "", "b", "c"]
  documents, drops, _ = cleaned(tmp_path, list("1234567"), "same_address", parts, urls)
  assert [d.text for d in documents] == ["1", "2", "4", "5", "7"]
  assert [d["reason"] for d in drops] == ["same address or id"] * 2


@pytest.mark.long
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_lines_on_many_pages_go_and_others_stay(tmp_path, parts):
  rng = random.Random(0)
  texts = [f"Home of all the pages\n{sentence(rng)}\nshort\nshort" for _ in range(10)]
  texts += [f"{sentence(rng)}\nsaid on one page only\nsaid on one page only\nsaid on one page only"]
  documents, _, made = cleaned(tmp_path, texts, "common_lines(fraction=0.3)", parts)
  assert not any("Home of all" in d.text for d in documents)
  assert all("short" in d.text for d in documents[:10])
  assert documents[10].text == texts[10]
  assert made.funnel[-1].edited == {"different lines cut out": 1}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_first_of_equal_paragraphs_stays(tmp_path, parts):
  rng = random.Random(1)
  own = [sentence(rng) for _ in range(4)]
  shared = sentence(rng)
  texts = [f"{text}\n\n{shared}\n\nShort." for text in own] + [shared.upper()]
  documents, drops, made = cleaned(tmp_path, texts, "repeated_paragraphs", parts)
  assert documents[0].text == texts[0]
  assert [d.text for d in documents[1:]] == [f"{text}\n\nShort." for text in own[1:]]
  assert [(d["id"], d["reason"]) for d in drops] == [("d004", "nothing left")]
  assert made.funnel[-1].edited == {"parts cut out": 4}


@pytest.mark.long
@pytest.mark.parametrize("parts", [pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 4])
def test_repeated_stretches_are_cut_from_all_but_the_first(tmp_path, parts):
  rng = random.Random(2)
  planted = sentence(rng, 60)
  texts = [f"{sentence(rng, 30)}\n{planted}\n{sentence(rng, 30)}" for _ in range(4)]
  documents, _, made = cleaned(tmp_path, texts, "repeated_substrings(tokens=50)", parts)
  assert documents[0].text == texts[0]
  assert [d.text for d in documents[1:]] == [t.replace(f"{planted}\n", "") for t in texts[1:]]
  assert made.funnel[-1].edited["repeated windows found"] > 0


@pytest.mark.long
def test_documents_of_mostly_repeated_stretches_go_whole(tmp_path):
  rng = random.Random(3)
  planted = sentence(rng, 60)
  texts = [f"{planted} {sentence(rng, 300)}", f"{planted} {sentence(rng, 300)}", planted + " End."]
  step = "repeated_substrings(tokens=50, most=0.5)"
  documents, drops, _ = cleaned(tmp_path, texts, step)
  assert [d.text for d in documents] == texts[:2]
  assert [(d["id"], d["reason"]) for d in drops] == [("d002", "repeated stretches")]


@pytest.mark.long
@pytest.mark.parametrize("parts", [pytest.param(1, marks=SLOW), 3])
def test_duplicates_say_for_whom_they_go(tmp_path, parts):
  rng = random.Random(4)
  texts = [sentence(rng, 200) for _ in range(5)]
  texts += [texts[0].upper(), texts[1].replace("bap", "bup", 1) + " more"]
  documents, drops, made = cleaned(tmp_path, texts, "duplicates(threshold=0.7)", parts)
  assert {d["id"]: (d["kept"], d["reason"]) for d in drops} == {
    "d005": ("d000", "exact duplicate"),
    "d001": ("d006", "near duplicate"),
  }
  assert len(documents) == 5
  (folder,) = made.records.values()
  assert sorted(p.name for p in folder.glob("*.jsonl")) == [
    "clusters.jsonl", "edges.jsonl", "removed.jsonl",
  ]  # fmt: skip


def test_a_recipe_without_documents_ends_empty(tmp_path):
  steps = "same_address common_lines duplicates repeated_paragraphs repeated_substrings".split()
  for step in steps:
    documents, drops, _ = cleaned(tmp_path, [], step)
    assert documents == drops == []


def test_documents_pass_through_files_unchanged(tmp_path):
  path = str(tmp_path / "a.jsonl")
  rows = [Document("1", "é\ud800\u2028 \n", "u", "s"), Document("2", "", "", "")]
  shards.write(path, rows)
  assert list(shards.documents(path)) == rows
