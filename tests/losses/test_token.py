"""Losses on token statistics: closed forms, KL estimators and their clamps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.losses import token

STATS = token.TokenStats(jnp.array([[-1.0, -2.0]]), jnp.array([[3.0, -0.5]]), jnp.array([[0.4, 1]]))
LOGPS, REFS = jnp.array([-1.0, -1.0, -1.0]), jnp.array([0.0, -15.0, -30.0])


def test_cross_entropy_and_its_z_loss():
  np.testing.assert_allclose(token.cross_entropy(STATS), [[1.0, 2.0]])
  np.testing.assert_allclose(token.cross_entropy(STATS, z_loss=0.1), [[1.9, 2.025]], rtol=1e-6)
  with pytest.raises(ValueError, match="z_loss"):
    token.cross_entropy(STATS, z_loss=-1.0)


def test_z_loss_pulls_the_denominator_to_one():
  grad = jax.grad(lambda lse: token.cross_entropy(STATS._replace(logsumexp=lse), z_loss=0.1).sum())(
    STATS.logsumexp
  )
  assert (np.sign(grad) == np.sign(STATS.logsumexp)).all()


def test_fields_come_back_as_they_are():
  np.testing.assert_array_equal(token.token_logps(STATS), STATS.logps)
  np.testing.assert_array_equal(token.entropy(STATS), STATS.entropy)


# NeMo-RL's vectors.
@pytest.mark.parametrize(
  ("estimator", "plain", "clamped"),
  [
    ("k1", [-1, 14, 29], [-1, 10, 10]),
    ("k2", [0.5, 98, 420.5], [0.5, 10, 10]),
    ("k3", [np.e - 2, 13, 28], [np.e - 2, 10, 10]),
    ("abs", [1, 14, 29], [1, 10, 10]),
  ],
)
def test_kl_estimators_and_their_clamps(estimator, plain, clamped):
  np.testing.assert_allclose(token.kl(LOGPS, REFS, estimator), plain, rtol=1e-5)
  got = token.kl(LOGPS, REFS, estimator, input_clamp=20.0, output_clamp=10.0)
  np.testing.assert_allclose(got, clamped, rtol=1e-5)


def test_input_clamp_keeps_k3_finite():
  far = jnp.array([200.0])
  assert np.isinf(token.kl(-far, far, "k3")).all()
  value, slope = jax.value_and_grad(lambda x: token.kl(x, far, "k3", input_clamp=20.0).sum())(-far)
  assert np.isfinite(value) and np.isfinite(slope).all()


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
  rng = np.random.default_rng(0)
  p, q = (rng.dirichlet(np.ones(6)) for _ in range(2))
  exact = np.sum(p * np.log(p / q))
  for estimator in ("k1", "k3"):
    np.testing.assert_allclose(
      np.sum(p * token.kl(np.log(p), np.log(q), estimator)), exact, rtol=1e-5
    )
  assert (token.kl(np.log(p), np.log(q), "k3") >= 0).all()


def test_on_policy_only_k2_has_the_gradient_of_the_reverse_kl():
  rng = np.random.default_rng(1)
  logits, ref = jnp.array(rng.normal(size=5)), jax.nn.log_softmax(jnp.array(rng.normal(size=5)))
  probs = jax.nn.softmax(logits)

  def expected(estimator):  # The estimator's mean under samples whose law is held fixed.
    return jax.grad(lambda z: jnp.sum(probs * token.kl(jax.nn.log_softmax(z), ref, estimator)))(
      logits
    )

  def reverse_kl(z):
    return jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref))

  exact = jax.grad(reverse_kl)(logits)
  np.testing.assert_allclose(expected("k2"), exact, atol=1e-6)
  np.testing.assert_allclose(expected("k1"), 0.0, atol=1e-6)
  assert np.abs(expected("k3") - exact).max() > 1e-2


def test_kl_names_what_is_wrong():
  with pytest.raises(ValueError, match=r"logps \(3,\) and ref_logps \(2,\)"):
    token.kl(LOGPS, REFS[:2])
  with pytest.raises(ValueError, match="k4"):
    token.kl(LOGPS, REFS, "k4")
