"""Runs that are killed at random moments end as if they had not been, to the bit."""

import dataclasses

import pytest

from llm_jax import config
from tests.faults import kills
from tests.stages.conftest import SHAPE, ppo_config, prepared, root, tiny  # noqa: F401  Fixtures.

STAGES = ("pretrain", "sft", "dpo", "ppo")


def setting(stage, root):  # noqa: F811
  """A run of some hundred steps that saves every few of them."""
  data = str(root / "prepare")
  if stage == "pretrain":
    cfg = tiny(config.Pretrain, data, model=dataclasses.replace(SHAPE))
  elif stage == "sft":
    cfg = tiny(config.Sft, data, init=str(root / "pretrain"))
  elif stage == "dpo":
    cfg = tiny(config.Dpo, data, init=str(root / "sft"), preferences=str(root / "preferences"))
  else:
    cfg = ppo_config(data, root)
  cfg.steps, cfg.log_every, cfg.eval_every, cfg.checkpoint_every = 120, 6, 40, 8
  return cfg


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_runs_are_the_uninterrupted_one(stage, count, root, tmp_path, capsys):  # noqa: F811
  hit = kills.torture(stage, setting(stage, root), tmp_path, count)
  with capsys.disabled():
    print(f"\n{stage}: " + ", ".join(f"{n} {where}" for where, n in sorted(hit.items())))
