"""Llama, and what has its names: Mistral, Qwen 2 and 3, Gemma 1, 2 and 3."""

from collections.abc import Mapping
from typing import Any

from llm_jax import config
from llm_jax.models.interop import fields
from llm_jax.models.interop.weights import Architecture, Plain, Rule


def _llama(hf: Mapping[str, Any], **switches: Any) -> config.Model:
  """Llama and what has its names."""
  fields.refuse(
    hf, {"mlp_bias": False, "attention_bias": False, "use_bidirectional_attention": False}
  )
  act = hf.get("hidden_activation") or hf.get("hidden_act", "silu")
  found = {
    "vocab_size": hf["vocab_size"],
    "dim": hf["hidden_size"],
    "layers": hf["num_hidden_layers"],
    "heads": hf["num_attention_heads"],
    "kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
    "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
    "hidden": hf["intermediate_size"],
    "max_length": hf["max_position_embeddings"],
    "norm_eps": hf["rms_norm_eps"],
    "activation": fields.activation(act),
    "qk_norm": False,
    "tied": hf.get("tie_word_embeddings", False),
  }
  return config.Model(**(found | switches))


def _llama_fields(shape: config.Model) -> fields.Fields:
  return {
    "hidden_size": shape.dim,
    "num_hidden_layers": shape.layers,
    "num_attention_heads": shape.heads,
    "num_key_value_heads": shape.kv_heads,
    "head_dim": shape.head_dim,
    "intermediate_size": shape.hidden,
    "max_position_embeddings": shape.max_length,
    "rms_norm_eps": shape.norm_eps,
    "hidden_act": fields.HF_ACTIVATIONS[shape.activation],
    "attention_bias": False,
    "tie_word_embeddings": shape.tied,
  } | fields.rope_fields(shape)


def _mistral(hf: Mapping[str, Any]) -> config.Model:
  window = hf.get("sliding_window")
  return _llama(hf, **fields.rope(hf), windows=(window,) if window else ())


def _mistral_fields(shape: config.Model) -> fields.Fields:
  found = _llama_fields(shape) | {"sliding_window": max(shape.windows, default=0) or None}
  del found["attention_bias"]
  return found


def _qwen2(hf: Mapping[str, Any]) -> config.Model:
  windows = fields.windows(hf) if hf.get("use_sliding_window") else ()
  return _llama(hf, **fields.rope(hf), windows=windows, qkv_bias=True)


def _qwen3(hf: Mapping[str, Any]) -> config.Model:
  windows = fields.windows(hf) if hf.get("use_sliding_window") else ()
  return _llama(hf, **fields.rope(hf), windows=windows, qk_norm=True)


def _qwen_fields(shape: config.Model) -> fields.Fields:
  found = _llama_fields(shape) | {"use_sliding_window": bool(shape.windows)}
  del found["attention_bias"]
  return found | fields.window_fields(shape) | {"max_window_layers": shape.layers}


def _gemma(hf: Mapping[str, Any], **switches: Any) -> config.Model:
  own = {"norm_offset": True, "embedding_scale": float(hf["hidden_size"]) ** 0.5}
  own["tied"] = hf.get("tie_word_embeddings", True)
  own["activation"] = "gelu_tanh"  # Gemma 1 was trained with it, whatever hidden_act says.
  return _llama(hf, **(fields.rope(hf) | own | switches))


def _gemma2(hf: Mapping[str, Any], **switches: Any) -> config.Model:
  own = {
    "post_norm": True,
    "attention_scale": float(hf["query_pre_attn_scalar"]) ** -0.5,
    "attention_cap": float(hf.get("attn_logit_softcapping") or 0),
    "logit_cap": float(hf.get("final_logit_softcapping") or 0),
    "windows": fields.windows(hf, (1, 0)),
  }
  return _gemma(hf, **(own | switches))


def _gemma3(hf: Mapping[str, Any]) -> config.Model:
  ropes = hf.get("rope_parameters") or {}
  if "full_attention" in ropes:
    far, near = ropes["full_attention"], ropes["sliding_attention"]
  else:
    far = (hf.get("rope_scaling") or {}) | {"rope_theta": hf.get("rope_theta", 1e6)}
    near = {"rope_theta": hf.get("rope_local_base_freq", 1e4)}
  rope = fields.rope({"rope_parameters": far}) | {"rope_local_theta": float(near["rope_theta"])}
  return _gemma2(hf, qk_norm=True, **rope, windows=fields.windows(hf, (1, 1, 1, 1, 1, 0)))


def _gemma_fields(shape: config.Model) -> fields.Fields:
  return _llama_fields(shape) | {"hidden_activation": fields.HF_ACTIVATIONS[shape.activation]}


def _gemma2_fields(shape: config.Model) -> fields.Fields:
  return (
    _gemma_fields(shape)
    | fields.window_fields(shape)
    | {
      "query_pre_attn_scalar": _whole(shape.attention_scale**-2),
      "attn_logit_softcapping": shape.attention_cap or None,
      "final_logit_softcapping": shape.logit_cap or None,
    }
  )


def _whole(x: float) -> int | float:
  """An integer but for rounding is one: transformers takes no other."""
  return round(x) if abs(x - round(x)) < 1e-6 * x else x


def _gemma3_fields(shape: config.Model) -> fields.Fields:
  far = fields.rope_fields(shape)["rope_parameters"]
  near = {"rope_type": "default", "rope_theta": shape.rope_local_theta}
  return _gemma2_fields(shape) | {
    "rope_parameters": {"full_attention": far, "sliding_attention": near},
    "rope_local_base_freq": shape.rope_local_theta,
  }


def _weights(shape: config.Model) -> list[Rule]:
  own, ours = "model.layers.{i}", "blocks_{i}"
  rules = [
    Plain("model.embed_tokens.weight", "embedding"),
    Plain("model.norm.weight", "final_norm/scale"),
  ]
  for name in "qkvo":
    rules.append(
      Plain(f"{own}.self_attn.{name}_proj.weight", f"{ours}/attention/{name}/kernel", True)
    )
    if name != "o" and shape.qkv_bias:
      rules.append(Plain(f"{own}.self_attn.{name}_proj.bias", f"{ours}/attention/{name}/bias"))
  for name in ("gate", "up", "down"):
    rules.append(Plain(f"{own}.mlp.{name}_proj.weight", f"{ours}/mlp/{name}/kernel", True))
  norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
  if shape.post_norm:
    norms = {
      "input_layernorm": "attention_norm",
      "post_attention_layernorm": "attention_post_norm",
      "pre_feedforward_layernorm": "mlp_norm",
      "post_feedforward_layernorm": "mlp_post_norm",
    }
  if shape.qk_norm:
    norms |= {"self_attn.q_norm": "attention/q_norm", "self_attn.k_norm": "attention/k_norm"}
  rules += [Plain(f"{own}.{a}.weight", f"{ours}/{b}/scale") for a, b in norms.items()]
  if not shape.tied:
    rules.append(Plain("lm_head.weight", "lm_head", True))
  return rules


ARCHITECTURES = {
  name: Architecture(read, write, _weights, ("rotary_emb.inv_freq",), "lm_head.weight", "model.")
  for name, read, write in (
    ("llama", lambda hf: _llama(hf, **fields.rope(hf)), _llama_fields),
    ("mistral", _mistral, _mistral_fields),
    ("qwen2", _qwen2, _qwen_fields),
    ("qwen3", _qwen3, _qwen_fields),
    ("gemma", _gemma, _gemma_fields),
    ("gemma2", _gemma2, _gemma2_fields),
    ("gemma3_text", _gemma3, _gemma3_fields),
  )
}
