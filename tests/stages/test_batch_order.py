"""Every stage's batches follow from the seed and the step, whoever reads them, from wherever on."""

import json
import random
import types

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.stages import dpo, grpo, online_dpo, pack, ppo, pretrain, reward, sft, training
from llm_jax.train import parallel
from tests.stages.conftest import SAMPLING, SHAPE, tiny
from tools import _toy_world

STEPS = 12
ENCODER_DECODER = config.Model(
  dim=32, layers=1, encoder_layers=1, heads=2, position="relative", qk_norm=False, tied=False
)


@pytest.fixture(scope="module")
def files(prepared, tmp_path_factory):
  """Rows that were packed, pairs, rankings and labels."""
  path = tmp_path_factory.mktemp("files")
  pack.run(config.Pack(prepared=str(prepared), length=96, workers=1), path / "rows")
  _toy_world.write_pairs(path / "pairs.jsonl")
  _toy_world.write_labels(path / "labels.jsonl")
  ranked = [
    {"prompt": f"Sort {i}?", "responses": ["Sort it.", "Sort.", "No."], "scores": [3, 2, 1.0]}
    for i in range(20)
  ]
  (path / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked))
  return path


def configured(name, prepared, start, files):
  """(stage, config) of a case."""
  model, own = {"model": SHAPE}, {"init": start, "validation": 0.2}
  sources = (f"rows={files}/rows",) if name == "packed rows" else (f"a={prepared}", f"b={prepared}")
  weights = () if name == "packed rows" else ("a=1, b=2", "5: a=2, b=1")
  mixture = config.Mixture(sources=sources, weights=weights, max_epochs=1e6)
  stage, fields = {
    "first_fit": (pretrain, model),
    "best_fit": (pretrain, model | {"packing": "best_fit"}),
    "concat": (pretrain, model | {"packing": "concat"}),
    "packed rows": (pretrain, model | {"mixture": mixture}),
    "mixture": (pretrain, model | {"mixture": mixture}),
    "spans": (pretrain, {"model": ENCODER_DECODER, "length": 48}),
    "sft": (sft, {"init": start}),
    "sft, a conversation a row": (sft, {"init": start, "packed": False}),
    "reward": (reward, own | {"preferences": f"{files}/pairs.jsonl"}),
    "reward, in groups": (reward, own | {"preferences": f"{files}/ranked.jsonl"}),
    "dpo": (dpo, own | {"preferences": f"{files}/pairs.jsonl"}),
    "kto": (dpo, own | {"labels": f"{files}/labels.jsonl", "loss": "kto(beta=0.1)"}),
  }[name]
  make = {pretrain: config.Pretrain, sft: config.Sft, reward: config.Reward, dpo: config.Dpo}[stage]
  return stage, tiny(make, prepared, steps=STEPS, **fields)


def made(stage, cfg, workdir, share=(0, 1)):
  """What a stage would train on and from, in a process that has this share of the rows."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel.MeshJit, "share", lambda self: share)
    patch.setattr(training, "train", lambda cfg, workdir, *, feed, loaded=None, **_: (feed, loaded))
    return stage.run(cfg, str(workdir))


def take(feed, count=STEPS):
  return [feed.next(None) for _ in range(count)]


def same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def joined(parts, rows):
  """The batch of all processes: each gives all of it, or its part."""
  if len(jax.tree.leaves(parts[0])[0]) == rows:
    assert all(same(part, parts[0]) for part in parts)
    return parts[0]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


CASES = (
  "first_fit", "best_fit", "concat", "packed rows", "mixture", "spans", "sft",
  "sft, a conversation a row", "reward", "reward, in groups", "dpo", "kto",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_batch_follows_from_the_seed_and_the_step(name, prepared, start, files, tmp_path):
  def feed(share=(0, 1), **fields):
    stage, cfg = configured(name, prepared, start, files)
    for field, value in fields.items():
      setattr(cfg, field, value)
    return made(stage, cfg, tmp_path / "run", share)[0]

  first, states, batches = feed(), [], []
  for _ in range(STEPS):
    states.append(json.dumps(first.get_state()))
    batches += take(first, 1)
  for count in (2, 4):
    for *parts, whole in zip(*(take(feed((i, count))) for i in range(count)), batches, strict=True):
      assert same(joined(parts, 8), whole)
  assert same(take(feed(accum=4)), batches)
  assert not any(same(a, b) for a, b in zip(take(feed(seed=1)), batches, strict=True))
  again = feed()
  for step in random.Random(0).sample(range(STEPS), STEPS):
    again.set_state(json.loads(states[step]))
    wanted = batches[step : step + 3]
    assert same(take(again, len(wanted)), wanted)


DRAWING = {
  "ppo": (ppo, config.Ppo, {"reward": "", "critic": "policy", "rollouts": 8}),
  "grpo": (grpo, config.Grpo, {"prompts": 4, "samples": 2}),
  "online_dpo": (online_dpo, config.OnlineDpo, {"prompts": 8, "samples": 2}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", DRAWING)
def test_a_rollout_follows_from_policy_seed_and_iteration(name, prepared, start, tmp_path):
  stage, make, fields = DRAWING[name]

  def collector(seed=0):
    given = fields | {"init": start, "score": "gold", "sampling": SAMPLING, "prompt_length": 32}
    cfg = tiny(make, prepared, mesh=config.Mesh(data=1), **given)
    cfg.seed = seed
    feed, params = made(stage, cfg, tmp_path / "run")
    state = types.SimpleNamespace(params=params, whole=params)
    return lambda iteration: feed.collect(state, iteration, {"kl_coef": 0.05})[0]

  collect = collector()
  rollouts = [collect(iteration) for iteration in range(3)]
  assert not any(same(rollouts[0], other) for other in rollouts[1:])
  assert same(collector()(2), rollouts[2])
  assert same(collect(1), rollouts[1])
  assert not same(collector(seed=1)(2), rollouts[2])
