"""Pair losses: closed forms in numpy, gradient directions, symmetries, extremes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.losses import preference

RNG = np.random.default_rng(0)
C, R = RNG.normal(size=(2, 16)) * 2
B, S = 0.3, 0.2


def sig(x):
  return 1 / (1 + np.exp(-x))


def nls(x):
  return np.log1p(np.exp(-x))


M = B * (C - R)
W = sig(M / 0.05)
CLOSED = {
  "logistic": ({}, nls(M)),
  "logistic smoothed": ({"smoothing": S}, (1 - S) * nls(M) + S * nls(-M)),
  "logistic margin": ({"margin": 0.7}, nls(M - 0.7)),
  "hinge": ({}, np.maximum(0, 1 - M)),
  "ipo": ({}, (C - R - 1 / (2 * B)) ** 2),
  "robust": ({"smoothing": S}, ((1 - S) * nls(M) - S * nls(-M)) / (1 - 2 * S)),
  "apo_zero": ({}, 1 - sig(B * C) + sig(B * R)),
  "apo_down": ({}, sig(B * C) + 1 - sig(M)),
  "simpo": ({"gamma": 0.5}, nls(M - 0.5)),
  "sppo_hard": ({}, (C - 0.5 / B) ** 2 + (R + 0.5 / B) ** 2),
  "nca": ({}, nls(B * C) + 0.5 * nls(-B * C) + 0.5 * nls(-B * R)),
  "bco_pair": ({"baseline": 0.4}, nls(B * (C - 0.4)) + nls(-B * (R - 0.4))),
  "exo_pair": (
    {"smoothing": S},
    sig(M) * (np.log(sig(M)) - np.log(1 - S)) + sig(-M) * (np.log(sig(-M)) - np.log(S)),
  ),
  "discopop": ({}, nls(M) * (1 - W) + np.exp(-M) * W),
}
PLAIN = ["logistic", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sppo_hard", "nca"]
PLAIN += ["bco_pair", "exo_pair", "discopop"]
OF_DIFFERENCE = ["logistic", "hinge", "ipo", "robust", "exo_pair", "discopop"]


@pytest.mark.parametrize("case", CLOSED)
def test_closed_form(case):
  kwargs, want = CLOSED[case]
  got = getattr(preference, case.split()[0])(jnp.array(C), jnp.array(R), beta=B, **kwargs)
  assert got.shape == C.shape and got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("smoothing", "want"), [(0.0, 0.753059), (0.3, 0.925447)])
def test_dpo_of_a_published_vector(smoothing, want):
  # Tunix's: token log-probs N(0, 5) of 8 rows, the first 4 chosen; the reference's drawn second.
  rng = np.random.RandomState(0)
  policy, ref = (rng.normal(0.0, 5.0, size=(8, 4)).sum(axis=1) for _ in range(2))
  chosen, rejected = np.split(policy - ref, 2)
  got = preference.logistic(jnp.array(chosen), jnp.array(rejected), beta=0.1, smoothing=smoothing)
  np.testing.assert_allclose(got.mean(), want, rtol=1e-6)


def test_orpo_is_the_log_odds_ratio():
  chosen, rejected = -np.array([0.1, 1.0, 3.0]), -np.array([0.5, 1.0, 0.2])
  odds = lambda a: np.exp(a) / (1 - np.exp(a))  # noqa: E731
  got = preference.orpo(jnp.array(chosen), jnp.array(rejected))
  np.testing.assert_allclose(got, nls(np.log(odds(chosen) / odds(rejected))), rtol=1e-5)


def test_nll_chosen_is_the_negated_sum():
  np.testing.assert_allclose(preference.nll_chosen(jnp.array(C)), -C, rtol=1e-6)


def test_kto_is_the_closed_form_and_its_baseline_has_no_gradient():
  good = np.arange(16) % 2
  for z in (0.7, -3.0):  # A negative baseline counts as 0.
    anchor = max(z, 0)
    want = np.where(good, 2 * (1 - sig(B * (C - anchor))), 3 * (1 - sig(B * (anchor - C))))
    weights = {"desirable_weight": 2.0, "undesirable_weight": 3.0}
    got = preference.kto(jnp.array(C), jnp.array(good), jnp.array(z), beta=B, **weights)
    np.testing.assert_allclose(got, want, rtol=1e-5)
  slope = jax.grad(lambda z: preference.kto(jnp.array(C), jnp.array(good), z).sum())(jnp.array(0.7))
  assert slope == 0


@pytest.mark.parametrize("name", PLAIN)
def test_descent_never_lowers_the_margin(name):
  loss = getattr(preference, name)
  # On a wrongly ordered pair every loss wants a larger gap, and a lower rejected answer.
  up, down = jax.grad(lambda c, r: loss(c, r).sum(), argnums=(0, 1))(
    jnp.full(3, -0.5), jnp.full(3, 0.5)
  )
  assert (up - down < 0).all()
  assert (down > 0).all()


@pytest.mark.parametrize("name", OF_DIFFERENCE)
@settings(max_examples=10, deadline=None)
@given(shift=st.floats(-50, 50))
def test_only_the_difference_matters(name, shift):
  loss = getattr(preference, name)
  got = loss(jnp.array(C + shift), jnp.array(R + shift))
  np.testing.assert_allclose(got, loss(jnp.array(C), jnp.array(R)), rtol=1e-3, atol=1e-4)


def test_absolute_losses_see_the_level():
  for name in set(PLAIN) - set(OF_DIFFERENCE):
    loss = getattr(preference, name)
    assert (
      np.abs(loss(jnp.array(C + 3), jnp.array(R + 3)) - loss(jnp.array(C), jnp.array(R))).max()
      > 0.1
    )


def test_logistic_is_log_two_at_a_tie_and_antisymmetric_in_the_gradient():
  np.testing.assert_allclose(preference.logistic(jnp.zeros(2), jnp.zeros(2)), np.log(2), rtol=1e-6)
  up, down = jax.grad(lambda c, r: preference.logistic(c, r).sum(), argnums=(0, 1))(C, R)
  np.testing.assert_allclose(up, -down, rtol=1e-5)


def test_robust_is_unbiased_under_flips_and_conservative_is_not():
  c, r = jnp.array(C), jnp.array(R)

  def flipped(loss, **kwargs):
    return (1 - S) * loss(c, r, **kwargs) + S * loss(r, c, **kwargs)

  clean = preference.logistic(c, r)
  np.testing.assert_allclose(flipped(preference.robust, smoothing=S), clean, rtol=1e-4, atol=1e-5)
  assert np.abs(flipped(preference.logistic, smoothing=S) - clean).max() > 0.1


def test_ipo_is_zero_at_its_finite_gap():
  np.testing.assert_allclose(
    preference.ipo(jnp.array([2.5]), jnp.zeros(1), beta=0.2), 0, atol=1e-10
  )


def test_exo_is_zero_where_the_model_agrees_with_the_smoothed_label():
  gap = jnp.array([np.log((1 - S) / S)])
  np.testing.assert_allclose(preference.exo_pair(gap, gap * 0, smoothing=S), 0, atol=1e-6)


@pytest.mark.parametrize("name", [*PLAIN, "simpo", "orpo"])
def test_finite_at_extremes_in_value_and_gradient(name):
  loss = getattr(preference, name)
  kwargs = {"beta": 1.0, "gamma": 0.5} if name == "simpo" else {}
  far = jnp.array([1e4, -1e4, 1e4, -1e4, 0.0, -1e-9])
  other = jnp.array([-1e4, 1e4, 1e4, -1e4, 0.0, -1e-9])
  if name == "orpo":
    far, other = -jnp.abs(far), -jnp.abs(other) / 2
  if name == "discopop":  # exp(-m) is the loss for m below 0, scaled by exp(m / tau).
    far, other = far / 10, other / 10
  value, slopes = (
    loss(far, other, **kwargs),
    jax.grad(lambda c, r: loss(c, r, **kwargs).sum(), argnums=(0, 1))(far, other),
  )
  assert np.isfinite(value).all() and np.isfinite(slopes[0]).all() and np.isfinite(slopes[1]).all()


def test_bfloat16_scores_are_compared_in_float32():
  chosen = jnp.array([256.0], jnp.bfloat16)
  assert preference.ipo(chosen, jnp.array([1.0], jnp.bfloat16), beta=1.0)[0] == 254.5**2


@pytest.mark.parametrize("name", [*PLAIN, "simpo", "orpo"])
def test_shapes_must_match(name):
  kwargs = {"beta": 1.0, "gamma": 0.5} if name == "simpo" else {}
  with pytest.raises(ValueError, match=r"chosen \(2,\) and rejected \(3,\)"):
    getattr(preference, name)(jnp.zeros(2), jnp.zeros(3), **kwargs)


def test_bad_options_are_named():
  x = jnp.zeros(2)
  for loss, kwargs in (
    (preference.logistic, {"smoothing": 0.5}),
    (preference.robust, {"smoothing": -0.1}),
    (preference.exo_pair, {"smoothing": 0.0}),
    (preference.discopop, {"tau": 1.0}),
  ):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
      loss(x, x, **kwargs)
  with pytest.raises(ValueError, match=r"logratio \(2,\) and desirable \(3,\)"):
    preference.kto(x, jnp.zeros(3), jnp.zeros(()))
