"""Reward model: how its accuracy is counted, and its negative control."""

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


def test_flipping_swaps_about_half_of_the_labels_and_nothing_else():
  pairs = [pair() for _ in range(1000)]
  flipped = reward.flip(pairs, seed=0)
  swapped = [p for p in flipped if p.chosen.text == "no"]
  assert 400 < len(swapped) < 600
  assert all((p.gold_chosen, p.gold_rejected) == (0.5, 1.0) for p in swapped)
  assert flipped == reward.flip(pairs, seed=0)
