"""Closed forms against the decoder that they describe."""

import jax
import jax.numpy as jnp
import pytest

from llm_jax import config
from llm_jax.models.transformer import Transformer, count_parameters
from llm_jax.scaling import flops

SHAPES = {
  "plain": {},
  "gqa": {"kv_heads": 2, "head_dim": 24, "hidden": 40, "tied": False},
  "gpt2": {
    "norm": "layernorm", "position": "learned", "mlp": "plain", "bias": True, "qk_norm": False
  },
  "llama": {"mlp": "gated", "bias": True, "norm": "layernorm", "qk_norm": True, "scan": True},
}  # fmt: skip


def shape(**fields):
  return config.Model(**{"vocab_size": 64, "dim": 32, "layers": 3, "heads": 4, **fields})


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_decoder(name):
  cfg = shape(**SHAPES[name])
  model = Transformer.from_config(cfg)
  made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  assert flops.parameters(cfg) == count_parameters(made["params"])


@pytest.mark.parametrize("name", ["plain", "gqa", "gpt2"])
def test_forward_flops_are_those_that_the_compiler_counts(name):
  cfg, length = shape(dim=128, layers=2, vocab_size=512, **SHAPES[name]), 64
  model = Transformer.from_config(cfg)
  tokens = jnp.zeros((2, length), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
  forward = jax.jit(lambda v, t: model.apply(v, t, method="logits"))
  counted = forward.lower(variables, tokens).compile().cost_analysis()["flops"]
  # The rest are norms, softmax and activations, which no closed form counts.
  assert 0.9 < flops.forward_flops_per_token(cfg, length) * tokens.size / counted < 1.0


def test_memory_is_within_a_factor_two_of_the_compilers_plan():
  cfg, rows, length = shape(dim=64, layers=4), 8, 128
  model = Transformer.from_config(cfg)
  tokens = jnp.zeros((rows, length), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
  gradient = jax.jit(jax.grad(lambda v, t: jnp.sum(model.apply(v, t))))
  plan = gradient.lower(variables, tokens).compile().memory_analysis()
  ratio = flops.train_bytes(cfg, rows, length).activations / plan.temp_size_in_bytes
  assert 0.5 < ratio < 2.0


def test_state_is_sixteen_bytes_a_parameter_and_remat_saves_activations():
  cfg = shape(layers=12)
  kept = flops.train_bytes(cfg, 4, 64)
  assert kept.state == 16 * flops.parameters(cfg)
  assert flops.train_bytes(shape(layers=12, remat="full"), 4, 64).activations < kept.activations
  assert kept.total == sum(kept)


def test_a_model_without_a_vocabulary_is_refused():
  with pytest.raises(ValueError, match="vocab_size must be set, got 0"):
    flops.parameters(shape(vocab_size=0))
