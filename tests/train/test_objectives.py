"""The real objectives on a tiny decoder: one device = mesh = pmap = accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.losses import objectives, policy, preference, token
from llm_jax.models.heads import Critic, Scorer
from llm_jax.models.transformer import Transformer
from llm_jax.spec import resolve
from llm_jax.train import parallel
from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import Outputs

SHAPE = config.Model(vocab_size=32, dim=16, layers=1, heads=2)
DECODER, SCORER, CRITIC = (kind.from_config(SHAPE) for kind in (Transformer, Scorer, Critic))
ROWS, LENGTH = 16, 8


def lm_apply(params, batch, rng):
  hidden = DECODER.apply({"params": params}, batch["tokens"], batch["positions"], batch["segments"])
  return Outputs(hidden=hidden, head=DECODER.head(params))


def score_apply(params, batch, rng):
  scores = SCORER.apply({"params": params}, batch["tokens"], batch["positions"], batch["segments"])
  return Outputs(scores=scores)


def actor_critic_apply(params, batch, rng):
  values = CRITIC.apply(
    {"params": params["critic"]}, batch["tokens"], batch["positions"], batch["segments"]
  )
  return lm_apply(params["policy"], batch, rng)._replace(values=values)


def params_of(model):
  return lambda key: model.init(key, jnp.zeros((1, LENGTH), jnp.int32))["params"]


def actor_critic_params(key):
  return {"policy": params_of(DECODER)(key), "critic": params_of(CRITIC)(key)}


def lm(seed):
  """An LM batch of rows of very unequal length."""
  rng = np.random.default_rng(seed)
  real_BT = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, ROWS)[:, None]
  tokens, targets = rng.integers(1, 32, (2, ROWS, LENGTH)).astype(np.int32)
  return {
    "tokens": tokens * real_BT,
    "targets": targets * real_BT,
    "mask": (real_BT & (rng.random((ROWS, LENGTH)) < 0.6)).astype(np.float32),
    "positions": np.where(real_BT, np.arange(LENGTH), 0).astype(np.int32),
    "segments": real_BT.astype(np.int32),
  }


def pairs(seed):
  rng = np.random.default_rng(seed)
  ref_B = -10 * rng.random((2, ROWS)).astype(np.float32)
  return {
    "chosen": lm(seed),
    "rejected": lm(seed + 50),
    "ref_chosen": ref_B[0],
    "ref_rejected": ref_B[1],
  }


def rollouts(seed):
  rng = np.random.default_rng(seed)
  names = ("old_logps", "advantages", "returns", "old_values", "ref_logps")
  extra = {k: rng.normal(size=(ROWS, LENGTH)).astype(np.float32) for k in names}
  return lm(seed) | extra | {"old_logps": np.full((ROWS, LENGTH), -np.log(32), np.float32)}


CASES = {
  "next_token": (objectives.next_token(lm_apply, token.cross_entropy), params_of(DECODER), lm),
  "score_pairs": (
    objectives.score_pairs(score_apply, preference.logistic, center=0.01),
    params_of(SCORER),
    pairs,
  ),
  "logratio_pairs": (
    objectives.logratio_pairs(
      lm_apply, resolve("logistic(beta=0.1) + 0.2*nll_chosen", "llm_jax.losses.preference")
    ),
    params_of(DECODER),
    pairs,
  ),
  "actor_critic": (
    objectives.actor_critic(
      actor_critic_apply, policy.ppo_clip, policy.value_clip, entropy_coef=0.01
    ),
    actor_critic_params,
    rollouts,
  ),
}


@functools.cache
def train(name, kind, accum):
  """Two updates; returns parameters, losses and gradient norms."""
  meshes = {
    "one": config.Mesh(data=1),
    "cube": config.Mesh(data=2, fsdp=2, tensor=2),
    "pmap": config.Mesh(kind="pmap"),
  }
  place, (loss_fn, make_params, make_batch) = parallel.make(meshes[kind]), CASES[name]
  tx = optax.sgd(0.1)
  state = place.init(state_maker(make_params, tx), jax.random.key(0))
  step = place.compile(make_train_step(loss_fn, tx, accum=accum, axis_name=place.axis_name))
  seen = []
  for n in range(2):
    state, metrics = step(state, place.batch(make_batch(n)))
    fetched = place.fetch(metrics)
    seen.append({k: np.asarray(v.value) for k, v in fetched.items()})
  return place.fetch(state.params), seen


FAST = {("next_token", "cube"), ("logratio_pairs", "pmap")}


def every_case():
  """Every objective under every placement; some only in the slow tests."""
  for name in CASES:
    for kind, accum in (("one", 4), ("cube", 2), ("pmap", 2)):
      marks = () if (name, kind) in FAST else pytest.mark.slow
      yield pytest.param(name, kind, accum, marks=marks)


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind", "accum"), list(every_case()))
def test_every_placement_and_accumulation_makes_the_same_update(name, kind, accum):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6),
    train(name, kind, accum),
    train(name, "one", 1),
  )
