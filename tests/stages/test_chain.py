"""The stages one after the other, tiny: what they leave, how they resume, what they refuse."""

import json

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.losses import preference
from llm_jax.stages import dpo, evaluate, ppo, pretrain, reference, reward, runs, sft
from llm_jax.train import checkpoint
from llm_jax.train.metrics import read
from tests.stages.conftest import SAMPLING, asked, ppo_config, tiny


def same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def dpo_config(prepared, root, **fields):
  paths = {"init": str(root / "sft"), "preferences": str(root / "preferences")}
  return tiny(config.Dpo, prepared, **paths, **fields)


def test_every_stage_leaves_metrics_and_a_model(root):
  for name in ("pretrain", "sft", "reward", "ppo"):
    assert [row["step"] for row in read(root / name) if "loss" in row] == [2, 4]
    assert runs.load(str(root / name), "init", reward=name == "reward").params
  assert {"objective/kl", "objective/scores", "val/explained_variance"} <= read(root / "ppo")[
    0
  ].keys()


def test_bits_per_byte_of_a_uniform_model_is_by_hand(prepared):
  """Before training, a model with small weights is nearly uniform over the vocabulary."""
  ratio = pretrain.tokens_per_byte(str(prepared))
  coder = runs.tokenizer(str(prepared))
  unigram = pretrain.unigram_bits_per_byte(str(prepared), coder.vocab_size)
  assert 0 < unigram < np.log2(coder.vocab_size) * ratio


def test_dpo_starts_at_the_reference(prepared, root, tmp_path):
  """With a learning rate of nothing the log-ratios stay 0 and the loss log 2."""
  cfg = dpo_config(prepared, root, optimizer=config.Optimizer(lr=0.0))
  dpo.run(cfg, tmp_path / "dpo")
  for row in read(tmp_path / "dpo"):
    if "loss" in row:
      np.testing.assert_allclose(row["loss"], np.log(2), atol=1e-4)
      np.testing.assert_allclose(row["rewards/margins"], 0, atol=1e-3)


def test_dpo_widens_the_margin_whatever_way_the_loss_is_named(prepared, root, tmp_path):
  cfg = dpo_config(prepared, root, steps=8, optimizer=config.Optimizer(lr=3e-3, warmup=1))
  dpo.run(cfg, tmp_path / "text")
  margins = [row["rewards/margins"] for row in read(tmp_path / "text") if "loss" in row]
  assert margins[-1] > margins[0]

  def mine(chosen, rejected):
    return preference.logistic(chosen, rejected, beta=0.1)

  dpo.run(cfg, tmp_path / "function", loss=mine)
  ends = [checkpoint.load_params(tmp_path / name) for name in ("text", "function")]
  assert same(*ends)


def test_reference_log_probs_are_kept_but_not_for_another_model(root, prepared, tmp_path):
  start = runs.load(str(root / "sft"), "init")
  rows = [{"chosen": ([2, 9, 8], [0, 1, 1]), "rejected": ([2, 9, 7], [0, 1, 1])}] * 3
  first = reference.annotate(start, rows, 16, tmp_path / "r.npz")
  before = (tmp_path / "r.npz").stat().st_mtime_ns
  assert reference.annotate(start, rows, 16, tmp_path / "r.npz") == first
  assert (tmp_path / "r.npz").stat().st_mtime_ns == before
  other = start._replace(params=jax.tree.map(lambda x: 2 * x, start.params))
  assert reference.annotate(other, rows, 16, tmp_path / "r.npz") != first


def test_an_interrupted_ppo_goes_on_to_the_same_end(prepared, root, tmp_path, monkeypatch):
  collect = ppo.Collector.__call__

  def broken(self, state, iteration, carried):
    if iteration == 1:
      raise RuntimeError("the power is gone")
    return collect(self, state, iteration, carried)

  cfg = ppo_config(prepared, root)
  with monkeypatch.context() as patch:
    patch.setattr(ppo.Collector, "__call__", broken)
    with pytest.raises(RuntimeError, match="power"):
      ppo.run(cfg, tmp_path / "ppo")
  assert checkpoint.latest_step(tmp_path / "ppo" / "checkpoints") == 2
  ppo.run(cfg, tmp_path / "ppo")
  assert same(checkpoint.load_params(tmp_path / "ppo"), checkpoint.load_params(root / "ppo"))


def test_a_policy_that_learns_nothing_has_no_kl(prepared, root, tmp_path):
  cfg = ppo_config(prepared, root, optimizer=config.Optimizer(lr=0.0))
  ppo.run(cfg, tmp_path / "ppo")
  for row in read(tmp_path / "ppo"):
    assert abs(row["objective/kl"]) < 1e-4
    assert row["policy/clipfrac"] == 0
    assert row["rollout/logp_gap"] < 1e-4


def test_evaluation_measures_every_policy_and_its_controls(root):
  cfg = config.Evaluate(run=str(root), questions=8, samples=2, sampling=SAMPLING)
  summary = evaluate.run(cfg, root / "evaluate")
  assert summary["policies"].keys() == {"base", "sft", "ppo"}
  assert summary["policies"]["sft"]["kl"] == 0
  assert 0 <= summary["win_rates"]["sft_vs_sft"]["rate"] <= 1
  assert summary == json.loads((root / "evaluate" / "evaluate.json").read_text())
  assert len(summary["answers"]) == 8
  for row in summary["next_token"]:
    assert sum(p for _, p in row["candidates"]) <= 1 + 1e-5


@pytest.mark.parametrize(
  ("stage", "cfg", "message"),
  [
    (pretrain, config.Pretrain(prepared="nowhere"), "holds no prepared corpus"),
    (sft, config.Sft(init="nowhere"), "holds no trained model"),
    (reward, config.Reward(preferences="nowhere"), "is missing: run"),
    (ppo, config.Ppo(reward="nowhere"), "holds no trained model"),
    (pretrain, config.Pretrain(loss="cros_entropy"), "cross_entropy"),
    (dpo, config.Dpo(loss="ipo(betta=1)"), "beta"),
    (dpo, config.Dpo(kinds="sft_smaple"), "sft_sample"),
    (dpo, config.Dpo(loss="kto()"), "baseline"),
    (ppo, config.Ppo(batch=3), "multiple"),
  ],
)
def test_bad_input_is_one_line_that_says_what_to_do(stage, cfg, message, prepared, root, tmp_path):
  defaults = {
    "prepared": prepared,
    "init": root / "sft",
    "reward": root / "reward",
    "preferences": root / "preferences",
  }
  for name, path in defaults.items():
    if "quickstart" in str(getattr(cfg, name, "")):
      setattr(cfg, name, str(path))
  with pytest.raises(UserError, match=message) as error:
    stage.run(cfg, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_questions_of_the_toy_corpus_are_its_answers():
  assert len({q.answer for q in asked("train")}) == 24
