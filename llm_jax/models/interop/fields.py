"""What the config.json files of several architectures have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.models import positions

Fields = dict[str, Any]

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "relu": "relu",
}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def refuse(hf: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
  """Raises UserError for a field whose value is neither the usual one nor missing."""
  for name, value in usual.items():
    if hf.get(name, value) not in (value, None):
      raise UserError(f"{name}={hf[name]!r} is not supported, only {value!r}")


def activation(name: str) -> str:
  """Returns our name of an activation."""
  if name not in _ACTIVATIONS:
    raise UserError(f'the activation "{name}" is not known{nearest(name, _ACTIVATIONS)}')
  return _ACTIVATIONS[name]


def rope(hf: Mapping[str, Any], fraction: float = 1.0) -> Fields:
  """Reads rotary positions in either spelling: rope_parameters, or rope_theta and rope_scaling."""
  own = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  kind = own.get("rope_type", own.get("type", "default"))
  scaling = ""
  if kind == "linear":
    scaling = f"linear(factor={float(own['factor'])})"
  elif kind == "llama3":
    low, high = float(own["low_freq_factor"]), float(own["high_freq_factor"])
    length = float(own["original_max_position_embeddings"])
    scaling = f"llama3(factor={float(own['factor'])}, low={low}, high={high}, length={length})"
  elif kind != "default":
    raise UserError(f'rotary positions of type "{kind}" are not supported: default, linear, llama3')
  part = own.get("partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct")))
  base = own.get("rope_theta", hf.get("rope_theta", hf.get("rotary_emb_base", 10_000.0)))
  return {
    "rope_theta": float(base),
    "rope_scaling": scaling,
    "rope_fraction": fraction if part is None else float(part),
  }


def rope_fields(shape: config.Model) -> Fields:
  """Writes both spellings: libraries of before 5.0 know only the older one."""
  kind, values = positions.parse_scaling(shape.rope_scaling)
  own: Fields = {"rope_type": kind or "default"}
  if kind:
    own["factor"] = values["factor"]
  if kind == "llama3":
    own |= {"low_freq_factor": values["low"], "high_freq_factor": values["high"]}
    own["original_max_position_embeddings"] = int(values["length"])
  return {
    "rope_parameters": own | {"rope_theta": shape.rope_theta},
    "rope_theta": shape.rope_theta,
    "rope_scaling": own if kind else None,
  }


def windows(hf: Mapping[str, Any], usual: Sequence[int] = (0,)) -> tuple[int, ...]:
  """The window of each layer, by layer_types where they are given."""
  kinds, window = hf.get("layer_types"), hf.get("sliding_window")
  if not window:
    return ()
  if not kinds:
    return tuple(window if local else 0 for local in usual)
  known = {"sliding_attention": window, "full_attention": 0}
  return tuple(known[kind] for kind in kinds)


def window_fields(shape: config.Model) -> Fields:
  """Writes windows as layer_types."""
  pattern = shape.windows if shape.windows else (0,)
  each = [pattern[i % len(pattern)] for i in range(shape.layers)]
  kinds = ["sliding_attention" if window else "full_attention" for window in each]
  return {"sliding_window": max(each) or None, "layer_types": kinds}


def period(windows: Sequence[int], layers: int) -> tuple[int, ...]:
  """Returns the shortest pattern that gives these windows over the layers; () if all are 0."""
  if not any(windows):
    return ()
  whole = [windows[i % len(windows)] for i in range(layers)]
  for size in range(1, layers + 1):
    if all(whole[i] == whole[i % size] for i in range(layers)):
      return tuple(whole[:size])
  return tuple(whole)
