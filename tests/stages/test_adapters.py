"""Stages that train an adapter: the model under it stays, runs resume, later stages see both."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import interop, lora
from llm_jax.stages import dpo, pretrain, runs, sft
from llm_jax.train import checkpoint
from tests.stages.conftest import SHAPE, tiny
from tools import convert_hf

LORA = config.Lora(rank=2, alpha=4.0)
FAST = config.Optimizer(lr=3e-2, warmup=1)


@pytest.fixture(
  scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["lora", "dora"]
)
def run(request, prepared, root, tmp_path_factory):
  path = tmp_path_factory.mktemp("adapted")
  own = config.Lora(**(vars(LORA) | {"dora": request.param}))
  cfg = tiny(config.Sft, prepared, init=str(root / "pretrain"), lora=own, optimizer=FAST)
  sft.run(cfg, str(path / "sft"))
  return cfg, path / "sft"


def test_a_checkpoint_holds_the_adapter_alone(run, root):
  saved = checkpoint.load_params(run[1])
  assert set(saved) == {"lora"}
  names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(saved)}
  assert names == {"a", "b", "magnitude"} if run[0].lora.dora else names == {"a", "b"}
  base, params = runs.with_adapter(str(run[1]))
  assert base.name == str(root / "pretrain")
  before = runs.load(str(root / "pretrain"), "init").params
  del params["lora"]
  jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_later_stage_sees_the_sum(run, root):
  before = runs.load(str(root / "pretrain"), "init").params
  after = runs.load(str(run[1]), "init").params
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
  assert moved["embedding"] == 0 and moved["blocks_0"]["attention"]["q"]["kernel"] > 1e-3


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(run, tmp_path):
  cfg, path = run
  train = sft.training.train

  def interrupted(*args, **kwargs):
    kwargs["feed"].next = _failing(kwargs["feed"].next)
    return train(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sft.training, "train", interrupted)
    with pytest.raises(RuntimeError, match="power"):
      sft.run(cfg, str(tmp_path / "sft"))
  assert checkpoint.latest_step(tmp_path / "sft" / "checkpoints") == 2
  sft.run(cfg, str(tmp_path / "sft"))
  same = checkpoint.load_params(tmp_path / "sft"), checkpoint.load_params(path)
  jax.tree.map(np.testing.assert_array_equal, *same)


def _failing(give):
  left = iter(range(3))

  def give_three(state):
    if next(left, None) is None:
      raise RuntimeError("the power is gone")
    return give(state)

  return give_three


def test_training_begins_at_the_loaded_model(run, root, tmp_path):
  """A new adapter changes nothing, so the first loss is that of full fine-tuning."""
  cfg = tiny(config.Sft, run[0].prepared, init=run[0].init, steps=1, log_every=1)
  sft.run(cfg, str(tmp_path / "whole"))
  cfg.lora = run[0].lora
  sft.run(cfg, str(tmp_path / "adapter"))
  first = [
    json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    for name in ("whole", "adapter")
  ]
  np.testing.assert_allclose(*first, rtol=1e-5)


@pytest.mark.slow
def test_a_model_that_has_changed_under_its_adapter_is_refused(run, root, tmp_path):
  base, work = tmp_path / "base", tmp_path / "sft"
  shutil.copytree(root / "pretrain", base)
  cfg = tiny(config.Sft, run[0].prepared, init=str(base), lora=run[0].lora)
  sft.run(cfg, str(work))
  shutil.rmtree(base)
  shutil.copytree(root / "sft", base)
  with pytest.raises(UserError, match="is missing or has changed since: train the adapter again"):
    runs.load(str(work), "init")
  before = (work / "adapter.json").read_text()
  with pytest.raises(UserError, match="has changed since the adapter of .* was begun on it"):
    sft.run(cfg, str(work))
  assert (work / "adapter.json").read_text() == before
  with pytest.raises(UserError, match="trained no adapter"):
    runs.with_adapter(str(root / "sft"))


@pytest.mark.slow
def test_targets_are_checked_before_anything_is_written(prepared, root, tmp_path):
  shape = dataclasses.replace(SHAPE, mlp="plain")
  pretrain.run(tiny(config.Pretrain, prepared, model=shape, steps=1), tmp_path / "plain")
  own = config.Lora(rank=2, targets=("q", "gate"))
  cfg = tiny(config.Sft, prepared, init=str(tmp_path / "plain"), lora=own)
  with pytest.raises(UserError, match='no layer "gate"'):
    sft.run(cfg, str(tmp_path / "sft"))
  assert not (tmp_path / "sft").exists()
  for wrong in (config.Lora(rank=2, targets=("qq",)), config.Lora(dora=True)):
    with pytest.raises(UserError, match='no layer "qq"|config.rank is 0'):
      wrong.validate()


def test_dpo_trains_an_adapter_and_starts_at_its_reference(prepared, root, tmp_path):
  paths = {"init": str(root / "sft"), "preferences": str(root / "preferences")}
  dpo.run(tiny(config.Dpo, prepared, **paths, lora=LORA, optimizer=FAST), tmp_path / "dpo")
  rows = [json.loads(line) for line in (tmp_path / "dpo/metrics.jsonl").read_text().splitlines()]
  margins = [row["rewards/margins"] for row in rows if "loss" in row]
  assert margins[-1] > margins[0]
  dora = dataclasses.replace(LORA, dora=True)
  still = config.Optimizer(lr=0.0)
  dpo.run(tiny(config.Dpo, prepared, **paths, lora=dora, optimizer=still), tmp_path / "still")
  rows = [json.loads(line) for line in (tmp_path / "still/metrics.jsonl").read_text().splitlines()]
  np.testing.assert_allclose([row["loss"] for row in rows if "loss" in row], np.log(2), atol=1e-4)
  assert set(checkpoint.load_params(tmp_path / "dpo")) == {"lora"}


def test_an_adapter_goes_out_and_comes_back(run, root, tmp_path, capsys):
  def convert(*words):
    return convert_hf.main([str(word) for word in words])

  assert convert("--run", run[1], "--adapter", "--out", tmp_path / "peft") == 0
  assert f"on {root / 'pretrain'}" in capsys.readouterr().out
  assert convert("--run", root / "pretrain", "--out", tmp_path / "hf") == 0
  words = "--hf", tmp_path / "hf", "--adapter", tmp_path / "peft", "--out", tmp_path / "run"
  assert convert(*words) == 0
  wanted = runs.load(str(run[1]), "init").params
  got = runs.load(str(tmp_path / "run"), "init").params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, wanted)
  model, params = interop.load(tmp_path / "hf")
  assert lora.KEY not in params
  assert convert("--run", run[1], "--prepared", "", "--out", tmp_path / "merged") == 0
  merged = interop.load(tmp_path / "merged")[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, wanted)
  assert convert("--hf", tmp_path / "hf", "--out", tmp_path / "x", "--adapter") == 2
  assert "needs the folder of an adapter" in capsys.readouterr().err
