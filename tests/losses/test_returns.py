"""Returns: GAE against a loop, gaps, whitening, group baselines, shaped rewards, the controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.losses import returns

RNG = np.random.default_rng(0)


def loop_gae(rewards, values, mask, gamma, lam):
  """The textbook recursion over one row's masked tokens, one at a time."""
  advantages, after_a, after_v = np.zeros(len(mask)), 0.0, 0.0
  for t in reversed(np.flatnonzero(mask)):
    after_a = rewards[t] + gamma * after_v - values[t] + gamma * lam * after_a
    advantages[t], after_v = after_a, values[t]
  return advantages


GAE = jax.jit(returns.gae, static_argnames="gaps")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_is_the_loop_over_the_masked_tokens_whatever_lies_between(seed, gamma, lam):
  rng = np.random.default_rng(seed)
  rewards, values = rng.normal(size=(2, 3, 7)).astype(np.float32)
  mask = rng.integers(0, 2, size=(3, 7))
  got, targets = GAE(rewards, values, mask, gamma, lam)
  want = [loop_gae(*rows, gamma, lam) for rows in zip(rewards, values, mask, strict=True)]
  np.testing.assert_allclose(got, want, atol=2e-4)
  np.testing.assert_allclose(targets, (want + values) * mask, atol=2e-4)
  bad_values = np.where(mask > 0, values, np.float32(np.nan))
  bad_rewards = np.where(mask > 0, rewards, np.float32(np.inf))
  again = GAE(bad_rewards, bad_values, mask, gamma, lam)
  np.testing.assert_array_equal(again[0], got)
  np.testing.assert_array_equal(again[1], targets)


def test_gae_of_published_vectors():  # NeMo-RL.
  last = jnp.array([[0.0, 0, 5]])
  one_step, _ = returns.gae(last, jnp.array([[1.0, 2, 3]]), jnp.ones((1, 3)), lam=0.0)
  np.testing.assert_allclose(one_step, [[1, 1, 2]])
  values = jnp.array([[0.1, 0.2, 999, 0.4, 0.5]])
  mask, keep = jnp.array([[1, 1, 0, 1, 1]]), [0, 1, 3, 4]
  rewards = jnp.array([[0.0, 0, 0, 0, 1]])
  gap, _ = returns.gae(rewards, values, mask, 0.99, 0.95)
  dense, _ = returns.gae(rewards[:, keep], values[:, keep], mask[:, keep], 0.99, 0.95)
  np.testing.assert_allclose(gap[:, keep], dense, rtol=1e-6)


def test_gae_gaps_carry_or_count_as_empty_steps():
  rewards, values = jnp.array([[0.0, 0, 1]]), jnp.array([[0.3, 7, 0.5]])
  mask = jnp.array([[1, 0, 1]])
  carry, _ = returns.gae(rewards, values, mask, 0.9, 0.8)
  dense, _ = returns.gae(rewards, values, mask, 0.9, 0.8, gaps="dense")
  np.testing.assert_allclose(carry, [[0.9 * 0.5 - 0.3 + 0.72 * 0.5, 0, 0.5]], rtol=1e-6)
  gap = 0.9 * 0.5 + 0.72 * 0.5  # The step of value 0 in between.
  np.testing.assert_allclose(dense, [[-0.3 + 0.72 * gap, 0, 0.5]], rtol=1e-6)
  with pytest.raises(ValueError, match="sparse"):
    returns.gae(rewards, values, mask, gaps="sparse")


def test_gae_of_lambda_one_is_the_return():
  rewards, values = jnp.array(RNG.normal(size=(2, 4, 6)))
  mask = jnp.ones((4, 6))
  advantages, targets = returns.gae(rewards, values, mask, lam=1.0)
  to_go = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
  np.testing.assert_allclose(targets, to_go, atol=1e-5)
  np.testing.assert_allclose(advantages, to_go - values, atol=1e-5)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("shift", [True, False])
def test_whiten_is_the_closed_form_on_the_masked_entries(ddof, shift):
  x, mask = RNG.normal(3, 2, size=(5, 7)), RNG.integers(0, 2, size=(5, 7))
  live = x[mask > 0]
  want = (live - live.mean()) / np.sqrt(live.var(ddof=ddof) + 1e-8) + (0 if shift else live.mean())
  garbage = jnp.where(mask > 0, x, jnp.nan)
  got = returns.whiten(garbage, jnp.array(mask), shift_mean=shift, ddof=ddof)
  np.testing.assert_allclose(got[mask > 0], want, rtol=1e-4, atol=1e-5)
  assert not got[mask == 0].any()


def test_whiten_uses_the_published_variance():
  # Tunix: Bessel's variance of the masked [1, 2, 5] is 4.3333.
  x, mask = jnp.arange(1.0, 6), jnp.array([1, 1, 0, 0, 1])
  got = returns.whiten(x, mask)
  np.testing.assert_allclose(got[4], (5 - 8 / 3) / np.sqrt(4.333333), rtol=1e-5)


def test_whiten_of_one_or_no_entry_is_finite():
  for mask in (jnp.array([0, 1]), jnp.zeros(2)):
    np.testing.assert_array_equal(returns.whiten(jnp.array([3.0, 4.0]), mask), 0)


def test_group_advantages():
  rewards = jnp.array([[1.0, 2, 3], [4, 5, 6]])
  np.testing.assert_allclose(returns.rloo_advantage(rewards), [[-1.5, 0, 1.5]] * 2)  # Tunix.
  np.testing.assert_allclose(returns.group_advantage(rewards), [[-1, 0, 1]] * 2, atol=1e-5)
  biased = np.sqrt(1.5)
  np.testing.assert_allclose(
    returns.group_advantage(rewards, ddof=0), [[-biased, 0, biased]] * 2, atol=1e-5
  )
  np.testing.assert_allclose(returns.group_advantage(rewards, scale=False), [[-1, 0, 1]] * 2)
  wide = returns.group_advantage(rewards, eps=1.0)
  np.testing.assert_allclose(wide, [[-0.5, 0, 0.5]] * 2, rtol=1e-6)


def test_a_group_that_says_nothing_gets_nothing():
  for fn in (returns.rloo_advantage, returns.group_advantage):
    np.testing.assert_array_equal(fn(jnp.array([[3.0], [4.0]])), 0)
    np.testing.assert_array_equal(fn(jnp.full((2, 4), 7.0)), 0)


def shaped(**kwargs):
  mask = jnp.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
  logps = jnp.where(mask > 0, -1.0, jnp.nan)
  refs = jnp.where(mask > 0, jnp.array([-1.0, -3.0, 0.0, -1.0]), 5.0)
  defaults = {"scores": jnp.array([2.0, 20.0, 3.0]), "ended": jnp.array([True, False, True])}
  return returns.shape_rewards(
    defaults["scores"], logps, refs, mask, defaults["ended"], **({"beta": 0.1} | kwargs)
  )


def test_shaped_rewards_are_the_penalty_and_the_score_at_the_end():
  want = np.array([[0, -0.2, 0.1 + 2, 0], [0, -0.2, 0.1, 20], [0, 0, 0, 0]])
  np.testing.assert_allclose(shaped(), want, atol=1e-6)


@pytest.mark.parametrize(
  ("kwargs", "row_1"),
  [
    ({"missing_end": "subtract", "missing_end_penalty": 1.0}, 19.0),
    ({"missing_end": "replace", "missing_end_penalty": 1.0}, -1.0),
    ({"score_clip": 5.0}, 5.0),
    ({"score_clip": 5.0, "missing_end_penalty": 1.0}, 4.0),
  ],
)
def test_missing_end_and_score_clip(kwargs, row_1):
  rewards = shaped(beta=0.0, **kwargs)
  np.testing.assert_allclose(rewards.sum(1), [2.0, row_1, 0.0])


def test_the_kl_of_the_reward_is_the_estimator_that_was_asked_for():
  assert shaped(estimator="k1")[0, 1] == pytest.approx(-0.2)
  assert shaped(estimator="abs")[0, 2] == pytest.approx(1.9)
  assert shaped(estimator="k3")[0, 1] == pytest.approx(-0.1 * (np.exp(-2) + 1))
  assert shaped(kl_clamp=0.5)[0, 1] == pytest.approx(-0.05)


def test_the_score_lies_on_the_last_token_or_after_it():
  after = shaped(beta=0.0, score_position="after")
  np.testing.assert_array_equal(after, [[0, 0, 0, 2], [0, 0, 0, 20], [0, 0, 0, 0]])
  mask = jnp.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
  np.testing.assert_array_equal(returns.value_mask(mask), mask)
  wider = returns.value_mask(mask, "after")
  np.testing.assert_array_equal(wider, [[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
  advantages, _ = returns.gae(after, jnp.zeros((3, 4)), wider, lam=1.0)
  np.testing.assert_array_equal(advantages[0], [0, 2, 2, 2])


def test_integer_scores_and_masks_do_not_truncate_rewards():
  ones = jnp.ones((1, 2), jnp.int32)
  rewards = returns.shape_rewards(
    jnp.array([1]), jnp.array([[-0.5, -0.5]]), jnp.array([[-1.0, -1.0]]), ones, ones[0, :1], 0.5
  )
  np.testing.assert_allclose(rewards, [[-0.25, 0.75]])
  assert rewards.dtype == jnp.float32


def test_beta_may_be_traced():
  jitted = jax.jit(lambda beta: shaped(beta=beta))
  np.testing.assert_allclose(jitted(0.1), shaped(), atol=1e-7)


def test_adaptive_kl_moves_towards_the_target_by_at_most_a_fifth_per_horizon():
  control = returns.AdaptiveKL(init=0.2, target=6.0, horizon=100.0)
  assert control.update(0.2, 6.0, 50) == pytest.approx(0.2)
  assert control.update(0.2, 60.0, 50) == pytest.approx(0.2 * 1.1)
  assert control.update(0.2, 0.0, 50) == pytest.approx(0.2 * 0.9)
  assert control.update(0.2, 6.6, 100) == pytest.approx(0.2 * 1.1)
  fixed = returns.AdaptiveKL(init=0.2, target=0.0, horizon=100.0)
  assert fixed.update(0.2, 60.0, 50) == 0.2


def test_errors_name_what_is_wrong():
  x = jnp.zeros((2, 3))
  with pytest.raises(ValueError, match=r"rewards \(2, 3\) and values \(2, 2\)"):
    returns.gae(x, x[:, :2], x)
  with pytest.raises(ValueError, match=r"x \(2, 3\) and mask \(2,\)"):
    returns.whiten(x, x[:, 0])
  with pytest.raises(ValueError, match=r"scores \(3,\) and mask \(2, 3\)"):
    returns.shape_rewards(x[0], x, x, x, x[0], 0.1)
  for option in ({"missing_end": "drop"}, {"score_position": "first"}, {"estimator": "k9"}):
    with pytest.raises(ValueError, match=next(iter(option.values()))):
      shaped(**option)
