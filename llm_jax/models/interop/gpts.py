"""GPT-2, GPT-NeoX (Pythia), Falcon and MPT: LayerNorms, plain MLPs, fused projections."""

from collections.abc import Mapping
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models.interop import fields
from llm_jax.models.interop.weights import Architecture, Fused, Plain, Rule

_GELU = {"gelu_tanh": "gelu_new"}  # As these models' files call it.


def _gpt2(hf: Mapping[str, Any]) -> config.Model:
  fields.refuse(
    hf,
    {
      "scale_attn_weights": True,
      "scale_attn_by_inverse_layer_idx": False,
      "add_cross_attention": False,
      "tie_word_embeddings": True,
    },
  )
  return config.Model(
    vocab_size=hf["vocab_size"],
    dim=hf["n_embd"],
    layers=hf["n_layer"],
    heads=hf["n_head"],
    hidden=hf.get("n_inner") or 4 * hf["n_embd"],
    max_length=hf["n_positions"],
    norm="layernorm",
    norm_bias=True,
    norm_eps=hf.get("layer_norm_epsilon", 1e-5),
    position="learned",
    mlp="plain",
    activation=fields.activation(hf.get("activation_function", "gelu_new")),
    bias=True,
    qk_norm=False,
  )


def _gpt2_fields(shape: config.Model) -> fields.Fields:
  return {
    "n_embd": shape.dim,
    "n_layer": shape.layers,
    "n_head": shape.heads,
    "n_inner": shape.hidden,
    "n_positions": shape.max_length,
    "layer_norm_epsilon": shape.norm_eps,
    "activation_function": {"gelu_tanh": "gelu_new"}.get(shape.activation, shape.activation),
    "tie_word_embeddings": True,
  }


def _neox(hf: Mapping[str, Any]) -> config.Model:
  fields.refuse(hf, {"attention_bias": True})
  return config.Model(
    vocab_size=hf["vocab_size"],
    dim=hf["hidden_size"],
    layers=hf["num_hidden_layers"],
    heads=hf["num_attention_heads"],
    hidden=hf["intermediate_size"],
    max_length=hf["max_position_embeddings"],
    norm="layernorm",
    norm_bias=True,
    norm_eps=hf.get("layer_norm_eps", 1e-5),
    parallel="two" if hf.get("use_parallel_residual", True) else "",
    mlp="plain",
    activation=fields.activation(hf.get("hidden_act", "gelu")),
    bias=True,
    qk_norm=False,
    tied=hf.get("tie_word_embeddings", False),
    **fields.rope(hf, fraction=0.25),
  )


def _neox_fields(shape: config.Model) -> fields.Fields:
  found = {
    "hidden_size": shape.dim,
    "num_hidden_layers": shape.layers,
    "num_attention_heads": shape.heads,
    "intermediate_size": shape.hidden,
    "max_position_embeddings": shape.max_length,
    "layer_norm_eps": shape.norm_eps,
    "use_parallel_residual": shape.parallel == "two",
    "hidden_act": _GELU.get(shape.activation, shape.activation),
    "attention_bias": True,
    "tie_word_embeddings": shape.tied,
    "rotary_pct": shape.rope_fraction,
    "rotary_emb_base": shape.rope_theta,
  } | fields.rope_fields(shape)
  found["rope_parameters"]["partial_rotary_factor"] = shape.rope_fraction
  return found


def _falcon(hf: Mapping[str, Any]) -> config.Model:
  fields.refuse(hf, {"tie_word_embeddings": True})
  new, heads = hf.get("new_decoder_architecture", False), hf["num_attention_heads"]
  kv_heads = hf.get("num_kv_heads") or heads
  if not new:
    kv_heads = 1 if hf.get("multi_query", True) else heads
  norms = hf.get("num_ln_in_parallel_attn") or (2 if new else 1)
  parallel = {1: "one", 2: "two"}[norms] if new or hf.get("parallel_attn", True) else ""
  alibi = hf.get("alibi", False)
  return config.Model(
    vocab_size=hf["vocab_size"],
    dim=hf["hidden_size"],
    layers=hf["num_hidden_layers"],
    heads=heads,
    kv_heads=kv_heads,
    hidden=hf.get("ffn_hidden_size") or 4 * hf["hidden_size"],
    max_length=hf.get("max_position_embeddings", 2048),
    norm="layernorm",
    norm_bias=True,
    norm_eps=hf.get("layer_norm_epsilon", 1e-5),
    parallel=parallel,
    position="alibi" if alibi else "rope",
    alibi="falcon" if alibi else "mpt",
    mlp="plain",
    activation=fields.activation(hf.get("activation", "gelu")),
    bias=hf.get("bias", False),
    qk_norm=False,
    **fields.rope(hf),
  )


def _falcon_fields(shape: config.Model) -> fields.Fields:
  new = shape.parallel == "two" or shape.kv_heads not in (1, shape.heads)
  return {
    "hidden_size": shape.dim,
    "num_hidden_layers": shape.layers,
    "num_attention_heads": shape.heads,
    "num_kv_heads": shape.kv_heads,
    "ffn_hidden_size": shape.hidden,
    "max_position_embeddings": shape.max_length,
    "layer_norm_epsilon": shape.norm_eps,
    "new_decoder_architecture": new,
    "multi_query": shape.kv_heads == 1,
    "parallel_attn": bool(shape.parallel),
    "num_ln_in_parallel_attn": (2 if shape.parallel == "two" else 1) if new else None,
    "alibi": shape.position == "alibi",
    "activation": _GELU.get(shape.activation, shape.activation),
    "bias": shape.bias,
    "tie_word_embeddings": True,
  } | fields.rope_fields(shape)


def _mpt(hf: Mapping[str, Any]) -> config.Model:
  own = hf.get("attn_config") or {}
  fields.refuse(
    own,
    {"attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False, "alibi": True}
    | {"alibi_bias_max": 8},
  )
  fields.refuse(hf, {"no_bias": True, "logit_scale": None, "tie_word_embeddings": True})
  ratio = hf.get("expansion_ratio", 4)
  for factor in (ratio, hf["d_model"]):  # A list would be repeated.
    if not isinstance(factor, int | float):
      raise TypeError(f"{factor!r:.100} is no size")
  if hf.get("norm_type", "low_precision_layernorm") not in ("low_precision_layernorm", "layernorm"):
    raise UserError(f"norm_type={hf['norm_type']!r} is not supported, only layernorm")
  return config.Model(
    vocab_size=hf["vocab_size"],
    dim=hf["d_model"],
    layers=hf["n_layers"],
    heads=hf["n_heads"],
    hidden=ratio * hf["d_model"],
    max_length=hf["max_seq_len"],
    norm="layernorm",
    norm_eps=hf.get("layer_norm_epsilon", 1e-5),
    position="alibi",
    mlp="plain",
    activation="gelu",
    attention_scale=own.get("softmax_scale") or 0.0,
    qkv_clip=own.get("clip_qkv") or 0.0,
    qk_norm=False,
  )


def _mpt_fields(shape: config.Model) -> fields.Fields:
  own = {
    "attn_type": "multihead_attention",
    "alibi": True,
    "alibi_bias_max": 8,
    "clip_qkv": shape.qkv_clip if shape.qkv_clip else None,
    "softmax_scale": shape.attention_scale,
  }
  return {
    "d_model": shape.dim,
    "n_layers": shape.layers,
    "n_heads": shape.heads,
    "expansion_ratio": shape.hidden // shape.dim,
    "max_seq_len": shape.max_length,
    "layer_norm_epsilon": shape.norm_eps,
    "attn_config": own,
    "no_bias": True,
    "tie_word_embeddings": True,
  }


_QKV = tuple(f"blocks_{{i}}/attention/{name}" for name in "qkv")


def _both(hf: str, ours: str, bias: bool = True, turned: bool = True) -> list[Rule]:
  """The kernel and the bias of a dense layer."""
  rules: list[Rule] = [Plain(f"{hf}.weight", f"{ours}/kernel", turned)]
  return [*rules, Plain(f"{hf}.bias", f"{ours}/bias")] if bias else rules


def _norm(hf: str, ours: str, bias: bool = True) -> list[Rule]:
  rules: list[Rule] = [Plain(f"{hf}.weight", f"{ours}/scale")]
  return [*rules, Plain(f"{hf}.bias", f"{ours}/bias")] if bias else rules


def _gpt2_weights(shape: config.Model) -> list[Rule]:
  own, ours = "transformer.h.{i}", "blocks_{i}"
  return [
    Plain("transformer.wte.weight", "embedding"),
    Plain("transformer.wpe.weight", "position_embedding"),
    *_norm("transformer.ln_f", "final_norm"),
    *_norm(f"{own}.ln_1", f"{ours}/attention_norm"),
    *_norm(f"{own}.ln_2", f"{ours}/mlp_norm"),
    # Their Conv1D has kernels as ours: [in, out].
    Fused(f"{own}.attn.c_attn.weight", tuple(f"{path}/kernel" for path in _QKV), "parts", False),
    Fused(f"{own}.attn.c_attn.bias", tuple(f"{path}/bias" for path in _QKV), "parts", False),
    *_both(f"{own}.attn.c_proj", f"{ours}/attention/o", turned=False),
    *_both(f"{own}.mlp.c_fc", f"{ours}/mlp/up", turned=False),
    *_both(f"{own}.mlp.c_proj", f"{ours}/mlp/down", turned=False),
  ]


def _neox_weights(shape: config.Model) -> list[Rule]:
  own, ours = "gpt_neox.layers.{i}", "blocks_{i}"
  rules = [
    Plain("gpt_neox.embed_in.weight", "embedding"),
    *_norm("gpt_neox.final_layer_norm", "final_norm"),
    *_norm(f"{own}.input_layernorm", f"{ours}/attention_norm"),
    *_norm(f"{own}.post_attention_layernorm", f"{ours}/mlp_norm"),
    *_grouped(f"{own}.attention.query_key_value", True),
    *_both(f"{own}.attention.dense", f"{ours}/attention/o"),
    *_both(f"{own}.mlp.dense_h_to_4h", f"{ours}/mlp/up"),
    *_both(f"{own}.mlp.dense_4h_to_h", f"{ours}/mlp/down"),
  ]
  return rules if shape.tied else [*rules, Plain("embed_out.weight", "lm_head", True)]


def _grouped(hf: str, bias: bool) -> list[Rule]:
  """One projection whose rows go by key-value head: its queries, its key, its value."""
  rules: list[Rule] = [Fused(f"{hf}.weight", tuple(f"{p}/kernel" for p in _QKV), "groups", True)]
  own = Fused(f"{hf}.bias", tuple(f"{p}/bias" for p in _QKV), "groups", False)
  return [*rules, own] if bias else rules


def _falcon_weights(shape: config.Model) -> list[Rule]:
  own, ours = "transformer.h.{i}", "blocks_{i}"
  norms = {"input_layernorm": "attention_norm"}
  if shape.parallel == "two":
    norms = {"ln_attn": "attention_norm", "ln_mlp": "mlp_norm"}
  if not shape.parallel:
    norms["post_attention_layernorm"] = "mlp_norm"
  rules = [Plain("transformer.word_embeddings.weight", "embedding")]
  rules += _norm("transformer.ln_f", "final_norm")
  rules += [rule for a, b in norms.items() for rule in _norm(f"{own}.{a}", f"{ours}/{b}")]
  return [
    *rules,
    *_grouped(f"{own}.self_attention.query_key_value", shape.bias),
    *_both(f"{own}.self_attention.dense", f"{ours}/attention/o", shape.bias),
    *_both(f"{own}.mlp.dense_h_to_4h", f"{ours}/mlp/up", shape.bias),
    *_both(f"{own}.mlp.dense_4h_to_h", f"{ours}/mlp/down", shape.bias),
  ]


def _mpt_weights(shape: config.Model) -> list[Rule]:
  own, ours = "transformer.blocks.{i}", "blocks_{i}"
  return [
    Plain("transformer.wte.weight", "embedding"),
    *_norm("transformer.norm_f", "final_norm", False),
    *_norm(f"{own}.norm_1", f"{ours}/attention_norm", False),
    *_norm(f"{own}.norm_2", f"{ours}/mlp_norm", False),
    Fused(f"{own}.attn.Wqkv.weight", tuple(f"{path}/kernel" for path in _QKV), "parts", True),
    *_both(f"{own}.attn.out_proj", f"{ours}/attention/o", False),
    *_both(f"{own}.ffn.up_proj", f"{ours}/mlp/up", False),
    *_both(f"{own}.ffn.down_proj", f"{ours}/mlp/down", False),
  ]


_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_BUFFERS += ("rotary_emb.inv_freq",)
ARCHITECTURES = {
  "gpt2": Architecture(
    _gpt2, _gpt2_fields, _gpt2_weights, _BUFFERS, "lm_head.weight", "transformer."
  ),
  "gpt_neox": Architecture(
    _neox, _neox_fields, _neox_weights, _BUFFERS, "embed_out.weight", "gpt_neox."
  ),
  "falcon": Architecture(
    _falcon, _falcon_fields, _falcon_weights, _BUFFERS, "lm_head.weight", "transformer."
  ),
  "mpt": Architecture(_mpt, _mpt_fields, _mpt_weights, _BUFFERS, "lm_head.weight", "transformer."),
}
