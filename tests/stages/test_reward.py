"""Reward model: how its accuracy is counted."""

import numpy as np

from llm_jax.data.preferences import Answer, Pair
from llm_jax.stages import reward


def pair(kind="cut_off", **gold):
  gold = {"gold_chosen": 1.0, "gold_rejected": 0.5} | gold
  return Pair("q", Answer("yes"), Answer("no"), kind, **gold)


def test_accuracy_is_by_kind_and_a_tie_counts_one_half():
  pairs = [pair("cut_off"), pair("cut_off"), pair("repetitive"), pair("mine")]
  got = reward.accuracies(pairs, np.array([1.0, -1.0, 0.0, 2.0]))
  assert got == {"cut_off": 0.5, "repetitive": 0.5, "mine": 1.0}
