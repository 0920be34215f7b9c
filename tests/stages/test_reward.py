"""Reward model: what is said of it, and margins, soft labels and groups of its data."""

import json

import numpy as np
import pytest

from llm_jax import config
from llm_jax.data.intake import Intake
from llm_jax.data.posttraining import Compared
from llm_jax.data.preferences import Answer, Pair
from llm_jax.errors import UserError
from llm_jax.stages import pairs, reward, runs
from llm_jax.train.metrics import read
from tests.stages.conftest import tiny


def pair(kind="cut_off", **gold):
  gold = {"gold_chosen": 1.0, "gold_rejected": 0.5} | gold
  return Pair("q", Answer("yes"), Answer("no"), kind, **gold)


def test_accuracy_is_by_kind_and_a_tie_counts_one_half():
  found = [pair("cut_off"), pair("cut_off"), pair("repetitive"), pair("mine")]
  got = reward.accuracies(found, np.array([1.0, -1.0, 0.0, 2.0]))
  assert got == {"cut_off": 0.5, "repetitive": 0.5, "mine": 1.0}


def held(margins, *, probability=1.0, kind="a", longer=0):
  row = {"chosen": ([1] * (3 + longer), [0] + [1] * (2 + longer)), "rejected": ([1] * 3, [0, 1, 1])}
  return [Compared(row, kind, probability=probability) for _ in margins]


def test_calibration_of_a_model_that_says_what_is_so():
  """Of pairs with margin log(p / (1 - p)), a share p is ranked right: the error is 0."""
  margin = np.log(0.8 / 0.2)
  margin_N = np.array([margin] * 80 + [-margin] * 20)
  assert reward.calibration_error(margin_N, np.ones(100)) == pytest.approx(0, abs=1e-9)
  sure_N = np.array([30.0] * 80 + [-30.0] * 20)
  assert reward.calibration_error(sure_N, np.ones(100)) == pytest.approx(0.2)
  assert reward.calibration_error(np.zeros(10), np.ones(10)) == 0
  shy_N = np.full(10, 1e-6)
  assert reward.calibration_error(shy_N, np.ones(10)) == pytest.approx(0.5, abs=1e-5)


def test_calibration_does_not_care_which_answer_is_called_chosen():
  margin_N = np.random.default_rng(0).normal(size=500) * 2
  sure_N = np.random.default_rng(1).uniform(0.5, 1, 500)
  turn = np.random.default_rng(2).random(500) < 0.5
  turned = np.where(turn, -margin_N, margin_N), np.where(turn, 1 - sure_N, sure_N)
  got = reward.calibration_error(*turned)
  assert got == pytest.approx(reward.calibration_error(margin_N, sure_N))


def test_soft_labels_are_what_calibration_aims_at():
  margin_N = np.full(50, np.log(0.7 / 0.3))
  assert reward.calibration_error(margin_N, np.full(50, 0.7)) == pytest.approx(0)
  assert reward.calibration_error(margin_N, np.ones(50)) == pytest.approx(0.3)


def test_measures_of_held_out_pairs():
  margin_N = np.array([2.0, 1.0, -1.0, 0.0])
  apart = [held([0], longer=k)[0] for k in (2, 1, -1, 0)]
  got = reward.measures(apart, margin_N)
  assert (got["accuracy"], got["accuracy/a"], got["margin"]) == (0.625, 0.625, 0.5)
  assert got["length_correlation"] == pytest.approx(1)
  same = reward.measures(held(margin_N), margin_N)
  assert same["length_correlation"] == 0
  many = [Compared(apart[0].row, f"s{i}") for i in range(30) for _ in range(31 - i)]
  kinds = reward.measures(many, np.ones(len(many)))
  assert sum(name.startswith("accuracy/") for name in kinds) == 21 and "accuracy/other" in kinds


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def ranked(path, count=8):
  answers = [
    "Sort all the files.",
    "Sort all.",
    "Delete words.",
    "Delete all the words of a table.",
  ]
  return write(path, [
    {"prompt": f"Sort {i}?", "responses": answers, "scores": [3, 2, 1.0, 0]} for i in range(count)
  ])  # fmt: skip


@pytest.mark.long
def test_rankings_with_margins_and_groups_are_learned(prepared, start, tmp_path, capsys):
  cfg = tiny(
    config.Reward, prepared, init=start, preferences=ranked(tmp_path / "ranked.jsonl"), margin=0.3,
    validation=0.2, steps=16, optimizer=config.Optimizer(lr=1e-2, warmup=1),
  )  # fmt: skip
  reward.run(cfg, str(tmp_path / "run"))
  assert "rankings, 8 rows, 48 preferences kept" in capsys.readouterr().err
  last = [row for row in read(tmp_path / "run") if "eval/accuracy" in row][-1]
  names = ("accuracy", "accuracy/ranked", "margin", "calibration_error", "length_correlation")
  assert {f"eval/{name}" for name in names} <= last.keys()
  assert last["eval/accuracy"] == last["eval/accuracy/ranked"] > 0.9
  train = pairs.splits(cfg, Intake(tmp_path), runs.tokenizer(str(prepared)))[0]
  rows = pairs.numbered(train, margin=0.3)
  assert {round(row["margin"], 3) for row in rows} == {0.3, 0.6, 0.9}
  batch = next(reward._batches(cfg, train, rows))
  assert set(np.unique(batch["weight"]).round(4)) <= {0.0, np.float32(1 / 6).round(4)}


def test_probabilities_go_along_only_where_they_are_asked_for(prepared, start, tmp_path):
  path = write(tmp_path / "soft.jsonl", [
    {"prompt": f"Sort {i}?", "chosen": "All.", "rejected": "No.", "probability": p}
    for i, p in enumerate([1.0, 0.75] * 4)
  ])  # fmt: skip
  cfg = tiny(config.Reward, prepared, init=start, preferences=path, validation=0.0)
  found = pairs.splits(cfg, Intake(tmp_path), runs.tokenizer(str(prepared)))[0]
  assert [row["probability"] for row in pairs.numbered(found)] == [1.0, 0.75] * 4
  assert all("probability" not in row for row in pairs.numbered(found, soft=False))
  assert all("probability" not in row for row in pairs.numbered(found[::2]))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"margin": 1.0, "loss": "hinge()"}, "no term of the loss takes the batch's margin"),
    ({"margin": -1.0}, "config.margin must not be negative"),
    ({"loss": "orpo()"}, "no loss on scores"),
  ],
)
def test_what_does_not_fit_is_one_line(fields, message, prepared, start, tmp_path):
  own = {"preferences": ranked(tmp_path / "r.jsonl"), "init": start} | fields
  with pytest.raises(UserError, match=message):
    reward.run(tiny(config.Reward, prepared, **own), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_margin_needs_data_that_has_some(prepared, start, tmp_path):
  rows = [{"prompt": f"Sort {i}?", "chosen": "All.", "rejected": "No."} for i in range(8)]
  path = write(tmp_path / "plain.jsonl", rows)
  cfg = tiny(config.Reward, prepared, init=start, preferences=path, margin=1.0)
  with pytest.raises(UserError, match="no pair of config.preferences has a margin"):
    reward.run(cfg, str(tmp_path / "run"))
