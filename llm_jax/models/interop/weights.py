"""How tensors of Hugging Face become parameters of ours, and back: rules, one a tensor.

Their dense kernels are [out, in], ours [in, out]. Shape letters: H heads, N key-value heads, K head
width, M = H / N.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax import config

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plain:
  """One tensor, one parameter.

  Attributes:
    hf: the tensor's name; "{i}" is the layer.
    path: the parameter's, with slashes.
    turned: whether it is transposed.
  """

  hf: str
  path: str
  turned: bool = False

  @property
  def paths(self) -> tuple[str, ...]:
    """All parameters of the tensor."""
    return (self.path,)

  def take(self, tensor: np.ndarray, shape: config.Model) -> list[np.ndarray]:
    """Returns the parameters of a tensor, in the order of `paths`."""
    return [tensor.T if self.turned else tensor]

  def give(self, arrays: Sequence[np.ndarray], shape: config.Model) -> np.ndarray:
    """Returns the tensor of these parameters."""
    return arrays[0].T if self.turned else arrays[0]


@dataclasses.dataclass(frozen=True)
class Fused:
  """Queries, keys and values in one tensor.

  Attributes:
    hf: the tensor's name.
    paths: those of q, k and v.
    layout: "parts": all queries, all keys, all values; "groups": for each key-value head its M
      queries, its key, its value.
    turned: whether a kernel is [out, in].
  """

  hf: str
  paths: tuple[str, ...]
  layout: str
  turned: bool

  def take(self, tensor: np.ndarray, shape: config.Model) -> list[np.ndarray]:
    """Returns q, k and v."""
    rows = tensor if tensor.ndim == 1 or self.turned else tensor.T
    width, kv = shape.head_dim, shape.kv_heads
    wide, narrow = shape.heads * width, kv * width
    if rows.shape[0] != wide + 2 * narrow:
      raise ValueError(f"{rows.shape[0]} rows, {wide} + 2 x {narrow} are needed")
    if self.layout == "parts":
      found = np.split(rows, [wide, wide + narrow])
    else:
      groups = rows.reshape(kv, shape.heads // kv + 2, width, *rows.shape[1:])
      sides = (groups[:, :-2], groups[:, -2], groups[:, -1])
      found = [side.reshape(-1, *rows.shape[1:]) for side in sides]
    return [part if part.ndim == 1 else part.T for part in found]

  def give(self, arrays: Sequence[np.ndarray], shape: config.Model) -> np.ndarray:
    """Returns the tensor of q, k and v."""
    parts = [part if part.ndim == 1 else part.T for part in arrays]
    if self.layout == "groups":
      kv, width, rest = shape.kv_heads, shape.head_dim, parts[0].shape[1:]
      sides = [part.reshape(kv, -1, width, *rest) for part in parts]
      rows = np.concatenate(sides, axis=1).reshape(-1, *rest)
    else:
      rows = np.concatenate(parts)
    return rows if rows.ndim == 1 or self.turned else rows.T


Rule = Plain | Fused


class Architecture(NamedTuple):
  """All that there is to know of an architecture of Hugging Face.

  Attributes:
    read: config.json to a shape.
    write: a shape, its zeros worked out, to the fields of config.json that are its own.
    rules: of a shape.
    buffers: endings of tensors in old files that hold no weights.
    head: the output matrix, which may be in the file though it is tied.
    prefix: of all names but the head's; files of a bare decoder lack it.
  """

  read: Callable[[Mapping[str, Any]], config.Model]
  write: Callable[[config.Model], dict[str, Any]]
  rules: Callable[[config.Model], list[Rule]]
  buffers: tuple[str, ...]
  head: str
  prefix: str


def tensors(rules: Sequence[Rule], shape: config.Model) -> dict[str, tuple[Rule, int]]:
  """Returns {name: (rule, layer)} of all tensors; the layer is -1 where there is none."""
  found: dict[str, tuple[Rule, int]] = {}
  for rule in rules:
    layers = shape.encoder_layers if rule.paths[0].startswith("encoder_{i}") else shape.layers
    for i in range(layers) if "{i}" in rule.hf else (-1,):
      found[rule.hf.replace("{i}", str(i))] = rule, i
  return found
