"""What the tool shows of clusters and of two documents side by side."""

import json

import pytest

from llm_jax.data import dedup
from tools import inspect_duplicates

STORY = "it was a dark and stormy night when the captain said to his mate tell us a tale".split()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """Two near copies, two exact ones, and one text that stands in another corpus."""
  root = tmp_path_factory.mktemp("found")
  longer = [f"{word}{i}" for i in range(6) for word in STORY]
  changed = [*longer[:50], "CHANGED", *longer[51:]]
  rows = {"a": longer, "b": changed, "c": STORY, "d": STORY, "e": [w + "x" for w in longer]}
  text = "".join(json.dumps({"id": i, "text": " ".join(words)}) + "\n" for i, words in rows.items())
  (root / "docs.jsonl").write_text(text)
  (root / "other.jsonl").write_text(json.dumps({"id": "o", "text": " ".join(rows["e"])}) + "\n")
  dedup.deduplicate(root / "docs.jsonl", root / "out", against=root / "other.jsonl")
  return root


def shown(capsys, found, *words):
  code = inspect_duplicates.main(
    [f"--found={found / 'out'}", f"--source={found / 'docs.jsonl'}", *words]
  )
  return code, *capsys.readouterr()


def test_the_overview_counts_and_marks_what_differs(found, capsys):
  code, out, err = shown(capsys, found, "--color=never")
  assert (code, err) == (0, "")
  assert "3 clusters, 3 documents go" in out
  assert "[-night2-] {+CHANGED+}" in out or "[-CHANGED-] {+" in out
  assert "d -> c  exact, similarity 1.000" in out
  assert "\x1b" not in out


def test_one_document_beside_the_one_that_stays(found, capsys):
  _, out, _ = shown(capsys, found, "--id=e", "--color=always")
  assert "stays in" in out and "other.jsonl" in out and "\x1b[1m" in out
  _, out, _ = shown(capsys, found, "--id=d")
  assert "the same words" in out


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--id=aa"], "aa did not go"),
    (["--found=nowhere"], "no clusters.jsonl there"),
  ],
)
def test_bad_input_is_one_line(found, capsys, words, says):
  code, _, err = shown(capsys, found, *words)
  assert code == 2
  assert says in err and err.count("\n") == 1


def test_differences_are_all_that_is_marked():
  lines = "".join(inspect_duplicates.differences("a b c d", "a b x d"))
  marks = lines.count(inspect_duplicates.RED), lines.count(inspect_duplicates.GREEN)
  assert marks == (1, 1)
  assert "[-c-]" in lines and "{+x+}" in lines
  assert list(inspect_duplicates.differences("a b", "a b")) == []
