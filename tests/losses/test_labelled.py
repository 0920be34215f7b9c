"""The objective on labelled answers: KTO by hand, what padding and labels do, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import spec
from llm_jax.losses import objectives, preference
from tests.losses.test_objectives import (
  PAIR,
  B,
  apply,
  close,
  lm,
  logps_of,
  padded,
  parameters,
  run,
  with_gradient,
)

GOOD = np.array([1, 0, 1, 1], np.float32)
KTO = objectives.logratio_labels(apply, preference.kto)


def labelled(seed=1, baseline=0.3):
  refs = np.random.default_rng(5).normal(size=B).astype(np.float32)
  numbers = {"desirable": GOOD, "ref_answer": refs, "baseline": np.full(B, baseline, np.float32)}
  return lm(seed) | numbers


def ratios(batch):
  return (logps_of(parameters(), batch) * batch["mask"]).sum(1) - batch["ref_answer"]


def test_kto_by_hand():
  batch = labelled()
  ratio = ratios(batch)
  value = 1 / (1 + np.exp(-0.1 * np.where(GOOD > 0, ratio - 0.3, 0.3 - ratio)))
  loss, metrics = run(KTO, batch)
  np.testing.assert_allclose(loss.value, (1 - value).mean(), rtol=1e-4)
  assert loss.weight == B
  np.testing.assert_allclose(metrics["rewards/chosen"].value, ratio[GOOD > 0].mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics["rewards/rejected"].value, ratio[GOOD == 0].mean(), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["rewards/accuracies"].value, ((ratio > 0.3) == (GOOD > 0)).mean()
  )
  np.testing.assert_allclose(metrics["kl"].value, 0.3, rtol=1e-6)


def test_it_is_the_two_halves_of_a_pair():
  """A good and a bad answer are what `logratio_pairs` makes of the pair."""
  sides = {"chosen": lm(1), "rejected": lm(2)}
  refs = np.random.default_rng(9).normal(size=(2, B)).astype(np.float32)
  numbers = {
    "ref_chosen": refs[0],
    "ref_rejected": refs[1],
    "baseline": np.full(B, 0.2, np.float32),
  }
  want, _ = run(objectives.logratio_pairs(apply, preference.kto), sides | numbers)
  got = 0.0
  for side, label, ref in (("chosen", 1.0, refs[0]), ("rejected", 0.0, refs[1])):
    own = sides[side] | {"desirable": np.full(B, label, np.float32), "ref_answer": ref}
    got += run(KTO, own | {"baseline": numbers["baseline"]})[0].total
  np.testing.assert_allclose(got, want.total, rtol=1e-5)


def test_good_answers_go_up_and_bad_ones_down():
  batch = labelled()

  def loss(refs, label):
    numbers = {"ref_answer": refs, "desirable": jnp.full(B, label)}
    return KTO(parameters(), batch | numbers, jax.random.key(0))[0].total

  for label, sign in ((1.0, 1), (0.0, -1)):  # A higher reference is a lower log-ratio.
    slope = jax.grad(loss)(batch["ref_answer"], label)
    assert np.all(sign * slope > 0)


def test_rows_without_an_answer_weigh_nothing():
  batch = labelled()
  close(with_gradient(KTO, padded(batch)), with_gradient(KTO, batch))
  empty = batch | {"mask": np.zeros_like(batch["mask"])}
  loss, metrics = run(KTO, empty)
  assert loss.weight == 0 and all(np.isfinite(m.value) for m in metrics.values())


def test_means_per_token_and_weights():
  batch = labelled()
  fn = functools.partial(preference.kto, desirable_weight=2.0)
  doubled, _ = run(objectives.logratio_labels(apply, fn), batch)
  plain, _ = run(KTO, batch)
  good, _ = run(KTO, jax.tree.map(lambda x: x[GOOD > 0], batch))
  np.testing.assert_allclose(doubled.total, plain.total + good.total, rtol=1e-5)
  _, metrics = run(objectives.logratio_labels(apply, preference.kto, average=True), batch)
  per_token = ratios(batch) / batch["mask"].sum(1)
  np.testing.assert_allclose(metrics["rewards/chosen"].value, per_token[GOOD > 0].mean(), rtol=1e-4)


@pytest.mark.parametrize(
  "text", ["ipo", "simpo(beta=2.0, gamma=0.5)", "kto + 0.1*nll_chosen", "logistic"]
)
def test_losses_on_pairs_are_refused(text):
  with pytest.raises(ValueError, match="no loss on single answers"):
    objectives.logratio_labels(apply, spec.resolve(text, PAIR))


def test_a_function_of_ones_own():
  def mine(logratio, desirable, baseline, beta=2.0):
    return beta * (1 - 2 * desirable) * (logratio - baseline)

  batch = labelled()
  loss, _ = run(objectives.logratio_labels(apply, mine), batch)
  want = 2 * (1 - 2 * GOOD) * (ratios(batch) - 0.3)
  np.testing.assert_allclose(loss.value, want.mean(), rtol=1e-4)
