"""T5 and FLAN-T5: an encoder-decoder (llm_jax/models/encoder_decoder.py)."""

from collections.abc import Mapping
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.models.interop import fields
from llm_jax.models.interop.weights import Architecture, Plain, Rule

# Their name of the feed-forward block: (kind, activation).
_FEEDS = {
  "relu": ("plain", "relu"),
  "gated-gelu": ("gated", "gelu_tanh"),
  "gated-silu": ("gated", "silu"),
}


def _t5(hf: Mapping[str, Any]) -> config.Model:
  feed = hf.get("feed_forward_proj", "relu")
  if feed not in _FEEDS:
    raise UserError(f'feed_forward_proj="{feed}" is not supported{nearest(feed, _FEEDS)}')
  mlp, activation = _FEEDS[feed]
  # From release 5 of transformers on, tie_word_embeddings is true in all of them: whether the file
  # has a head of its own tells more, and `folder.load` looks.
  tied = hf.get("tie_word_embeddings", True)
  scaled = hf.get("scale_decoder_outputs", tied)
  return config.Model(
    vocab_size=hf["vocab_size"],
    dim=hf["d_model"],
    layers=hf.get("num_decoder_layers") or hf["num_layers"],
    encoder_layers=hf["num_layers"],
    heads=hf["num_heads"],
    head_dim=hf["d_kv"],
    hidden=hf["d_ff"],
    max_length=hf.get("n_positions", 512),
    norm_eps=hf.get("layer_norm_epsilon", 1e-6),
    position="relative",
    relative_buckets=hf.get("relative_attention_num_buckets", 32),
    relative_distance=hf.get("relative_attention_max_distance", 128),
    attention_scale=1.0,
    qk_norm=False,
    mlp=mlp,
    activation=activation,
    tied=tied,
    tied_scale=float(hf["d_model"]) ** -0.5 if scaled else 0.0,
  )


def _t5_fields(shape: config.Model) -> fields.Fields:
  feed = next(
    (name for name, own in _FEEDS.items() if own == (shape.mlp, shape.activation)), "relu"
  )
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": shape.dim,
    "d_kv": shape.head_dim,
    "d_ff": shape.hidden,
    "num_layers": shape.encoder_layers,
    "num_decoder_layers": shape.layers,
    "num_heads": shape.heads,
    "n_positions": shape.max_length,
    "layer_norm_epsilon": shape.norm_eps,
    "relative_attention_num_buckets": shape.relative_buckets,
    "relative_attention_max_distance": shape.relative_distance,
    "feed_forward_proj": feed,
    "scale_decoder_outputs": bool(shape.tied_scale),
    "tie_word_embeddings": shape.tied,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
  }


def _t5_weights(shape: config.Model) -> list[Rule]:
  rules: list[Rule] = [
    Plain("shared.weight", "embedding"),
    Plain(
      "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "encoder_relative"
    ),
    Plain(
      "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "relative_embedding"
    ),
    Plain("encoder.final_layer_norm.weight", "encoder_norm/scale"),
    Plain("decoder.final_layer_norm.weight", "final_norm/scale"),
  ]
  rules += _side("encoder", "encoder_{i}", shape, {"SelfAttention": "attention"})
  crossed = {"SelfAttention": "attention", "EncDecAttention": "cross"}
  rules += _side("decoder", "blocks_{i}", shape, crossed)
  return rules if shape.tied else [*rules, Plain("lm_head.weight", "lm_head", True)]


def _side(side: str, ours: str, shape: config.Model, attentions: Mapping[str, str]) -> list[Rule]:
  own = f"{side}.block.{{i}}.layer"
  rules: list[Rule] = []
  for number, (name, part) in enumerate(attentions.items()):
    rules.append(Plain(f"{own}.{number}.layer_norm.weight", f"{ours}/{part}_norm/scale"))
    for x in "qkvo":
      rules.append(Plain(f"{own}.{number}.{name}.{x}.weight", f"{ours}/{part}/{x}/kernel", True))
  last = len(attentions)
  names = {"wi": "up", "wo": "down"}
  if shape.mlp == "gated":
    names = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
  rules.append(Plain(f"{own}.{last}.layer_norm.weight", f"{ours}/mlp_norm/scale"))
  for name, part in names.items():
    rules.append(
      Plain(f"{own}.{last}.DenseReluDense.{name}.weight", f"{ours}/mlp/{part}/kernel", True)
    )
  return rules


_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
ARCHITECTURES = {
  "t5": Architecture(_t5, _t5_fields, _t5_weights, _COPIES, "lm_head.weight", "shared."),
}
