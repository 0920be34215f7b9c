"""Encoder-decoders through pretraining, SFT and the sampler."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import seq2seq
from llm_jax.errors import UserError
from llm_jax.generate import sample
from llm_jax.losses import objectives, token
from llm_jax.stages import dpo, pretrain, runs, sft
from llm_jax.stages import seq2seq as stage
from llm_jax.train import checkpoint
from tests.stages.conftest import asked, tiny
from tools import convert_hf

SHAPE = config.Model(
  dim=32, layers=1, encoder_layers=1, heads=2, position="relative", qk_norm=False, tied=False
)
FAST = config.Optimizer(lr=1e-2, warmup=2)


def losses(path):
  rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  return [row["eval/loss"] for row in rows if "eval/loss" in row]


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory):
  path = tmp_path_factory.mktemp("seq2seq") / "pretrain"
  cfg = tiny(config.Pretrain, prepared, model=SHAPE, steps=30, length=48, optimizer=FAST)
  pretrain.run(cfg, path)
  return path


@pytest.fixture(scope="module")
def answering(prepared, base):
  path = base.parent / "sft"
  cfg = tiny(
    config.Sft, prepared, init=str(base), steps=120, length=32, input_length=48, optimizer=FAST,
    batch=24,
  )  # fmt: skip
  cfg.eval_every = 40
  sft.run(cfg, path)
  return path


def test_span_corruption_learns(base, prepared):
  found = losses(base)
  assert found[-1] < 0.8 * found[0]
  shape = runs.load(str(base), "init", seq2seq=True).shape
  assert shape.vocab_size == runs.tokenizer(str(prepared)).vocab_size + seq2seq.SENTINELS


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(base, prepared, tmp_path):
  shutil.copytree(base, tmp_path / "pretrain")
  shutil.rmtree(tmp_path / "pretrain/checkpoints/30")
  cfg = tiny(config.Pretrain, prepared, model=SHAPE, steps=30, length=48, optimizer=FAST)
  state = pretrain.run(cfg, tmp_path / "pretrain")
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(base), state.params)


@pytest.mark.slow
def test_sft_answers_what_it_was_taught(answering, prepared):
  run, coder = runs.load(str(answering), "init", seq2seq=True), runs.tokenizer(str(prepared))
  right = 0
  for question in asked("train")[:8]:
    given, _ = seq2seq.pair(coder, question.prompt, "", 48, 32)
    prompts = np.pad(np.array([given]), ((0, 0), (48 - len(given), 0)))
    rollout = sample(
      run.model, run.params, prompts, prompts > 0, jax.random.split(jax.random.key(0), 1),
      max_new=32, temperature=0.0, end_id=coder.eos_id, pad_id=coder.pad_id,
    )  # fmt: skip
    said = np.asarray(rollout.tokens)[0][np.asarray(rollout.mask)[0] > 0]
    right += coder.decode(said) == question.answer
  assert right >= 6


@pytest.mark.slow
def test_what_is_drawn_has_the_log_probs_that_a_learner_recomputes(answering, prepared):
  run, coder = runs.load(str(answering), "init", seq2seq=True), runs.tokenizer(str(prepared))
  pairs = [seq2seq.pair(coder, q.prompt, "", 48, 32)[0] for q in asked("train")[:3]]
  prompts = np.stack([np.pad(p, (48 - len(p), 0)) for p in pairs])
  rollout = sample(
    run.model, run.params, prompts, prompts > 0, jax.random.split(jax.random.key(0), 6),
    max_new=20, samples=2, temperature=1.0, end_id=coder.eos_id, pad_id=coder.pad_id,
  )  # fmt: skip
  rows = zip(np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True)
  said = [tokens[mask > 0] for tokens, mask in rows]
  batch = seq2seq.collate([(pairs[i // 2], s) for i, s in enumerate(said)], 48, 20, coder.pad_id)
  out = stage.apply(run.model)(run.params, batch, jax.random.key(0))
  stats = token.token_stats(out.hidden, out.head, batch["targets"])
  wanted = np.concatenate(
    [np.asarray(x)[m > 0] for x, m in zip(stats.logps, batch["mask"], strict=True)]
  )
  got = np.concatenate([x[m > 0] for x, m in zip(*map(np.asarray, rollout[4:2:-1]), strict=True)])
  np.testing.assert_allclose(got, wanted, atol=2e-4)


@pytest.mark.slow
def test_a_mesh_is_one_device(base, prepared):
  run, coder = runs.load(str(base), "init", seq2seq=True), runs.tokenizer(str(prepared))
  cfg = tiny(config.Sft, prepared, init=str(base), batch=16, length=24, input_length=40)
  pairs = [seq2seq.pair(coder, q.prompt, q.answer, 40, 24) for q in asked("train")[:16]]
  batch = seq2seq.collate(pairs, 40, 24, coder.pad_id)
  loss_fn = objectives.next_token(stage.apply(run.model), token.cross_entropy)
  found = {}
  for name, mesh in (
    ("one", config.Mesh(data=1)),
    ("mesh", config.Mesh(data=2, fsdp=2, tensor=2)),
  ):
    place = stage.parallel.make(mesh)
    tx = stage.training.optim.make(dataclasses.replace(cfg.optimizer, name="adamw"), 4)
    make = stage.training.state_maker(stage.training.initializer(run.model), tx)
    state = place.init(make, jax.random.key(0), run.params)
    step = place.compile(
      stage.training.make_train_step(loss_fn, tx, accum=2, axis_name=place.axis_name)
    )
    _, metrics = step(state, place.batch(batch))
    found[name] = {key: float(mean.value) for key, mean in place.fetch(metrics).items()}
  for key, value in found["one"].items():
    np.testing.assert_allclose(found["mesh"][key], value, rtol=2e-4)


@pytest.mark.slow
def test_an_adapter_on_it(base, prepared, tmp_path):
  cfg = tiny(config.Sft, prepared, init=str(base), lora=config.Lora(rank=2), optimizer=FAST)
  sft.run(cfg, tmp_path / "lora")
  assert set(checkpoint.load_params(tmp_path / "lora")) == {"lora"}
  before, after = (
    runs.load(str(path), "init", seq2seq=True).params for path in (base, tmp_path / "lora")
  )
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
  for name in ("encoder_0/attention/q", "blocks_0/cross/v", "blocks_0/mlp/down"):
    block, room, layer = name.split("/")
    assert moved[block][room][layer]["kernel"] > 1e-4
  assert moved["embedding"] == 0


def test_stages_of_decoders_refuse_it(base, root, prepared, tmp_path):
  with pytest.raises(UserError, match="is an encoder-decoder: set --config.init to a decoder"):
    dpo.run(tiny(config.Dpo, prepared, init=str(base)), tmp_path / "dpo")
  cfg = tiny(config.Pretrain, prepared, model=dataclasses.replace(SHAPE, vocab_size=310))
  with pytest.raises(UserError, match="vocab_size=310: 400 are needed, sentinels included"):
    pretrain.run(cfg, tmp_path / "small")
  cfg = tiny(config.Pretrain, prepared, model=SHAPE)
  cfg.mixture.sources = ("a=b",)
  with pytest.raises(UserError, match="config.mixture is of decoders"):
    pretrain.run(cfg, tmp_path / "mixed")


def test_lengths_that_cannot_be(base, prepared, tmp_path):
  cfg = tiny(config.Pretrain, prepared, model=SHAPE, length=2)
  with pytest.raises(UserError, match="config.length=2 must be at least 3"):
    pretrain.run(cfg, tmp_path / "short")
  cfg = tiny(config.Sft, prepared, init=str(base), input_length=1)
  with pytest.raises(UserError, match="config.input_length=1 .* must be at least 2"):
    sft.run(cfg, tmp_path / "one")
  with pytest.raises(UserError, match="at most 0.9"):
    config.Corruption(density=0.99).validate()
  with pytest.raises(UserError, match="encoder_layers must be 0: reward model"):
    config.Pipeline(pretrain=config.Pretrain(model=SHAPE)).validate()
  assert not (tmp_path / "short").exists() and not (tmp_path / "one").exists()


def test_it_goes_out(base, tmp_path, capsys):
  shape = dataclasses.replace(SHAPE, attention_scale=1.0, activation="gelu_tanh")
  run = runs.load(str(base), "init", seq2seq=True)
  shutil.copytree(base, tmp_path / "t5")
  runs.save_shape(tmp_path / "t5", dataclasses.replace(shape, vocab_size=run.shape.vocab_size))
  words = ["--run", str(tmp_path / "t5"), "--out", str(tmp_path / "hf")]
  assert convert_hf.main(words) == 0, capsys.readouterr().err
  assert "a t5 of" in capsys.readouterr().out
