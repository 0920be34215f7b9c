"""Preference pairs: four kinds of rejected answers, each worse by the gold score."""

import pytest

from llm_jax.data import gold, preferences
from llm_jax.data.preferences import Answer
from llm_jax.data.questions import Question
from llm_jax.errors import UserError


def asked(count):
  return [
    Question(f"m.f{i}", f"f{i}", f"What does f{i} do?", f"Return item {i} of the list {i}.", "", "")
    for i in range(count)
  ]


SAMPLES = [[Answer("Return item."), Answer("Return the list of items.", False)]] * 8


def test_every_question_gets_a_pair_of_each_kind():
  pairs = preferences.build(asked(8), SAMPLES, seed=0)
  assert {p.kind for p in pairs} == set(preferences.KINDS)
  assert len(pairs) == 8 * len(preferences.KINDS)


def test_the_chosen_answer_always_has_the_higher_gold_score():
  truths = {q.prompt: q.answer for q in asked(8)}
  for pair in preferences.build(asked(8), SAMPLES, seed=0):
    mine, theirs = (
      gold.score(a.text, truths[pair.prompt], a.ended).total for a in (pair.chosen, pair.rejected)
    )
    assert (pair.gold_chosen, pair.gold_rejected) == (mine, theirs)
    assert mine > theirs


def test_samples_that_score_alike_make_no_pair():
  pairs = preferences.build(asked(8), [[Answer("Same."), Answer("Same.")]] * 8, seed=0)
  assert "sft_sample" not in {p.kind for p in pairs}


def test_no_rejected_answer_of_another_object_is_the_true_one():
  for pair in preferences.build(asked(8), SAMPLES, seed=3):
    assert pair.rejected != pair.chosen


def test_a_seed_fixes_the_pairs_and_files_keep_them(tmp_path):
  pairs = preferences.build(asked(8), SAMPLES, seed=1)
  assert pairs == preferences.build(asked(8), SAMPLES, seed=1)
  assert pairs != preferences.build(asked(8), SAMPLES, seed=2)
  preferences.write(tmp_path / "p.jsonl", pairs)
  assert preferences.read(tmp_path / "p.jsonl") == pairs


def test_a_bad_line_is_named(tmp_path):
  path = tmp_path / "p.jsonl"
  path.write_text('{"prompt": "x"}\n')
  with pytest.raises(UserError, match=r"p\.jsonl:1: not a preference pair"):
    preferences.read(path)
