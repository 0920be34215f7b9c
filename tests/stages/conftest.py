"""A prepared corpus of a toy language, and a chain of tiny stages trained on it once."""

import flax.linen as nn
import jax
import pytest

from llm_jax import config
from llm_jax.models import interop
from llm_jax.models.transformer import Transformer
from llm_jax.stages import ppo, preferences, pretrain, reward, runs, sft, training
from tools import _toy_world

SHAPE, asked = _toy_world.SHAPE, _toy_world.asked


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  path = tmp_path_factory.mktemp("prepared")
  _toy_world.prepare(path)
  return path


def tiny(make, prepared, **fields):
  """A stage's config cut to a few steps on eight devices."""
  cfg = make(prepared=str(prepared), **fields)
  for name, value in {"steps": 4, "batch": 8, "length": 96, "log_every": 2}.items():
    setattr(cfg, name, fields.get(name, value))
  cfg.eval_every, cfg.checkpoint_every = 2, 2
  return cfg


@pytest.fixture(scope="session")
def start(prepared, tmp_path_factory):
  """A folder with an untrained decoder."""
  path = tmp_path_factory.mktemp("start")
  model = Transformer.from_config(
    config.Model(dim=32, layers=1, heads=2, vocab_size=runs.tokenizer(str(prepared)).vocab_size)
  )
  params = jax.jit(training.initializer(model))(jax.random.key(0))
  interop.save(path, model, jax.device_get(nn.unbox(params)))
  return str(path)


SAMPLING = config.Sampling(max_new=6)


@pytest.fixture(scope="session")
def root(prepared, tmp_path_factory):
  """A directory with the runs `pretrain sft preferences reward ppo`."""
  path = tmp_path_factory.mktemp("runs")
  (path / "prepare").symlink_to(prepared)
  pretrain.run(tiny(config.Pretrain, prepared, model=SHAPE), path / "pretrain")
  sft.run(tiny(config.Sft, prepared, init=str(path / "pretrain")), path / "sft")
  preferences.run(
    config.Preferences(
      prepared=str(prepared),
      init=str(path / "sft"),
      questions=16,
      validation_questions=8,
      samples=3,
      sampling=SAMPLING,
    ),
    path / "preferences",
  )
  pairs = {"init": str(path / "sft"), "preferences": str(path / "preferences")}
  reward.run(tiny(config.Reward, prepared, **pairs), path / "reward")
  ppo.run(ppo_config(prepared, path), path / "ppo")
  return path


def ppo_config(prepared, path, **fields):
  roles = {"init": str(path / "sft"), "reward": str(path / "reward")}
  return tiny(config.Ppo, prepared, sampling=SAMPLING, rollouts=16, **roles, **fields)
