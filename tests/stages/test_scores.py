"""Scores: what a reward model reads; functions applied a few rows at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.data import batches
from llm_jax.generate import Rollout, rollout_to_batch
from llm_jax.stages import answers, scores


def test_whole_gives_back_the_conversation_of_a_right_padded_row():
  rows = [([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 9], [0, 1])]
  full = scores.whole(jax.tree.map(jnp.asarray, batches.lm_batch(rows, 5)))
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
  full = scores.whole(rollout_to_batch(rollout))
  np.testing.assert_array_equal(full["tokens"], rollout.tokens)
  np.testing.assert_array_equal(full["segments"], rollout.segments)
  real = np.asarray(rollout.segments) > 0
  np.testing.assert_array_equal(
    np.asarray(full["positions"])[real], np.asarray(rollout.positions)[real]
  )


def test_in_rows_keeps_the_order_and_leaves_out_empty_columns():
  random = np.random.default_rng(0)
  rows = [([*range(1, n + 2)], [0] + [1] * n) for n in random.integers(1, 90, 23)]
  batch = batches.lm_batch(rows, 90)
  widths = set()

  def total(part):
    widths.add(part["tokens"].shape)
    return part["targets"].sum(1)

  got = answers.in_rows(total, batch, rows=8)
  np.testing.assert_array_equal(got, batch["targets"].sum(1))
  assert {rows for rows, _ in widths} == {8}
  assert {width for _, width in widths} <= {32, 64, 90} and len(widths) > 1
