"""The whole compiled step at a long row and a large vocabulary: what it never holds at once."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from llm_jax import config
from llm_jax.losses import objectives, token
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training
from llm_jax.train import optim
from llm_jax.train.step import make_train_step, state_maker

BATCH, LENGTH, VOCABULARY, HEADS = 2, 8192, 128_256, 2


def largest(**fields) -> int:
  """Elements of the largest array in the compiled training step, its arguments included."""
  shape = config.Model(VOCABULARY, 16, 2, HEADS, hidden=32, max_length=LENGTH, **fields)
  model = Transformer.from_config(shape)
  tx = optim.make(config.Optimizer(schedule="constant", warmup=0), 10)
  loss_fn = objectives.next_token(training.decoder_apply(model, train=True), token.cross_entropy)
  key = jax.random.key(0)
  state = nn.unbox(jax.eval_shape(state_maker(training.initializer(model), tx), key))
  ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
  rows = dict.fromkeys(("tokens", "targets", "segments", "positions"), ids)
  rows["mask"] = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
  text = jax.jit(make_train_step(loss_fn, tx)).lower(state, rows).compile().as_text()
  shapes = re.findall(r"\b(?:f32|bf16|pred|s32|u32)\[([\d,]+)\]", text)
  return max(math.prod(map(int, found.split(","))) for found in shapes)


@pytest.mark.long
@pytest.mark.parametrize("fields", [{}, {"scan": True, "remat": "full", "dtype": "bfloat16"}])
def test_no_logits_of_all_tokens_and_no_scores_of_all_pairs(fields):
  chunk = 512 * VOCABULARY  # Logits that `token_stats` has at once.
  assert chunk < BATCH * HEADS * LENGTH**2 / 4
  assert largest(**fields) <= chunk


@pytest.mark.long
def test_all_scores_at_once_would_be_seen():
  assert largest(attention="xla") >= BATCH * HEADS * LENGTH**2
