"""The exact-optimum toy: every answer can be listed, so the best policy is known in closed form.

pi* is proportional to pi_ref exp(r / beta). Expectations are exact sums, not samples, so each
method must reach it, up to the optimiser.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.losses import policy, preference, returns

ANSWERS, BETA = 27, 0.5  # All strings of 3 tokens over 3 letters.
RNG = np.random.default_rng(0)
REWARD = jnp.array(RNG.normal(size=ANSWERS))
REF = jax.nn.log_softmax(jnp.array(RNG.normal(size=ANSWERS)))
BEST = jax.nn.log_softmax(REF + REWARD / BETA)
PREFERRED = jax.nn.sigmoid(REWARD[:, None] - REWARD[None])  # Bradley-Terry on all pairs.


def distance(logps):
  return float(jnp.sum(jnp.exp(logps) * (logps - BEST)))


def minimise(loss, steps=600, rate=0.1):
  tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
  logits = REF

  def step(carry, _):
    logits, state = carry
    updates, state = tx.update(jax.grad(loss)(logits), state)
    return (optax.apply_updates(logits, updates), state), None

  (logits, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))((logits, tx.init(logits)))
  return jax.nn.log_softmax(logits)


def all_pairs(logits):
  ratio = jax.nn.log_softmax(logits) - REF
  shape = (ANSWERS, ANSWERS)
  return jnp.broadcast_to(ratio[:, None], shape), jnp.broadcast_to(ratio[None], shape)


def test_the_start_is_far_from_the_optimum_and_its_value_is_the_partition_function():
  assert distance(REF) > 0.3
  value = jnp.sum(jnp.exp(BEST) * (REWARD - BETA * (BEST - REF)))
  np.testing.assert_allclose(value, BETA * jax.nn.logsumexp(REF + REWARD / BETA), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_reaches_the_optimum(smoothing):
  name = preference.robust if smoothing else preference.logistic
  loss = functools.partial(name, beta=BETA, smoothing=smoothing)
  # Labels are flipped as often as the robust loss assumes.
  label = (1 - smoothing) * PREFERRED + smoothing * PREFERRED.T
  found = minimise(lambda z: 2 * jnp.mean(label * loss(*all_pairs(z))))
  assert distance(found) < 1e-3


def test_shuffled_labels_teach_nothing():
  loss = functools.partial(preference.logistic, beta=BETA)
  found = minimise(lambda z: jnp.mean(loss(*all_pairs(z))), steps=200)
  assert float(jnp.sum(jnp.exp(found) * (found - REF))) < 1e-4


def test_ipo_reaches_its_own_optimum():
  # Its target is pi_ref exp(P(answer beats a uniform rival) / tau), not Bradley-Terry's.
  tau = 0.3
  best = jax.nn.log_softmax(REF + PREFERRED.mean(axis=1) / tau)
  loss = functools.partial(preference.ipo, beta=tau)
  found = minimise(lambda z: 2 * jnp.mean(PREFERRED * loss(*all_pairs(z))))
  assert float(jnp.sum(jnp.exp(found) * (found - best))) < 1e-3


def online(loss, steps=1500):
  """On-policy steps under the exact expectation, with the KL in the reward."""

  def objective(logits):
    logps = jax.nn.log_softmax(logits)
    old = jax.lax.stop_gradient(logps)
    ones = jnp.ones((ANSWERS, 1))
    rewards = returns.shape_rewards(
      REWARD, old[:, None], REF[:, None], ones, jnp.ones(ANSWERS, bool), BETA
    )[:, 0]
    advantages = rewards - jnp.sum(jnp.exp(old) * rewards)
    return jnp.sum(jnp.exp(old) * loss(logps, old, advantages))

  return minimise(objective, steps)


@pytest.mark.parametrize("name", ["reinforce", "ppo_clip", "cispo"])
def test_policy_gradients_reach_the_optimum(name):
  loss = getattr(policy, name)
  if name == "reinforce":
    found = online(lambda logps, old, advantages: policy.reinforce(logps, advantages))
  else:
    found = online(loss)
  assert distance(found) < 1e-3


def test_a_constant_reward_keeps_the_reference():
  constant = jnp.zeros(ANSWERS)

  def objective(logits):
    logps = jax.nn.log_softmax(logits)
    old = jax.lax.stop_gradient(logps)
    rewards = constant - BETA * (old - REF)
    return jnp.sum(jnp.exp(old) * policy.reinforce(logps, rewards))

  found = minimise(objective, steps=200)
  assert float(jnp.sum(jnp.exp(found) * (found - REF))) < 1e-4
