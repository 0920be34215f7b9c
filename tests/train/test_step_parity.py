"""Fifty training steps from the same weights on the same batches: the losses of PyTorch."""

import os

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.losses import objectives, token
from llm_jax.models import interop
from llm_jax.stages import training
from llm_jax.train import optim, parallel
from llm_jax.train.step import make_train_step, state_maker
from tools import bench_train

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
hf = pytest.importorskip("transformers", reason="the extra `parity` is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

STEPS, RATE = 50, 1e-3


def token_batches(vocab, rows, length, count=5):
  """Rows that repeat a short pattern: a model learns them in some tens of steps."""
  rng = np.random.default_rng(0)
  pattern = rng.integers(1, vocab, (count, rows, 16))
  return [np.tile(p, (1, length // 16)) for p in pattern]


def torch_losses(model, batches):
  optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.0)
  losses = []
  for i in range(STEPS):
    tokens = torch.as_tensor(batches[i % len(batches)])
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
  return losses


def our_losses(folder, batches):
  model, params = interop.load(folder)
  place, made = (
    parallel.make(config.Mesh(data=1)),
    config.Optimizer(lr=RATE, schedule="constant", warmup=0, beta1=0.9, beta2=0.95, clip=1.0),
  )
  tx = optim.make(made, STEPS)
  loss_fn = objectives.next_token(training.decoder_apply(model, train=True), token.cross_entropy)
  state = place.init(state_maker(training.initializer(model), tx), jax.random.key(0), params)
  step, losses = place.compile(make_train_step(loss_fn, tx)), []
  for i in range(STEPS):
    tokens = batches[i % len(batches)].astype(np.int32)
    state, metrics = step(state, place.batch(lm_batch(tokens)))
    losses.append(float(place.fetch(metrics["loss"]).value))
  return losses


def lm_batch(tokens):
  """Each token with the next one as its target; the last one has none."""
  mask = np.ones(tokens.shape, np.float32)
  mask[:, -1] = 0
  return {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "mask": mask,
    "segments": np.ones_like(tokens),
    "positions": np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
  }


def test_the_losses_of_fifty_steps_are_those_of_pytorch(tmp_path):
  shape, rows, length = bench_train.SIZES["tiny"]
  torch.manual_seed(0)
  model = hf.LlamaForCausalLM(
    hf.LlamaConfig(
      vocab_size=shape.vocab_size,
      hidden_size=shape.dim,
      intermediate_size=shape.hidden,
      num_hidden_layers=shape.layers,
      num_attention_heads=shape.heads,
      tie_word_embeddings=True,
      max_position_embeddings=length,
    )
  )
  model.save_pretrained(tmp_path)
  batches = token_batches(shape.vocab_size, rows, length)
  ours, theirs = our_losses(tmp_path, batches), torch_losses(model, batches)
  assert theirs[-1] < theirs[0] - 1
  print(f"losses of step {STEPS}: {ours[-1]:.6f} here, {theirs[-1]:.6f} there")
  np.testing.assert_allclose(ours, theirs, atol=1e-3)
