"""Reward model: what it reads, how its accuracy is counted, and its negative control."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.data import batches
from llm_jax.data.preferences import Answer, Pair
from llm_jax.generate import Rollout, rollout_to_batch
from llm_jax.stages import reward


def pair(kind="cut_off", **gold):
  gold = {"gold_chosen": 1.0, "gold_rejected": 0.5} | gold
  return Pair("q", Answer("yes"), Answer("no"), kind, **gold)


def test_whole_gives_back_the_conversation_of_a_right_padded_row():
  rows = [([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 9], [0, 1])]
  full = reward.whole(jax.tree.map(jnp.asarray, batches.lm_batch(rows, 5)))
  assert full["tokens"].shape == (2, 6)
  for i, (tokens, _) in enumerate(rows):
    n = len(tokens)
    np.testing.assert_array_equal(full["tokens"][i, :n], tokens)
    np.testing.assert_array_equal(full["positions"][i, :n], np.arange(n))
    np.testing.assert_array_equal(full["segments"][i], [1] * n + [0] * (6 - n))


def test_whole_gives_back_a_left_padded_rollout():
  rollout = Rollout(
    tokens=jnp.array([[0, 5, 6, 7, 3], [4, 5, 6, 3, 0]]),
    positions=jnp.array([[0, 0, 1, 2, 3], [0, 1, 2, 3, 3]]),
    segments=jnp.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    mask=jnp.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]], jnp.float32),
    logps=jnp.zeros((2, 5)),
    sampled_logps=jnp.zeros((2, 5)),
    lengths=jnp.array([2, 1]),
    ended=jnp.array([True, True]),
  )
  full = reward.whole(rollout_to_batch(rollout))
  np.testing.assert_array_equal(full["tokens"], rollout.tokens)
  np.testing.assert_array_equal(full["segments"], rollout.segments)
  real = np.asarray(rollout.segments) > 0
  np.testing.assert_array_equal(
    np.asarray(full["positions"])[real], np.asarray(rollout.positions)[real]
  )


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
