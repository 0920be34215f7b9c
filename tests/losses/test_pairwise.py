"""Numbers of pairs: soft labels, weights, and a margin that turns with the sides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import spec
from llm_jax.losses import objectives, pairwise, preference
from llm_jax.types import Outputs
from tests.losses.test_objectives import PAIR, B, apply, close, padded, pair_batch, parameters, run

P = np.array([1.0, 0.9, 0.6, 0.75], np.float32)
MARGIN = np.array([0.0, 1.0, -0.5, 2.0], np.float32)


def objective_of(name, loss):
  if name == "scores":
    return objectives.score_pairs(apply, loss)
  return objectives.logratio_pairs(apply, loss)


def each(objective, batch):
  """The loss of every pair alone."""
  return np.array(
    [run(objective, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))[0].total for i in range(B)]
  )


def turned(batch):
  other = {"chosen": "rejected", "rejected": "chosen"}
  return {name: batch[_turned(name, other)] for name in batch}


def _turned(name, other):
  side = name.removeprefix("ref_")
  return name.replace(side, other[side]) if side in other else name


@pytest.mark.parametrize("name", ["scores", "logratios"])
@pytest.mark.parametrize("margin", [None, MARGIN])
def test_soft_labels_are_the_smoothing_of_the_logistic_loss(name, margin):
  batch = pair_batch() | ({} if margin is None else {"margin": margin})
  got = each(objective_of(name, preference.logistic), batch | {"probability": P})
  for i in range(B):
    smooth = functools.partial(preference.logistic, smoothing=float(1 - P[i]))
    one = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
    np.testing.assert_allclose(got[i], run(objective_of(name, smooth), one)[0].total, rtol=1e-4)


@pytest.mark.parametrize(
  "text", ["ipo", "hinge", "apo_zero", "nca", "exo_pair", "logistic(beta=2)"]
)
def test_any_loss_is_the_mean_over_both_labels(text):
  batch, loss = pair_batch(), spec.resolve(text.replace("2)", "2.0)"), PAIR)
  objective = objective_of("logratios", loss)
  ahead, behind = each(objective, batch), each(objective, turned(batch))
  got, _ = run(objective, batch | {"probability": P})
  np.testing.assert_allclose(got.total, (P * ahead + (1 - P) * behind).sum(), rtol=1e-4)
  assert got.weight == B


def test_mean_log_probs_and_single_answers_turn_too():
  batch = pair_batch() | {"baseline": np.full(B, 0.3, np.float32)}
  for text in ("simpo(beta=2.0, gamma=0.5)", "kto", "orpo"):
    own = batch if text == "kto" else pair_batch()
    objective = objective_of("logratios", spec.resolve(text, PAIR))
    got, _ = run(objective, own | {"probability": P})
    want = P * each(objective, own) + (1 - P) * each(objective, turned(own))
    np.testing.assert_allclose(got.total, want.sum(), rtol=1e-4)


def test_a_term_on_the_chosen_answer_alone_is_as_it_is():
  objective = objective_of("logratios", preference.nll_chosen)
  close(run(objective, pair_batch() | {"probability": P})[0], run(objective, pair_batch())[0])


def test_sure_labels_are_hard_and_a_coin_has_no_direction():
  objective = objective_of("scores", preference.logistic)
  ones = pair_batch() | {"probability": np.ones(B, np.float32)}
  close(run(objective, ones), run(objective, pair_batch()))
  coin = np.full(B, 0.5, np.float32)
  batch = pair_batch()
  got, other = (run(objective, x | {"probability": coin})[0] for x in (batch, turned(batch)))
  np.testing.assert_allclose(got.total, other.total, rtol=1e-5)


def test_the_best_margin_of_a_soft_label_is_its_logit():
  scored = lambda params, batch, rng: Outputs(scores=params[batch["side"]])  # noqa: E731
  sides = {"segments": np.ones((B, 2), np.int32)}
  batch = {"chosen": sides | {"side": 0}, "rejected": sides | {"side": 1}, "probability": P[1:2]}
  objective = pairwise.score_pairs(scored, preference.logistic)

  def total(margin):
    params = jnp.stack([jnp.full(B, margin), jnp.zeros(B)])
    return objective(params, batch, jax.random.key(0))[0].total

  best = np.log(P[1] / (1 - P[1]))
  assert abs(jax.grad(total)(float(best))) < 1e-5
  assert abs(jax.grad(total)(float(best) + 1.0)) > 0.1


@pytest.mark.parametrize("name", ["scores", "logratios"])
def test_weights_weigh_loss_and_metrics(name):
  weight = np.array([1.0, 0.5, 0.5, 0.25], np.float32)
  objective = objective_of(name, preference.logistic)
  got, metrics = run(objective, pair_batch() | {"weight": weight})
  np.testing.assert_allclose(got.total, (weight * each(objective, pair_batch())).sum(), rtol=1e-5)
  assert got.weight == weight.sum()
  assert all(mean.weight == weight.sum() for mean in metrics.values())
  ones = pair_batch() | {"weight": np.ones(B, np.float32)}
  close(run(objective, ones), run(objective, pair_batch()))


def test_tokens_of_a_weighted_pair_count_as_much_as_the_pair():
  weight = np.array([1.0, 0.0, 0.5, 0.0], np.float32)
  batch = pair_batch()
  got, _ = run(objective_of("logratios", preference.nll_chosen), batch | {"weight": weight})
  assert got.weight == (batch["chosen"]["mask"].sum(1) * weight).sum()


def test_an_empty_pair_weighs_nothing_whatever_its_numbers():
  batch = pair_batch() | {"probability": P, "weight": P, "margin": MARGIN}
  objective = objectives.score_pairs(apply, preference.logistic, center=0.1)
  close(run(objective, padded(batch)), run(objective, batch))
  assert np.isfinite(run(objective, batch, parameters())[0].total)
