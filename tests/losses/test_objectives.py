"""Objectives: normalisers, metrics, sums, masks, what a batch must have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import spec
from llm_jax.losses import objectives, policy, preference, token
from llm_jax.losses.inputs import takes
from llm_jax.types import Outputs

B, T, D, V = 4, 6, 5, 11
KEY = jax.random.key(0)
PAIR = "llm_jax.losses.preference"


def apply(params, batch, rng):
  """A toy model: an embedding, a head, a critic, a score read off the first token."""
  hidden = params["embed"][batch["tokens"]]
  values = hidden @ params["value"]
  return Outputs(hidden, params["head"], values, values[:, 0])


def parameters(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  shapes = {"embed": (V, D), "head": (D, V), "value": (D,)}
  return {
    name: jax.random.normal(key, shape)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def lm(seed, mask=None):
  rng = np.random.default_rng(seed)
  mask = rng.integers(0, 2, (B, T)) if mask is None else mask
  mask[:, 2] = 1
  tokens = rng.integers(0, V, (2, B, T)).astype(np.int32)
  segments = np.ones((B, T), np.int32)
  return {"tokens": tokens[0], "targets": tokens[1], "mask": mask.astype(np.float32),
          "positions": np.tile(np.arange(T), (B, 1)), "segments": segments}  # fmt: skip


def pair_batch():
  rng = np.random.default_rng(9)
  refs = rng.normal(size=(2, B)).astype(np.float32)
  return {"chosen": lm(1), "rejected": lm(2), "ref_chosen": refs[0], "ref_rejected": refs[1]}


def rollout(seed=3):
  rng = np.random.default_rng(seed)
  names = ("old_logps", "advantages", "returns", "old_values", "ref_logps")
  arrays = dict(zip(names, rng.normal(size=(5, B, T)).astype(np.float32), strict=True))
  return lm(seed) | arrays


def logps_of(params, batch):
  logits = params["embed"][batch["tokens"]] @ params["head"]
  return np.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]


def run(objective, batch, params=None):
  return jax.jit(objective)(parameters() if params is None else params, batch, KEY)


def with_gradient(objective, batch):
  def scalar(params):
    out = objective(params, batch, KEY)
    return out[0].value, out

  return jax.jit(jax.grad(scalar, has_aux=True))(parameters())


def close(got, want, **kwargs):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, **kwargs), got, want
  )


def test_next_token_is_the_mean_over_masked_tokens():
  batch = lm(0)
  loss, metrics = run(objectives.next_token(apply, token.cross_entropy), batch)
  nll = -logps_of(parameters(), batch)
  np.testing.assert_allclose(loss.total, (nll * batch["mask"]).sum(), rtol=1e-5)
  assert loss.weight == batch["mask"].sum() and loss.total.shape == ()
  close(metrics["nll"], loss)
  cooled, _ = run(objectives.next_token(apply, token.cross_entropy, temperature=0.5), batch)
  double = parameters() | {"head": 2 * parameters()["head"]}
  close(cooled, run(objectives.next_token(apply, token.cross_entropy), batch, double)[0])


def test_a_sum_is_a_vector_of_terms_each_with_its_normaliser():
  total = spec.resolve("logistic(beta=0.1) + 0.2*nll_chosen", PAIR)
  batch = pair_batch()
  loss, _ = run(objectives.logratio_pairs(apply, total), batch)
  first, _ = run(objectives.logratio_pairs(apply, total.terms[0][1]), batch)
  nll, _ = run(objectives.next_token(apply, token.cross_entropy), batch["chosen"])
  assert loss.total.shape == loss.weight.shape == (2,)
  np.testing.assert_allclose(loss.weight, [B, batch["chosen"]["mask"].sum()])
  np.testing.assert_allclose(loss.total, [first.total, 0.2 * nll.total], rtol=1e-5)
  np.testing.assert_allclose(loss.value, first.value + 0.2 * nll.value, rtol=1e-5)
  text = spec.resolve("cross_entropy - 0.1*entropy", "llm_jax.losses.token")
  both, _ = run(objectives.next_token(apply, text), lm(0))
  assert both.total.shape == (2,) and both.total[1] < 0


@pytest.mark.parametrize("average", [False, True])
def test_logratios_are_summed_or_averaged_over_tokens(average):
  batch, params = pair_batch(), parameters()
  seen = {}
  for side in ("chosen", "rejected"):
    mask = batch[side]["mask"]
    ratio = (logps_of(params, batch[side]) * mask).sum(1) - batch[f"ref_{side}"]
    seen[side] = ratio / mask.sum(1) if average else ratio
  ipo = functools.partial(preference.ipo, beta=0.2)
  loss, metrics = run(objectives.logratio_pairs(apply, ipo, average=average), batch)
  gap = seen["chosen"] - seen["rejected"]
  np.testing.assert_allclose(loss.total, ((gap - 2.5) ** 2).sum(), rtol=1e-4)
  assert loss.weight == B
  np.testing.assert_allclose(metrics["rewards/margins"].value, gap.mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics["rewards/accuracies"].value, (gap > 0).mean())
  np.testing.assert_allclose(metrics["rewards/chosen"].value, seen["chosen"].mean(), rtol=1e-4)
  chosen = (logps_of(params, batch["chosen"]) * batch["chosen"]["mask"]).sum(1).mean()
  np.testing.assert_allclose(metrics["logps/chosen"].value, chosen, rtol=1e-4)


def test_a_model_against_itself_has_log_ratio_zero():
  batch = pair_batch()
  logps = jax.jit(objectives.sequence_logps(apply))
  batch |= {f"ref_{s}": logps(parameters(), batch[s], KEY) for s in ("chosen", "rejected")}
  loss, metrics = run(objectives.logratio_pairs(apply, preference.logistic), batch)
  np.testing.assert_allclose(loss.value, np.log(2), rtol=1e-6)
  assert metrics["rewards/margins"].total == 0
  assert metrics["rewards/accuracies"].value == 0.5  # Ties are chance.


def test_reference_free_losses_need_no_reference():
  batch = {side: pair_batch()[side] for side in ("chosen", "rejected")}
  means = [
    (logps_of(parameters(), x) * x["mask"]).sum(1) / x["mask"].sum(1) for x in batch.values()
  ]
  for text in ("simpo(beta=2.0, gamma=0.5)", "orpo"):
    fn = spec.resolve(text, PAIR)
    loss, metrics = run(objectives.logratio_pairs(apply, fn), batch)
    np.testing.assert_allclose(loss.total, fn(*map(jnp.array, means)).sum(), rtol=1e-4)
  np.testing.assert_allclose(metrics["rewards/chosen"].value, means[0].mean(), rtol=1e-4)
  with pytest.raises(
    ValueError, match="logistic takes chosen_logratio: the batch needs .ref_chosen"
  ):
    run(objectives.logratio_pairs(apply, preference.logistic), batch)


def test_kto_on_pairs_is_the_good_term_plus_the_bad_term():
  batch = pair_batch() | {"baseline": np.full(B, 0.3, np.float32)}
  ratios = [
    (logps_of(parameters(), batch[s]) * batch[s]["mask"]).sum(1) - batch[f"ref_{s}"]
    for s in ("chosen", "rejected")
  ]
  loss, _ = run(objectives.logratio_pairs(apply, preference.kto), batch)
  good, bad = (
    preference.kto(jnp.array(r), jnp.full(B, d), 0.3) for r, d in zip(ratios, (1, 0), strict=True)
  )
  np.testing.assert_allclose(loss.total, (good + bad).sum(), rtol=1e-4)
  assert loss.weight == B
  with pytest.raises(ValueError, match="kto takes baseline: the batch needs 'baseline'"):
    run(objectives.logratio_pairs(apply, preference.kto), pair_batch())
  shifted, _ = run(objectives.logratio_pairs(apply, preference.bco_pair), batch)
  plain, _ = run(objectives.logratio_pairs(apply, preference.bco_pair), pair_batch())
  assert abs(shifted.total - plain.total) > 1e-3
  with pytest.raises(ValueError, match="no term of the loss takes the batch's baseline"):
    run(objectives.logratio_pairs(apply, preference.logistic), batch)


def test_a_plain_function_is_a_pair_loss():
  def mine(chosen, rejected):
    return rejected - chosen

  @takes("chosen_lengths", "rejected_lengths")
  def longer(chosen, rejected):
    return chosen - rejected

  batch = pair_batch()
  loss, metrics = run(objectives.logratio_pairs(apply, mine), batch)
  np.testing.assert_allclose(loss.value, -metrics["rewards/margins"].value, rtol=1e-5)
  loss, _ = run(objectives.logratio_pairs(apply, longer), batch)
  lengths = [batch[s]["mask"].sum() for s in ("chosen", "rejected")]
  assert loss.total == lengths[0] - lengths[1]
  with pytest.raises(ValueError, match="<lambda> cannot be called with"):
    objectives.logratio_pairs(apply, lambda chosen: chosen)


def test_score_pairs():
  batch = {side: pair_batch()[side] for side in ("chosen", "rejected")}
  scores = [
    (parameters()["embed"][batch[s]["tokens"]] @ parameters()["value"])[:, 0] for s in batch
  ]
  loss, metrics = run(objectives.score_pairs(apply, preference.logistic, center=0.01), batch)
  want = preference.logistic(*scores) + 0.01 * (scores[0] + scores[1]) ** 2
  np.testing.assert_allclose(loss.total, want.sum(), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["accuracy"].value, np.mean((1 + np.sign(scores[0] - scores[1])) / 2)
  )
  np.testing.assert_allclose(metrics["margin"].value, np.mean(scores[0] - scores[1]), rtol=1e-4)
  graded = batch | {"margin": np.full(B, 2.0, np.float32)}
  loss, _ = run(objectives.score_pairs(apply, preference.logistic), graded)
  np.testing.assert_allclose(loss.total, preference.logistic(*scores, margin=2.0).sum(), rtol=1e-4)
  with pytest.raises(ValueError, match="takes the batch's margin"):
    run(objectives.score_pairs(apply, preference.hinge), graded)
  with pytest.raises(ValueError, match="orpo takes chosen_mean_logps"):
    objectives.score_pairs(apply, preference.orpo)


def padded(batch):
  """The same batch with one more row that is all padding, and garbage wherever the mask is 0."""

  def grow(x):
    return np.concatenate([x, np.ones_like(x[:1])])

  def dirty(lm_batch):
    out = {name: grow(x) for name, x in lm_batch.items()}
    for name in ("mask", "segments"):
      out[name][-1] = 0
    hole = out["mask"] == 0
    out["targets"] = np.where(hole, 3, out["targets"])
    for name in set(out) & {"old_logps", "advantages", "returns", "old_values", "ref_logps"}:
      out[name] = np.where(hole, np.float32(1e3), out[name])
    return out

  if "chosen" not in batch:
    return dirty(batch)
  sides = {side: dirty(batch[side]) for side in ("chosen", "rejected")}
  return sides | {name: grow(x) for name, x in batch.items() if name not in sides}


OBJECTIVES = {
  "next_token": (objectives.next_token(apply, token.cross_entropy), lm(0)),
  "score_pairs": (objectives.score_pairs(apply, preference.logistic, center=0.1), pair_batch()),
  "logratio_pairs": (
    objectives.logratio_pairs(apply, spec.resolve("ipo + nll_chosen + orpo", PAIR)), pair_batch()
  ),
  "actor_critic": (
    objectives.actor_critic(apply, policy.ppo_clip, policy.value_clip, entropy_coef=0.1), rollout()
  ),
  "policy": (
    objectives.policy(apply, policy.gspo, kl_coef=0.1, kl_estimator="k2", entropy_coef=0.1),
    rollout(),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_changes_nothing(name):
  objective, batch = OBJECTIVES[name]
  close(with_gradient(objective, padded(batch)), with_gradient(objective, batch))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_halves_add_up_to_the_whole(name):
  objective, batch = OBJECTIVES[name]
  halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
  added = jax.tree.map(jnp.add, *(run(objective, half) for half in halves))
  close(added, run(objective, batch))


def test_actor_critic_is_its_three_parts_per_token():
  batch, params = rollout(), parameters()
  objective = objectives.actor_critic(
    apply, policy.ppo_clip, policy.value_clip, value_coef=0.5, entropy_coef=0.1
  )
  loss, metrics = run(objective, batch)
  m = {name: mean.value for name, mean in metrics.items()}
  want = m["loss/policy"] + 0.5 * m["loss/value"] - 0.1 * m["policy/entropy"]
  np.testing.assert_allclose(loss.value, want, rtol=1e-4)
  assert loss.weight == batch["mask"].sum()
  keep = batch["mask"] > 0
  change = (logps_of(params, batch) - batch["old_logps"])[keep]
  np.testing.assert_allclose(m["policy/approxkl"], 0.5 * (change**2).mean(), rtol=1e-4)
  np.testing.assert_allclose(m["val/ratio"], np.exp(change).mean(), rtol=1e-4)
  up = batch["advantages"][keep] > 0
  np.testing.assert_allclose(
    m["policy/clipfrac"], np.where(up, np.exp(change) > 1.2, np.exp(change) < 0.8).mean()
  )
  values = (params["embed"][batch["tokens"]] @ params["value"])[keep]
  moved = np.abs(values - batch["old_values"][keep]) > 0.2
  near = np.clip(values - batch["old_values"][keep], -0.2, 0.2) + batch["old_values"][keep]
  error, far = (near - batch["returns"][keep]) ** 2, (values - batch["returns"][keep]) ** 2
  np.testing.assert_allclose(m["val/clipfrac"], (moved & (error > far)).mean())
  np.testing.assert_allclose(m["val/error"], far.mean(), rtol=1e-4)
  with pytest.raises(ValueError, match="gspo averages over sequences"):
    objectives.actor_critic(apply, policy.gspo, policy.value_clip)


@pytest.mark.parametrize(
  ("aggregate", "length", "want"),
  [("token", 0, 0.36), ("sequence", 0, 0.325), ("constant", 2, 0.45), ("constant", 0, 0.3)],
)
def test_aggregates_of_a_published_vector(aggregate, length, want):  # Tunix.
  batch = lm(0) | {name: np.zeros((B, T), np.float32) for name in ("old_logps", "advantages")}
  batch = jax.tree.map(lambda x: x[:2, :3], batch)
  batch["mask"] = np.array([[1, 1, 0], [1, 1, 1]], np.float32)
  table = jnp.array([[0.1, 0.2, 9.0], [0.4, 0.5, 0.6]])
  loss = lambda logps, old_logps, advantages: table + 0 * logps  # noqa: E731
  got, _ = run(objectives.policy(apply, loss, aggregate=aggregate, length=length), batch)
  np.testing.assert_allclose(got.value, want, rtol=1e-5)


@pytest.mark.parametrize("loss", [policy.ppo_clip, policy.gspo])
@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_packed_rows_count_as_unpacked_ones(loss, aggregate):
  batch = rollout()
  batch["advantages"] = np.ones_like(batch["advantages"]) * np.arange(1.0, B + 1)[:, None]
  packed = {name: x.reshape(B // 2, 2 * T) for name, x in batch.items()}
  packed["segments"] = np.repeat([[1, 2], [1, 2]], T, axis=1)
  objective = objectives.policy(apply, loss, kl_coef=0.1, aggregate=aggregate, length=T)
  close(run(objective, packed), run(objective, batch))


def test_policy_adds_the_kl_and_the_bonus():
  batch = rollout()
  plain, _ = run(objectives.policy(apply, policy.reinforce), batch)
  full, metrics = run(
    objectives.policy(apply, policy.reinforce, kl_coef=0.5, kl_estimator="k2", entropy_coef=0.1),
    batch,
  )
  want = plain.value + 0.5 * metrics["loss/kl"].value - 0.1 * metrics["policy/entropy"].value
  np.testing.assert_allclose(full.value, want, rtol=1e-4)
  total = spec.Sum(((1.0, policy.ppo_clip), (0.5, policy.gspo)))
  both, _ = run(objectives.policy(apply, total), batch)
  np.testing.assert_allclose(both.weight, [batch["mask"].sum(), B])


def test_what_is_missing_is_named():
  batch = rollout()
  with pytest.raises(ValueError, match=r"needs batch\['ref_logps'\]"):
    bare = {k: v for k, v in batch.items() if k != "ref_logps"}
    run(objectives.policy(apply, policy.ppo_clip, kl_coef=0.1), bare)
  with pytest.raises(ValueError, match=r"ppo_clip needs batch\['old_logps'\]"):
    run(objectives.policy(apply, policy.ppo_clip), lm(0))
  with pytest.raises(ValueError, match=r"Outputs.values"):
    headless = lambda *args: apply(*args)._replace(values=None)  # noqa: E731
    run(objectives.actor_critic(headless, policy.ppo_clip, policy.value_clip), batch)
  with pytest.raises(ValueError, match="median"):
    objectives.policy(apply, policy.ppo_clip, aggregate="median")
