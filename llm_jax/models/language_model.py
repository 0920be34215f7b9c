"""What a decoder and an encoder-decoder have in common."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax import config, sharding
from llm_jax.models import layers, lora
from llm_jax.models.attention import Cache
from llm_jax.types import Params


class LanguageModel(nn.Module):
  """A model of `cfg`, whose logits are hidden states times a head.

  Attributes:
    cfg: a shape from `shape.resolve`.
  """

  cfg: config.Model

  @nn.nowrap
  def apply(self, variables: Params, *args: Any, **kwargs: Any) -> Any:
    """Linen's `apply`, on the parameters alone too, and on parameters with an adapter.

    Args:
      variables: the tree of parameters, an adapter maybe under its key "lora" (models/lora.py); or
        {"params": that tree}.
      *args: of the method.
      **kwargs: of linen's `apply`; `method="logits"` for one.
    """
    tree = variables["params"] if "params" in variables else variables
    return super().apply(lora.variables(tree), *args, **kwargs)

  @nn.nowrap
  def make_table(self, name: str, rows: int, columns: int, axes: tuple[str, str]) -> jax.Array:
    """Declares a table [rows, columns] float32 of N(0, .02^2), in `setup`."""
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    return self.param(name, init, (rows, columns), jnp.float32)

  @nn.nowrap
  def make_head(self) -> jax.Array:
    """Declares the output matrix [D, V] float32 of a model that is not tied, in `setup`."""
    init = nn.with_logical_partitioning(layers.kernel_init(), ("embed", "vocab"))
    return self.param("lm_head", init, (self.cfg.dim, self.cfg.vocab_size), jnp.float32)

  @nn.nowrap
  def head(self, params: Params) -> jax.Array:
    """The output matrix [D, V] float32 within `params`, the tree of this model's parameters."""
    params = nn.unbox(params)
    return params["embedding"].T if self.cfg.tied else params["lm_head"]

  @nn.nowrap
  def for_head(self, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] as a product with the head takes them."""
    return hidden.astype(self.cfg.matmul_precision or hidden.dtype)

  @nn.nowrap
  def angles(self, slots: int) -> tuple | None:
    """What `__call__` can look positions below `slots` up in; None: nothing."""
    return None

  @nn.nowrap
  def empty_cache(self, batch: int, slots: int) -> Cache:
    """A cache of zeros for `slots` tokens per row of the decoder."""
    cfg = self.cfg
    shape = (batch, cfg.kv_heads, slots, cfg.head_dim)
    names = ("batch", "kv", None, None)

    def zeros():
      if cfg.scan:
        whole = jnp.zeros((cfg.layers, *shape), jnp.dtype(cfg.dtype))
        return sharding.constrain(whole, (None, *names))
      layer = jnp.zeros(shape, jnp.dtype(cfg.dtype))
      return tuple(sharding.constrain(layer, names) for _ in range(cfg.layers))

    segments, positions = (jnp.zeros((batch, slots), jnp.int32) for _ in range(2))
    return Cache(zeros(), zeros(), segments, positions, jnp.int32(0))
