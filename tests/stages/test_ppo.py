"""PPO's roles, switches and mixes: what is shared is shared, what is frozen stays."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ppo as recipes
from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.generate import rollout_to_batch, sample
from llm_jax.losses import objectives
from llm_jax.models import heads, lora
from llm_jax.stages import labels, ppo, rewards, runs, training
from llm_jax.stages.roles import Roles
from llm_jax.train import parallel
from llm_jax.train.metrics import read
from llm_jax.types import Mean
from tests.stages.conftest import ppo_config

LONG = functools.partial(pytest.param, marks=pytest.mark.long)
SHAPE = config.Model(31, 16, 2, 2)
RNG = np.random.default_rng(0)
BATCH = {
  "tokens": RNG.integers(0, 31, (4, 7), np.int32),
  "targets": RNG.integers(0, 31, (4, 7), np.int32),
  "mask": np.repeat([[0, 0, 0, 1, 1, 1, 1]], 4, 0).astype(np.float32),
  "positions": np.tile(np.arange(7, dtype=np.int32), (4, 1)),
  "segments": np.ones((4, 7), np.int32),
  "sampler_logps": RNG.normal(size=(4, 7)).astype(np.float32),
}


@functools.cache
def roles(critic="reward", rank=0):
  """The roles and their parameters at the start; adapters then changed by noise."""
  cfg = config.Ppo(critic=critic, lora=config.Lora(rank))
  made = Roles.of(cfg, SHAPE, SHAPE)
  params = nn.unbox(made.make_params(jax.random.key(0)))
  if rank:
    params = nn.unbox(made.attach(params, jax.random.key(1)))
  return made, params


def moved(params):
  """The same with every adapter changed."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.1 if lora.trained(tuple(k.key for k in path)) else x, params
  )


@pytest.mark.parametrize("critic", [LONG("reward"), "policy", LONG("shared")])
def test_the_reference_is_the_policy_without_its_adapter(critic):
  made, params = roles(critic, rank=2)
  annotate = jax.jit(functools.partial(made.annotate, temperature=1.0))
  first = annotate(params, None, BATCH)
  np.testing.assert_allclose(first["old_logps"], first["ref_logps"], atol=1e-6)
  after = annotate(moved(params), None, BATCH)
  np.testing.assert_array_equal(after["ref_logps"], first["ref_logps"])
  assert np.abs(after["old_logps"] - first["old_logps"]).max() > 1e-3
  with_own = annotate(params, lora.without(params["policy"]), BATCH)
  np.testing.assert_array_equal(with_own["ref_logps"], first["ref_logps"])


def test_the_sampler_s_log_probs_may_stand_for_the_learner_s():
  made, params = roles()
  annotate = jax.jit(functools.partial(made.annotate, temperature=1.0, sampled=True))
  found = annotate(params, params["policy"], BATCH)
  np.testing.assert_array_equal(found["old_logps"], BATCH["sampler_logps"] * BATCH["mask"])
  np.testing.assert_array_equal(found["old_logps"][:, :3], 0)


def test_a_shared_critic_s_values_may_be_the_sampler_s_and_the_policy_is_not_read_again():
  made, params = roles("shared")
  prompts, keys = BATCH["tokens"][:, :3], jax.random.split(jax.random.key(1), 4)
  head = {"kernel": jnp.ones(16), "bias": jnp.float32(0.5)}
  params = params | {"critic": {"head": head}}
  given = made.read_while_drawn(params)
  drawn = sample(
    made.model, params["policy"], prompts, np.ones_like(prompts), keys, max_new=5, end_id=-1,
    value=given,
  )  # fmt: skip
  batch = rollout_to_batch(drawn)
  reference = jax.tree.map(lambda x: x + 0.01, params["policy"])
  by = {
    sampled: functools.partial(made.annotate, temperature=1.0, sampled=sampled)
    for sampled in (True, False)
  }
  found, learners = (by[sampled](params, reference, batch) for sampled in (True, False))
  for name in ("old_logps", "ref_logps", "old_values"):
    np.testing.assert_allclose(found[name], learners[name], atol=1e-4)
  dots = {
    k: str(jax.make_jaxpr(f)(params, reference, batch)).count("dot_general") for k, f in by.items()
  }
  assert dots[True] < 0.6 * dots[False]
  assert roles("reward")[0].read_while_drawn(params) is None


@pytest.mark.parametrize(
  ("critic", "copies"), [("reward", 2), ("policy", 1), ("shared", 1)], ids=str
)
def test_adapters_share_what_they_are_on(critic, copies):
  made, params = roles(critic, rank=2)
  decoder = sum(x.size for x in jax.tree.leaves(lora.without(params["policy"])))
  trained = [
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if made.trained(tuple(k.key for k in path))
  ]
  whole = sum(x.size for x in jax.tree.leaves(params))
  assert copies * decoder <= whole < (copies + 0.9) * decoder
  assert sum(trained) < 0.8 * decoder
  assert (made.judge(params) is not None) == (critic == "reward")


@pytest.mark.parametrize("critic", ["reward", "policy", "shared"])
@pytest.mark.parametrize("rank", [0, 2])
def test_values_are_those_of_a_critic_on_its_decoder(critic, rank):
  made, params = roles(critic, rank)
  params = moved(params) if rank else params
  own = params["critic"]
  head = {"kernel": jnp.ones(16), "bias": jnp.float32(0.5)}
  params = params | {"critic": own | {"head": head}}
  decoder = own.get("decoder", params["policy"])
  if "lora" in own:
    decoder = lora.without(params["policy"]) | {"lora": own["lora"]}
  want = heads.Critic.from_config(SHAPE).apply(
    {"params": {"decoder": lora.merge(decoder), "head": head}},
    BATCH["tokens"], BATCH["positions"], BATCH["segments"],
  )  # fmt: skip
  found = jax.jit(made.apply)(params, BATCH, jax.random.key(0)).values
  np.testing.assert_allclose(found, want, atol=2e-5)


def test_a_shared_critic_has_no_decoder_of_its_own():
  assert set(roles("shared")[1]["critic"]) == {"head"}
  assert set(roles("policy")[1]["critic"]) == {"decoder", "head"}
  assert set(roles("policy", 2)[1]["critic"]) == {"lora", "head"}


def test_a_loss_beside_another_keeps_both_normalisers():
  def one(params, batch, rng):
    return Mean(params * 3.0, jnp.float32(2.0)), {"a": Mean(params, 1.0)}

  def two(params, batch, rng):
    return Mean(params * batch["x"], jnp.float32(5.0)), {"nll": Mean(params, 1.0)}

  both = objectives.beside(one, two, 10.0, "ptx")
  mean, metrics = both(2.0, {"ptx": {"x": 7.0}}, None)
  np.testing.assert_allclose(mean.value, 6 / 2 + 10 * 14 / 5)
  assert set(metrics) == {"a", "ptx/nll"}
  with pytest.raises(ValueError, match="'ptx'"):
    both(2.0, {}, None)


def labelled(scores, **fields):
  zeros = np.zeros((4, 3), np.float32)
  batch = {"mask": zeros + 1, "old_logps": zeros, "ref_logps": zeros, "old_values": zeros}
  cfg = config.Ppo(lam=1.0, whiten_advantages=False, **fields)
  scores = np.asarray(scores, np.float32)
  ended = np.array([1, 1, 1, 0], np.float32)
  batch, metrics = labels.actor_critic(cfg)(batch, scores, ended, 0.1)
  return np.asarray(batch["returns"])[:, 0]


def test_conventions_of_the_reward():
  scores = [4.0, -1.0, 0.0, 1.0]
  np.testing.assert_allclose(labelled(scores), [4, -1, 0, 0], atol=1e-6)
  np.testing.assert_allclose(labelled(scores, missing_end="replace"), [4, -1, 0, -1], atol=1e-6)
  np.testing.assert_allclose(labelled(scores, score_clip=2.0), [2, -1, 0, 0], atol=1e-6)
  white = (np.array(scores) - 1) / np.std(scores, ddof=1)
  found = labelled(scores, whiten_scores=True, missing_end_penalty=0.0)
  np.testing.assert_allclose(found, white, atol=1e-5)
  shaped = np.zeros((4, 3))
  shaped[:, 2] = [4, -1, 0, 0]
  scaled = shaped / shaped.std(ddof=1)
  scaled += shaped.mean() - scaled.mean()
  np.testing.assert_allclose(labelled(scores, whiten_rewards=True), scaled.sum(1), atol=1e-5)


def test_the_divergence_may_stand_in_the_loss():
  made, params = roles()
  batch = BATCH | made.annotate(params, params["policy"], BATCH, 1.0)
  batch |= {"ref_logps": batch["old_logps"] - 0.5, "advantages": 0 * batch["mask"]}
  batch |= {"returns": batch["old_values"]}
  losses = [lambda logps, old_logps, advantages: 0.0 * logps, lambda v, o, r: 0.0 * v]
  fn = objectives.actor_critic(made.apply, *losses, kl_coef=2.0, kl_estimator="k2")
  mean, metrics = fn(params, batch, jax.random.key(0))
  np.testing.assert_allclose(mean.value, 2.0 * 0.5 * 0.25, rtol=1e-4)
  np.testing.assert_allclose(metrics["loss/kl"].value, 0.125, rtol=1e-4)


def answered(*values):
  models = {
    name: (lambda batch, v=v: np.array(v, np.float32))
    for name, v in zip("abc", values, strict=True)
  }
  return rewards.Answered([], [None] * 2, [], {}, models)


def test_an_ensemble_is_as_sure_as_its_least_member():
  given = answered([1.0, 2.0], [3.0, 2.0], [2.0, 2.0])
  ask = functools.partial(rewards.ensemble, given, runs=("a", "b", "c"))
  np.testing.assert_allclose(ask(), [2, 2])
  np.testing.assert_allclose(ask(how="worst"), [1, 2])
  np.testing.assert_allclose(ask(how="uncertainty", coef=0.3), [2 - 0.3 * 2 / 3, 2])
  with pytest.raises(UserError, match="mean, worst or uncertainty"):
    ask(how="least")


@pytest.mark.parametrize("variant", recipes.VARIANTS)
def test_every_variant_is_valid(variant):
  recipes.get_config(variant).validate()


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"critic": "polcy"}, 'did you mean "policy"'),
    ({"critic": "shared", "critic_head": "reward"}, "config.critic_head=zero"),
    ({"reward": ""}, "set config.score"),
    ({"ptx_coef": 1.0, "ptx_batch": 3, "accum": 2}, "multiple of config.accum=2"),
    ({"old_logps": "both"}, "old_logps"),
    ({"missing_end": "drop"}, "missing_end"),
  ],
)
def test_configs_that_cannot_be(fields, reason):
  with pytest.raises(UserError, match=reason):
    config.Ppo(**fields).validate()


@pytest.mark.long
def test_adapters_and_the_reward_model_lend_each_other_a_decoder(prepared, root, tmp_path):
  cfg = ppo_config(prepared, root, lora=config.Lora(2), eval_data=(), ptx_coef=0.5, ptx_batch=8)
  cfg.length = 32
  state = ppo.run(cfg, tmp_path / "run")
  frozen = runs.load(cfg.reward, "reward", reward=True).params["decoder"]
  lent = lora.without(state.frozen["critic"]["decoder"])
  same = jax.tree.map(lambda a, b: np.array_equal(a, b), lent, frozen)
  assert all(jax.tree.leaves(same))
  rows = read(tmp_path / "run")
  assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
  assert {"ptx/nll", "objective/raw_scores", "gold/mean"} <= rows[0].keys()
  # What a later stage loads is the policy with its adapter in it.
  found = runs.load(str(tmp_path / "run"), "init")
  start = runs.load(cfg.init, "init").params
  kernel = lambda p: np.asarray(p["blocks_0"]["mlp"]["up"]["kernel"])  # noqa: E731
  gap = np.abs(kernel(found.params) - kernel(start)).max()
  assert 0 < gap < 0.1
  np.testing.assert_array_equal(found.params["embedding"], start["embedding"])


@pytest.mark.long
def test_a_rule_needs_no_reward_model(prepared, root, tmp_path):
  cfg = ppo_config(prepared, root, score="ended - 0.1*exact", critic="shared")
  cfg.reward = ""
  ppo.run(cfg, tmp_path / "run")
  row = read(tmp_path / "run")[0]
  assert {"scores/ended", "scores/exact", "objective/scores"} <= row.keys()
  assert "objective/raw_scores" not in row


def test_a_reward_model_is_asked_through_its_placement(root):
  place = parallel.make(config.Mesh(data=1))
  run = str(root / "reward")
  scores = rewards.Scores.load(f"ensemble(runs=('{run}',)) + ended", place, 0)
  assert set(scores.models) == {run}
  scorer = training.placed(place, heads.Scorer.from_config(runs.load(run, "x", True).shape), {})
  assert jax.tree.structure(scorer) == jax.tree.structure(scores.models[run].params)
