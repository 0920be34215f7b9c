"""Statistics of a corpus, against plain counting."""

from collections import Counter

import pytest

from llm_jax.data.documents import Document
from llm_jax.data.pipeline import shards, statistics

TEXTS = ["The cat sat on the mat. The cat sat.", "a b", "Nothing is here twice but the cat sat on."]


def written(tmp_path, texts, name="0"):
  path = str(tmp_path / f"{name}.jsonl")
  shards.write(path, [Document(f"{name}{i}", t, "", f"{name}.txt") for i, t in enumerate(texts)])
  return path


def test_counts_are_those_of_plain_python(tmp_path):
  found = statistics.total([statistics.shard("", written(tmp_path, TEXTS))])
  assert [(row["words"], row["documents"]) for row in found["lengths"]] == [(2, 1), (8, 2)]
  assert found["sources"] == [
    {"source": "0.txt", "documents": 3, "bytes": sum(len(t) for t in TEXTS)}
  ]
  plain = Counter()
  for text in TEXTS:
    words = text.lower().replace(".", "").split()
    plain.update(" ".join(words[i : i + 3]) for i in range(len(words) - 2))
  assert {r["phrase"].replace(".", ""): r["times"] for r in found["grams"]["3"]} == plain
  assert found["grams"]["3"][0] == {"phrase": "the cat sat", "times": 3}


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shards_add_up(tmp_path, parts):
  texts = [*TEXTS, *TEXTS[:1]]
  paths = [written(tmp_path, texts[i::parts], str(i)) for i in range(parts)]
  found = statistics.total(statistics.shard("", path) for path in paths)
  assert sum(row["documents"] for row in found["lengths"]) == 4
  assert sum(row["documents"] for row in found["languages"]) == 4
  assert found["grams"]["3"][0] == {"phrase": "the cat sat", "times": 5}
  assert len(found["sources"]) == parts


def test_an_empty_shard_counts_nothing(tmp_path):
  found = statistics.total([statistics.shard("", written(tmp_path, []))])
  assert found["lengths"] == found["languages"] == found["sources"] == []
