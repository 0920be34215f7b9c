"""Over-optimisation in miniature: the gold rule, the fits, and that a small run has all parts."""

import json
import math

import numpy as np
import pytest

from tools import _small_world, overoptimisation


def world(values):
  return _small_world.World(0, np.asarray(values, float), {})


def test_a_word_counts_once_and_repeats_cost_their_square():
  values = np.arange(64.0)
  answers = np.array([[1, 2, 3, 4], [5, 5, 1, 2], [5, 5, 5, 5]])
  cost = _small_world.REPEAT
  np.testing.assert_allclose(world(values).raw(answers), [10, 8 - cost, 5 - 9 * cost])


@pytest.mark.parametrize("log", [True, False])
def test_a_fit_finds_the_curve_and_its_peak(log):
  d = np.linspace(0.2, 5, 40)
  gold = d * (2.0 - 0.5 * (np.log(d) if log else d))
  points = [{"kl": x * x, "gold": y} for x, y in zip(d, gold, strict=True)]
  found = overoptimisation.fitted([*points, {"kl": 0.0, "gold": 9.0}], log)
  peak = math.exp(2.0 / 0.5 - 1) if log else 2.0
  assert found == pytest.approx({"a": 2.0, "b": 0.5, "peak": peak, "r2": 1.0})


def test_a_curve_that_only_rises_has_no_peak():
  points = [{"kl": float(x * x), "gold": float(x)} for x in range(1, 9)]
  assert overoptimisation.fitted(points, False)["peak"] is None
  assert overoptimisation.fitted(points[:2], False) is None


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--sizes=huge", "small, middle, large"),
    ("--seeds=a", "--seeds=a must be numbers"),
    ("--pairs=1", "--pairs=1 must be numbers from 2"),
    ("--iterations=0", "--iterations"),
  ],
)
def test_what_is_wrong_is_one_line(word, message, tmp_path, capsys):
  assert overoptimisation.main([f"--out={tmp_path}", word]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_small_study_has_all_parts_and_is_not_done_twice(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(overoptimisation, "BETAS", (0.1,))
  words = [f"--out={tmp_path}", "--seeds=0", "--sizes=small", "--pairs=64", "--steps=4"]
  words += ["--iterations=3", "--best_of=8"]
  assert overoptimisation.main(words) == 0
  text = capsys.readouterr().out
  found = json.loads((tmp_path / "results.json").read_text())
  assert set(found["controls"]) == {"shuffled", "random", "constant", "gold"}
  assert set(found["frontier"]) == {"dpo/0.1", "ppo/0.1", "gold/0.1"}
  one = found["proxies"]["small/64"]
  assert [len(one[name]["mean"]) for name in ("best_of", "ppo", "ppo_kl")] == [4, 3, 3]
  assert one["ppo"]["mean"][0]["kl"] == pytest.approx(0, abs=1e-4)
  assert (tmp_path / "overoptimisation.svg").read_text().startswith("<svg")
  monkeypatch.setattr(_small_world, "ppo", None)
  assert overoptimisation.main(words) == 0
  assert capsys.readouterr().out == text
  assert overoptimisation.main([*words, "--iterations=4"]) == 2
