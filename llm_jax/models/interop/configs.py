"""config.json of Hugging Face to `config.Model`, and back, one function an architecture each way.

A field of theirs that would change the function and that we do not know is an error, never ignored.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.models.interop import gpts, llamas, t5
from llm_jax.models.interop.fields import Fields, period
from llm_jax.models.shape import resolve

ARCHITECTURES = gpts.ARCHITECTURES | llamas.ARCHITECTURES | t5.ARCHITECTURES

# What changes how a model is run, and not what it is.
RUNNING = (
  *("attention", "attention_segments", "dropout", "scan", "scan_unroll", "remat"),
  *("dtype", "matmul_precision"),
)
_MOST = 2**31 - 1  # Of any number.
_MOST_LAYERS = 10_000


def read(hf: Mapping[str, Any], where: str = "config.json") -> config.Model:
  """Returns the shape that a config.json describes.

  Args:
    hf: its content.
    where: for errors.

  Raises:
    UserError: for an architecture or a setting that is not known here, or a field that is missing.
  """
  kind = hf.get("model_type")
  if not isinstance(kind, str) or kind not in ARCHITECTURES:
    hint = nearest(str(kind), ARCHITECTURES)
    raise UserError(
      f'{where}: the architecture "{kind}" is not known{hint}; known are {", ".join(ARCHITECTURES)}'
    )
  try:
    shape = ARCHITECTURES[kind].read(hf)
    _check_values(shape)
    return dataclasses.replace(shape, windows=resolve(shape).windows)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  except KeyError as error:
    raise UserError(f"{where}: a {kind} needs the field {error}") from error
  except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
    raise UserError(f"{where}: a field of this {kind} is of the wrong type ({error})") from error


def write(shape: config.Model, kind: str = "") -> Fields:
  """Returns the config.json of a shape, whose `vocab_size` is set.

  Args:
    shape: of the decoder.
    kind: model_type to write; "": the first that can say all of it.

  Raises:
    UserError: if the architecture cannot say all of it, or none can.
  """
  wanted = canonical(shape)
  for name in [kind] if kind else ARCHITECTURES:
    if name not in ARCHITECTURES:
      raise UserError(f'there is no architecture "{name}" to write{nearest(name, ARCHITECTURES)}')
    fields = _common(shape, name) | ARCHITECTURES[name].write(wanted)
    try:
      found = canonical(read(fields))
    except UserError:
      continue
    if found == wanted:
      return fields
    differ = [
      f.name for f in dataclasses.fields(found) if getattr(found, f.name) != getattr(wanted, f.name)
    ]
    if kind:
      raise UserError(f'a "{kind}" of Hugging Face cannot have this {", ".join(differ)}')
  raise UserError(
    "no architecture of Hugging Face has all switches of this decoder: "
    "train one of models/presets.py, or save a checkpoint of ours"
  )


def canonical(shape: config.Model) -> config.Model:
  """Returns the shape with its zeros worked out, and without how it is run, to compare."""
  usual = 8 * shape.dim / 3 if shape.mlp == "gated" else 4 * shape.dim
  eps = 1e-5 if shape.norm == "layernorm" else 1e-6
  width = shape.head_dim if shape.head_dim else shape.dim // shape.heads
  act = "silu" if shape.mlp == "gated" else "gelu_tanh"
  plain = {name: getattr(config.Model(), name) for name in RUNNING}
  if shape.position != "rope":
    plain |= {"rope_theta": 0.0, "rope_local_theta": 0.0, "rope_fraction": 1.0, "rope_scaling": ""}
  if shape.position != "alibi":
    plain |= {"alibi": "mpt"}
  if shape.position != "relative":
    plain |= {"relative_buckets": 0, "relative_distance": 0}
  return dataclasses.replace(
    shape,
    kv_heads=shape.kv_heads if shape.kv_heads else shape.heads,
    head_dim=width,
    hidden=shape.hidden if shape.hidden else math.ceil(usual / 32) * 32,
    norm_eps=shape.norm_eps if shape.norm_eps else eps,
    norm_bias=shape.norm_bias and shape.norm == "layernorm",
    activation=shape.activation if shape.activation else act,
    attention_scale=shape.attention_scale if shape.attention_scale else width**-0.5,
    qkv_bias=shape.qkv_bias or shape.bias,
    windows=period(shape.windows, shape.layers),
    **plain,
  )


def _check_values(shape: config.Model) -> None:
  """Checks each field on its own, before anything is worked out from it.

  Raises:
    TypeError: if a field came as something else than it is.
    UserError: if a number is out of all bounds.
  """
  for name, usual in dataclasses.asdict(config.Model()).items():
    value = getattr(shape, name)
    kinds = (int, float) if isinstance(usual, float) else (type(usual),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual, bool):
      raise TypeError(f"{name} is {value!r:.100}")
    for number in value if isinstance(value, tuple) else [value]:
      if isinstance(value, tuple) and type(number) is not int:
        raise TypeError(f"{name} is {value!r:.100}")
      if isinstance(number, int | float) and not abs(number) <= _MOST:  # NaN is not, either.
        raise UserError(f"{name} is out of bounds: {number!r:.100}")
  if max(shape.layers, shape.encoder_layers) > _MOST_LAYERS:
    raise UserError(f"{shape.layers} layers are more than the {_MOST_LAYERS:,} that are read")
  # 0 is the usual value of ours, and none of theirs; frequencies of a base below 1 grow out of
  # float32.
  if not shape.norm_eps > 0:
    raise UserError(f"norm_eps must be above 0, it is {shape.norm_eps}")
  if shape.position == "rope" and (shape.rope_theta < 1 or 0 != shape.rope_local_theta < 1):
    raise UserError(f"rope_theta must be 1 or more, it is {shape.rope_theta}")


def _common(shape: config.Model, kind: str) -> Fields:
  names = {
    "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
  }  # fmt: skip
  usual = f"{kind.capitalize()}ForCausalLM"
  fields = {"architectures": [names.get(kind, usual)], "model_type": kind, "dtype": "float32"}
  return fields | {"torch_dtype": "float32", "vocab_size": shape.vocab_size, "use_cache": True}
