"""Low-rank adapters: y = x W + s (x A) B, W frozen, in parameters and in a tree of their own.

Hu et al. 2021, arXiv:2106.09685, eq. 3. DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5) also learns
the length m of each output's column: y = m / |W + s A B| (x W + s (x A) B).

An adapter is the part of a tree of parameters under the key "lora": for each adapted dense layer
{"a": [in, r], "b": [r, out], "scale": []} and, of DoRA, "magnitude" [out]. Without that key the
tree is the model that the adapter starts from: a reference costs no memory.
Shape letters: L stacked layers, r rank.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.types import Params

KEY = "lora"
_FIXED = ("scale",)


def variables(tree: Params) -> dict[str, Params]:
  """Returns linen's variables of parameters that may hold an adapter, at any depth of modules.

  Raises:
    ValueError: if the adapter does not fit the parameters.
  """
  found = {"params": without(tree)}
  adapters = _only(tree)
  if not adapters:
    return found
  for path, own in adapted(adapters):
    layer: Any = found["params"]
    for name in path:
      layer = layer.get(name, {}) if isinstance(layer, Mapping) else {}
    if "kernel" not in layer or not {"a", "b", "scale"} <= set(own):
      raise ValueError(
        f"the adapter's {'/'.join(path)} has {', '.join(own)}: it needs a, b and scale, and a "
        "dense layer of that path"
      )
  return found | {KEY: adapters}


def attach(params: Params, cfg: config.Lora, key: jax.Array) -> Params:
  """Returns the parameters of a language model with a new adapter, which changes nothing yet.

  A starts uniform in +-1 / sqrt(in), B at 0, m at the column's length, as in PEFT.

  Args:
    params: maybe still in boxes of axis names; an adapter gets such boxes then.
    cfg: with a rank of at least 1.
    key: of the random numbers.

  Raises:
    UserError: if a target is not the name of a dense layer of the model.
  """
  layers = dict(kernels_of(params))
  check(params, cfg)
  adapter: dict[str, Any] = {}
  for i, (path, kernel) in enumerate(layers.items()):
    if not cfg.targets or path[-2] in cfg.targets:
      place(adapter, path[:-1], _fresh(kernel, cfg, jax.random.fold_in(key, i)))
  return {**params, KEY: adapter}


def check(params: Params, cfg: config.Lora) -> None:
  """Raises UserError if a target of `cfg` is not the name of a dense layer of the model."""
  known = {path[-2] for path, _ in kernels_of(params)}
  for name in cfg.targets:
    if name not in known:
      raise UserError(f'config.lora.targets: there is no layer "{name}"{nearest(name, known)}')


def with_scale(adapter: Params, cfg: config.Lora) -> Params:
  """Returns an adapter with the scale of `cfg` at each layer, as checkpoints do not hold it."""
  whole: dict[str, Any] = {}
  for path, own in adapted(adapter):
    scale = np.full(own["a"].shape[:-2], _scale(cfg), np.float32)
    place(whole, path, {**own, "scale": scale})
  return whole


def merge(params: Params) -> Params:
  """Returns parameters without an adapter that compute what they do with theirs."""
  merged: dict[str, Any] = _copied(without(params))
  for path, own in adapted(params.get(KEY, {})):
    layer = merged
    for name in path:
      layer = layer[name]
    kernel = layer["kernel"] + own["scale"][..., None, None] * (own["a"] @ own["b"])
    if "magnitude" in own:
      kernel = kernel * (own["magnitude"] / _lengths(kernel))[..., None, :]
    layer["kernel"] = kernel
  return merged


def without(tree: Params) -> Params:
  """Returns a tree of parameters without the adapters in it: what they are on."""
  if not isinstance(tree, Mapping):
    return tree
  return {name: without(node) for name, node in tree.items() if name != KEY}


def trained(path: tuple[str, ...]) -> bool:
  """Whether training with an adapter changes the parameter at this path of a tree with one."""
  return KEY in path and path[-1] not in _FIXED


def adapted(adapter: Params) -> Iterator[tuple[tuple[str, ...], Params]]:
  """Yields (path of a dense layer, what an adapter has for it)."""
  for name, node in adapter.items():
    if "a" in node and not isinstance(node["a"], Mapping):
      yield (name,), node
    else:
      for path, own in adapted(node):
        yield (name, *path), own


def kernels_of(params: Params) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Yields (path, kernel), boxed or not, of the dense layers in blocks."""
  boxed = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
  for path, leaf in jax.tree_util.tree_leaves_with_path(without(params), is_leaf=boxed):
    names = tuple(key.key for key in path)
    if names[-1] == "kernel" and len(names) > 2:
      yield names, leaf


def place(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Puts a value at a path of a nested dict."""
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  tree[path[-1]] = value


class Dense(nn.Dense):
  """A dense layer, which adds what an adapter has for it if the model is run with one."""

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """[..., in] -> [..., out] of the compute dtype."""
    y = super().__call__(inputs)
    if not self.has_variable(KEY, "a"):
      return y
    a, b, scale = (self.get_variable(KEY, name) for name in ("a", "b", "scale"))
    scaled_b = scale * b
    x, down, up = nn.dtypes.promote_dtype(inputs, a, scaled_b, dtype=self.dtype)
    y = y + (x @ down) @ up
    if not self.has_variable(KEY, "magnitude"):
      return y
    # The length is not differentiated (sec. 4.3 of the paper).
    whole = jax.lax.stop_gradient(self.get_variable("params", "kernel") + a @ scaled_b)
    ratio = (self.get_variable(KEY, "magnitude") / _lengths(whole)).astype(y.dtype)
    if not self.use_bias:
      return ratio * y
    bias = self.get_variable("params", "bias").astype(y.dtype)
    return ratio * (y - bias) + bias


def _fresh(kernel: Any, cfg: config.Lora, key: jax.Array) -> dict[str, Any]:
  plain = nn.unbox(kernel)
  *layers, wide, out = plain.shape
  bound = 1 / math.sqrt(wide)
  own = {
    "a": jax.random.uniform(key, (*layers, wide, cfg.rank), jnp.float32, -bound, bound),
    "b": jnp.zeros((*layers, cfg.rank, out), jnp.float32),
    "scale": jnp.full(layers, _scale(cfg), jnp.float32),
  }
  if cfg.dora:
    own["magnitude"] = _lengths(plain)
  if not isinstance(kernel, nn.LogicallyPartitioned):
    return own
  *stack, first, last = kernel.names
  axes = {"a": (first, "rank"), "b": ("rank", last), "scale": (), "magnitude": (last,)}
  boxed = nn.LogicallyPartitioned
  return {name: boxed(value, (*stack, *axes[name])) for name, value in own.items()}


def _scale(cfg: config.Lora) -> float:
  return cfg.alpha / (math.sqrt(cfg.rank) if cfg.rank_stabilized else cfg.rank)


def _lengths(kernel: jax.Array) -> jax.Array:
  """[..., in, out] -> [..., out], the Euclidean length of each column."""
  return jnp.linalg.norm(kernel, axis=-2)


def _only(tree: Params) -> Params:
  """A tree's adapters, each at the place of the module that it belongs to."""
  found: dict[str, Any] = {}
  for name, node in tree.items():
    if name == KEY:
      found |= node
    elif isinstance(node, Mapping) and (inner := _only(node)):
      found[name] = inner
  return found


def _copied(tree: Params) -> Params:
  return {k: _copied(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree
