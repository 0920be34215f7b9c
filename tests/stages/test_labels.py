"""PPO's labels: the units of KL and reward, whitening, explained variance."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.stages import labels


def rollout(rows=6, length=5, seed=0):
  rng = np.random.default_rng(seed)
  mask = (np.arange(length) < rng.integers(1, length + 1, rows)[:, None]).astype(np.float32)
  arrays = {
    k: rng.normal(size=(rows, length)).astype(np.float32) * mask
    for k in ("old_logps", "ref_logps", "old_values")
  }
  return arrays | {"mask": mask}


def label(batch, scores, coefficient, ended=None, **cfg):
  ended = np.ones(len(scores), np.float32) if ended is None else ended
  return labels.actor_critic(config.Ppo(**cfg))(batch, scores, ended, coefficient)


def test_kl_is_summed_over_tokens_and_averaged_over_answers():
  batch = rollout()
  _, metrics = label(batch, jnp.zeros(6), 0.1)
  kl = ((batch["old_logps"] - batch["ref_logps"]) * batch["mask"]).sum(1).mean()
  np.testing.assert_allclose(metrics["objective/kl"], kl, rtol=1e-5)
  np.testing.assert_allclose(metrics["objective/rlhf_reward"], -0.1 * kl, rtol=1e-5)


def test_advantages_are_whitened_over_the_tokens_that_count():
  batch, _ = label(rollout(), jnp.arange(6.0), 0.1)
  mask = batch["mask"] > 0
  kept = np.asarray(batch["advantages"])[mask]
  assert abs(kept.mean()) < 1e-5
  assert abs(kept.std(ddof=1) - 1) < 1e-3
  assert not np.asarray(batch["advantages"])[~mask].any()


def test_the_first_token_returns_the_whole_reward_when_nothing_is_discounted():
  batch = rollout()
  out, _ = label(batch, jnp.arange(6.0), 0.1, lam=1.0)
  kl = ((batch["old_logps"] - batch["ref_logps"]) * batch["mask"]).sum(1)
  np.testing.assert_allclose(out["returns"][:, 0], np.arange(6) - 0.1 * kl, rtol=1e-4, atol=1e-5)


def test_an_answer_that_does_not_end_loses_the_penalty():
  ended = np.array([1, 1, 1, 0, 0, 0], np.float32)
  full, _ = label(rollout(), jnp.zeros(6), 0.0, lam=1.0)
  cut, _ = label(rollout(), jnp.zeros(6), 0.0, ended, lam=1.0, missing_end_penalty=2.0)
  gap = np.asarray(full["returns"] - cut["returns"])[:, 0]
  np.testing.assert_allclose(gap, [0, 0, 0, 2, 2, 2], atol=1e-5)


@pytest.mark.parametrize(("shift", "noise", "expected"), [(0, 0, 1), (3, 0, 1), (0, 1, 0)])
def test_explained_variance(shift, noise, expected):
  targets = jnp.array([[1.0, 2.0, 3.0, 4.0]])
  values = (1 - noise) * targets + shift
  got = labels.explained_variance(values, targets, jnp.ones((1, 4)))
  np.testing.assert_allclose(got, expected, atol=1e-6)
