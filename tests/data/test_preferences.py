"""Preference pairs: four kinds of rejected answers, each worse by the gold score."""

from collections import Counter

import numpy as np
import pytest

from llm_jax.data import gold, preferences, questions
from llm_jax.data.preferences import Answer
from llm_jax.data.questions import Question
from llm_jax.errors import UserError


def asked(count):
  return [
    Question(f"m.f{i}", f"f{i}", f"What does f{i} do?", f"Return item {i} of the list {i}.", "", "")
    for i in range(count)
  ]


SAMPLES = [[Answer("Return item."), Answer("Return list."), Answer("Return it.", False)]] * 8


def test_every_question_gets_a_pair_of_each_kind():
  pairs = preferences.build(asked(8), SAMPLES, seed=0)
  assert {p.kind for p in pairs} == set(preferences.KINDS)
  counts = Counter(p.kind for p in pairs)
  assert counts["other_object"] == counts["cut_off"] == counts["repetitive"] == 8
  assert 8 <= counts["sft_sample"] <= 16


def test_easy_pairs_can_be_few_and_the_others_stay():
  few = preferences.build(asked(8), SAMPLES, seed=0, easy=0.0)
  assert {p.kind for p in few} == {"other_object", "sft_sample"}
  assert Counter(p.kind for p in few)["other_object"] == 8


def test_the_chosen_answer_always_has_the_higher_gold_score():
  truths = {q.prompt: q.answer for q in asked(8)}
  for pair in preferences.build(asked(8), SAMPLES, seed=0):
    mine, theirs = (
      gold.score(a.text, truths[pair.prompt], a.ended).total for a in (pair.chosen, pair.rejected)
    )
    assert (pair.gold_chosen, pair.gold_rejected) == (mine, theirs)
    assert mine > theirs


def test_length_alone_does_not_tell_the_better_sample():
  words = "Return item number and the list of all items in it.".split()
  rng = np.random.default_rng(0)
  samples = [[Answer(" ".join(rng.choice(words, n))) for n in range(2, 10)] for _ in range(400)]
  pairs = preferences.build(asked(400), samples, seed=0)
  gaps = [
    len(p.chosen.text.split()) - len(p.rejected.text.split())
    for p in pairs
    if p.kind == "sft_sample"
  ]
  longer, shorter = (sum(np.sign(gap) == sign for gap in gaps) for sign in (1, -1))
  assert len(gaps) > 300
  assert 0.4 < longer / (longer + shorter) < 0.6


def test_samples_that_score_alike_make_no_pair():
  pairs = preferences.build(asked(8), [[Answer("Same."), Answer("Same.")]] * 8, seed=0)
  assert "sft_sample" not in {p.kind for p in pairs}


def test_no_rejected_answer_of_another_object_is_the_true_one():
  for pair in preferences.build(asked(8), SAMPLES, seed=3):
    assert pair.rejected != pair.chosen


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_question_meets_so_many_other_answers(others):
  pairs = preferences.build(asked(8), [[]] * 8, seed=0, easy=0, others=others)
  assert len(pairs) == len(set(pairs)) == 8 * others
  assert all(p.kind == "other_object" and p.rejected != p.chosen for p in pairs)


def test_a_seed_fixes_the_pairs_and_files_keep_them(tmp_path):
  pairs = preferences.build(asked(8), SAMPLES, seed=1)
  assert pairs == preferences.build(asked(8), SAMPLES, seed=1)
  assert pairs != preferences.build(asked(8), SAMPLES, seed=2)
  preferences.write(tmp_path / "p.jsonl", pairs)
  assert preferences.read(tmp_path / "p.jsonl") == pairs


@pytest.mark.parametrize("read", [preferences.read, questions.read])
@pytest.mark.parametrize(
  ("line", "says"),
  [
    (b'{"prompt": "x"}', "not a (preference pair|question)"), (b"[1]", "where an object must be"),
    (b'{"prompt": "\xff"}', "not UTF-8"), (b"{", "not JSON"),
  ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, read, line, says):
  path = tmp_path / "p.jsonl"
  path.write_bytes(line + b"\n")
  with pytest.raises(UserError, match=rf"p\.jsonl, line 1: .*{says}"):
    read(path)
