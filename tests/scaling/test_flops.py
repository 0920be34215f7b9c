"""Closed forms against the models that they describe."""

import jax
import jax.numpy as jnp
import pytest

from llm_jax import config
from llm_jax.models import lora
from llm_jax.models.encoder_decoder import EncoderDecoder
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


def test_flops_of_an_encoder_decoder_are_those_that_the_compiler_counts():
  cfg = shape(
    dim=128, layers=2, encoder_layers=3, kv_heads=2, vocab_size=512, position="relative",
    qk_norm=False,
  )  # fmt: skip
  model = EncoderDecoder.from_config(cfg)
  given = jnp.zeros((2, 96), jnp.int32), jnp.zeros((2, 64), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), *given)
  forward = jax.jit(lambda v, *t: model.apply(v, *t, method="logits"))
  counted = forward.lower(variables, *given).compile().cost_analysis()["flops"]
  assert 0.9 < 2 * flops.seq2seq_forward_flops(cfg, 96, 64) / counted < 1.0


@pytest.mark.long
@pytest.mark.parametrize(
  "fields",
  [
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({"targets": ("q", "down")}, marks=pytest.mark.slow),
    {"dora": True},
  ],
)
def test_the_parameters_of_an_adapter(fields):
  adapter = config.Lora(rank=3, **fields)
  for name in SHAPES:
    cfg = shape(**SHAPES[name])
    params = Transformer.from_config(cfg).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    own = dict(lora.adapted(lora.attach(params["params"], adapter, jax.random.key(0))["lora"]))
    trained = [{k: v for k, v in layer.items() if k != "scale"} for layer in own.values()]
    assert flops.adapter_parameters(cfg, adapter) == count_parameters(trained)


def test_a_model_without_a_vocabulary_is_refused():
  with pytest.raises(ValueError, match="vocab_size must be set, got 0"):
    flops.parameters(shape(vocab_size=0))
