"""Policy losses: peers' vectors, gradients inside and outside the clip, clamps, sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.losses import policy
from llm_jax.losses.sequences import sequence_mean, sequence_weights


def row(*values):
  return jnp.array([values], jnp.float32)


def slopes(loss, logps, *args, **kwargs):
  return jax.grad(lambda x: loss(x, *args, **kwargs).sum())(logps)


ZERO = row(0, 0, 0)


def test_ppo_clip_of_published_vectors():  # NeMo-RL.
  got = policy.ppo_clip(jnp.log(row(0.5, 1, 1.5)), ZERO, row(1, -1, 2))
  np.testing.assert_allclose(got, [[-0.5, 1, -2.4]], rtol=1e-6)
  got = policy.dual_clip(jnp.log(row(0.5, 1, 10)), ZERO, row(1, -1, -4), bound=3.0)
  np.testing.assert_allclose(got, [[-0.5, 1, 12]], rtol=1e-6)
  assert policy.ppo_clip(jnp.log(row(10)), row(0), row(-4)) == 40  # Unbounded without it.


def test_at_the_old_policy_every_surrogate_has_the_policy_gradient():
  logps, advantages, mask = row(-1, -2, -0.5), row(1, -1, 2), row(1, 1, 1)
  want = policy.reinforce(logps, advantages)
  for loss in (policy.ppo_clip, policy.dual_clip, policy.cispo):
    np.testing.assert_allclose(slopes(loss, logps, logps, advantages), -advantages, rtol=1e-6)
  np.testing.assert_allclose(slopes(policy.reinforce, logps, advantages), -advantages, rtol=1e-6)
  np.testing.assert_allclose(want, -advantages * logps)
  same = row(2, 2, 2)
  np.testing.assert_allclose(slopes(policy.gspo, logps, logps, same, mask), -same, rtol=1e-6)


@pytest.mark.parametrize(
  ("clip_high", "ratio", "advantage", "cut"),
  [
    (None, 1.25, 1, True), (0.3, 1.25, 1, False), (0.3, 1.35, 1, True), (None, 1.25, -1, False),
    (None, 0.75, -1, True), (0.3, 0.75, -1, True), (None, 0.75, 1, False),
  ],
)  # fmt: skip
def test_the_clip_cuts_only_steps_that_go_further_out(clip_high, ratio, advantage, cut):
  slope = slopes(policy.ppo_clip, jnp.log(row(ratio)), row(0), row(advantage), clip_high=clip_high)
  assert (slope == 0).all() == cut


def test_cispo_drops_no_token():
  args = jnp.log(row(8, 0.5, 1)), ZERO, row(1, 1, -1)
  np.testing.assert_allclose(slopes(policy.cispo, *args), [[-5, -0.5, 1]], rtol=1e-6)
  lower = slopes(policy.cispo, *args, clip=0.2, clip_high=0.2)
  np.testing.assert_allclose(lower, [[-1.2, -0.8, 1]], rtol=1e-6)


@pytest.mark.parametrize("loss", [policy.ppo_clip, policy.dual_clip, policy.cispo])
def test_the_log_ratio_clamp_keeps_extremes_finite(loss):
  far, old, advantages = row(500, -500, 0), ZERO, row(-1, 1, 1)
  assert np.isfinite(loss(far, old, advantages)).all()
  assert np.isfinite(slopes(loss, far, old, advantages)).all()
  near = jnp.log(row(0.9, 1.1, 1))
  free = loss(near, old, advantages, max_log_ratio=None)
  np.testing.assert_allclose(loss(near, old, advantages), free)
  tight = loss(near, old, advantages, max_log_ratio=0.01)
  assert np.abs(tight - free).max() > 1e-3


def test_without_the_clamp_a_far_ratio_overflows():
  assert np.isinf(policy.ppo_clip(row(500), row(0), row(-1), max_log_ratio=None)).all()


def test_data_carries_no_gradient():
  x, mask = row(0.1, -0.2, 0.3), row(1, 1, 1)
  for fn in (policy.ppo_clip, policy.dual_clip, policy.cispo):
    grads = jax.grad(lambda o, a, fn=fn: fn(x, o, a).sum(), argnums=(0, 1))(ZERO, x)
    assert not np.any(grads)
  assert not np.any(jax.grad(lambda o, a: policy.gspo(x, o, a, mask).sum(), (0, 1))(ZERO, x))
  assert not np.any(jax.grad(lambda o, r: policy.value_clip(x, o, r).sum(), (0, 1))(ZERO, x))
  assert not np.any(jax.grad(lambda a: policy.reinforce(x, a).sum())(x))


def test_value_clip_is_pessimistic_and_cuts_the_gradient_outside():
  values, old, returns = row(0.5, 0.1, -1.0), ZERO, row(1, 1, 1)
  got = policy.value_clip(values, old, returns, clip=0.2)
  np.testing.assert_allclose(got, 0.5 * np.array([[0.64, 0.81, 4.0]]), rtol=1e-6)
  np.testing.assert_allclose(
    slopes(policy.value_clip, values, old, returns, clip=0.2), [[0, -0.9, -2]], rtol=1e-6
  )
  plain = policy.value_clip(values, old, returns, clip=None)
  np.testing.assert_allclose(plain, 0.5 * np.array([[0.25, 0.81, 4.0]]), rtol=1e-6)


def test_gspo_has_one_ratio_per_sequence_and_ignores_padding():
  logps, old = jnp.log(jnp.array([[0.5, 0.4, 9.0]])), jnp.log(jnp.array([[0.4, 0.4, 0.1]]))
  mask = row(1, 1, 0)
  ratio = np.sqrt(1.25)
  got = policy.gspo(logps, old, row(-1, -1, 7), mask, clip=0.5, clip_high=0.5)
  np.testing.assert_allclose(got[0, :2], [ratio, ratio], rtol=1e-6)
  high = policy.gspo(logps, old, row(1, 1, 1), mask)  # The paper's tight clip.
  np.testing.assert_allclose(high[0, :2], -1.0004, rtol=1e-6)


def test_packed_sequences_count_as_unpacked_ones():
  x = jnp.array([[1.0, 3.0, 5.0, 99.0, 7.0]])
  mask, segments = row(1, 1, 1, 0, 1), jnp.array([[1, 1, 2, 2, 2]])
  np.testing.assert_allclose(sequence_weights(mask, segments), [[0.5, 0.5, 0.5, 0, 0.5]])
  np.testing.assert_allclose(sequence_weights(mask), [[0.25, 0.25, 0.25, 0, 0.25]])
  np.testing.assert_allclose(sequence_mean(x, mask, segments), [[2, 2, 6, 6, 6]])
  np.testing.assert_allclose(sequence_mean(x, mask), [[4, 4, 4, 4, 4]])
  assert not sequence_weights(jnp.zeros((2, 3)), jnp.ones((2, 3), int)).any()


def test_errors_name_what_is_wrong():
  short = row(0, 0)
  for loss in (policy.ppo_clip, policy.dual_clip, policy.cispo):
    with pytest.raises(ValueError, match=r"logps \(1, 3\) and advantages \(1, 2\)"):
      loss(ZERO, ZERO, short)
    with pytest.raises(ValueError, match="clip must be in"):
      loss(ZERO, ZERO, ZERO, clip=0.0)
  with pytest.raises(ValueError, match="bound must exceed 1"):
    policy.dual_clip(ZERO, ZERO, ZERO, bound=1.0)
  with pytest.raises(ValueError, match="clip must be positive"):
    policy.value_clip(ZERO, ZERO, ZERO, clip=0.0)
  with pytest.raises(ValueError, match=r"logps \(1, 3\) and mask \(1, 2\)"):
    policy.gspo(ZERO, ZERO, ZERO, short)
  with pytest.raises(ValueError, match=r"values \(1, 3\) and old_values \(1, 2\)"):
    policy.value_clip(ZERO, short, ZERO)
