"""One decoder for all published shapes that `config.Model` can describe.

Shape letters: B batch, T time, D model width, V vocabulary, L layers.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.models import layers
from llm_jax.models.attention import Attention, Cache, Context
from llm_jax.types import Params

_CHOICES = {
  "norm": ("rmsnorm", "layernorm"),
  "position": ("rope", "learned"),
  "mlp": ("gated", "plain"),
  "remat": ("none", "full", "dots"),
  "dtype": ("float32", "bfloat16", "float16"),
}


class Block(nn.Module):
  """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)).

  The attributes are those of `Transformer`, with the zeros worked out.
  """

  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  norm: str
  mlp: str
  bias: bool
  qk_norm: bool
  dropout: float
  out_scale: float
  dtype: str

  @nn.compact
  def __call__(self, x_BTD: jax.Array, context: Context, kv=None):
    """[B, T, D], and this layer's (keys, values) of a cache -> [B, T, D], the updated pair."""

    def drop(y):
      return nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(y)

    attend = Attention(
      heads=self.heads,
      kv_heads=self.kv_heads,
      head_dim=self.head_dim,
      bias=self.bias,
      qk_norm=self.qk_norm,
      out_scale=self.out_scale,
      dtype=self.dtype,
      name="attention",
    )
    normed_BTD = layers.Norm(self.norm, self.bias, name="attention_norm")(x_BTD)
    y_BTD, kv = attend(normed_BTD, context, kv)
    x_BTD = x_BTD + drop(y_BTD)
    feed = layers.Mlp(self.hidden, self.mlp, self.bias, self.out_scale, self.dtype, name="mlp")
    x_BTD = x_BTD + drop(feed(layers.Norm(self.norm, self.bias, name="mlp_norm")(x_BTD)))
    return nn.with_logical_constraint(x_BTD, ("batch", "length", "activation")), kv


class Transformer(nn.Module):
  """A pre-norm decoder. `__call__` gives the hidden states that `head` turns into logits.

  Parameters are float32: `embedding` [V, D], `position_embedding` [max_length, D] if learned,
  `blocks_0` .. `blocks_{L-1}` (or one stacked `blocks` if scan), `final_norm`, and `lm_head`
  [D, V] unless tied. Dropout acts where an rng named "dropout" is given.

  The attributes are the fields of `config.Model`; 0 means "the usual value".
  """

  vocab_size: int
  dim: int = 128
  layers: int = 4
  heads: int = 4
  kv_heads: int = 0
  head_dim: int = 0
  hidden: int = 0
  max_length: int = 256
  norm: str = "rmsnorm"
  position: str = "rope"
  rope_theta: float = 10_000.0
  mlp: str = "gated"
  bias: bool = False
  qk_norm: bool = True
  tied: bool = True
  dropout: float = 0.0
  scan: bool = False
  remat: str = "none"
  dtype: str = "float32"

  @nn.nowrap
  @classmethod
  def from_config(cls, cfg: config.Model) -> "Transformer":
    """The decoder that `cfg` describes.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    _check(cfg)
    return cls(**dataclasses.asdict(cfg))

  @property
  def head_width(self) -> int:
    """K, the width of one attention head."""
    return self.head_dim if self.head_dim else self.dim // self.heads

  @property
  def key_value_heads(self) -> int:
    """N, the number of key-value heads."""
    return self.kv_heads if self.kv_heads else self.heads

  @property
  def mlp_width(self) -> int:
    """F, the inner width of the feed-forward block."""
    usual = 8 * self.dim / 3 if self.mlp == "gated" else 4 * self.dim
    return self.hidden if self.hidden else math.ceil(usual / 32) * 32

  def setup(self) -> None:
    """Declares the parameters that are not a block's."""
    table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    self.embedding = self.param("embedding", table, (self.vocab_size, self.dim), jnp.float32)
    if self.position == "learned":
      rows = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("positions", "embed"))
      shape = (self.max_length, self.dim)
      self.position_embedding = self.param("position_embedding", rows, shape, jnp.float32)
    if not self.tied:
      kernel = nn.with_logical_partitioning(layers.kernel_init(), ("embed", "vocab"))
      self.lm_head = self.param("lm_head", kernel, (self.dim, self.vocab_size), jnp.float32)
    self.blocks = self._make_blocks()
    self.final_norm = layers.Norm(self.norm, self.bias)
    self.embedding_dropout = nn.Dropout(self.dropout)

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: Cache | None = None,
  ):
    """Hidden states after the final norm: `hidden @ head` are the next token's logits.

    Args:
      tokens: [B, T] int32 ids below `vocab_size`.
      positions: [B, T] int32, restarting at each segment; None: the slots.
      segments: [B, T] int32, 0 is padding; None: one segment per row.
      cache: keys and values of the tokens before; these T tokens go to its next T slots, and
        the caller sees to it that there are as many.

    Returns:
      [B, T, D] of the compute dtype; with a cache, a pair of that and the new cache.

    Raises:
      ValueError: if shapes differ, or slots outnumber the learned positions.
    """
    _check_inputs(self, tokens, positions, segments, cache)
    start = 0 if cache is None else cache.index
    if positions is None:
      positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    key_segments = segments
    if cache is not None:
      segments = jnp.ones_like(tokens) if segments is None else segments
      key_segments = jax.lax.dynamic_update_slice(cache.segments, segments, (0, start))
    x_BTD = jnp.take(self.embedding, tokens, axis=0)
    rope = None
    if self.position == "learned":
      x_BTD = x_BTD + jnp.take(self.position_embedding, positions, axis=0)
    else:
      rope = layers.rope_table(positions, self.head_width, self.rope_theta)
    x_BTD = x_BTD.astype(jnp.dtype(self.dtype))
    x_BTD = self.embedding_dropout(x_BTD, deterministic=not self.has_rng("dropout"))
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "length", "activation"))
    context = Context(rope, segments, key_segments, start)
    x_BTD, keys_values = self._run_blocks(x_BTD, context, cache)
    hidden_BTD = self.final_norm(x_BTD)
    if cache is None:
      return hidden_BTD
    return hidden_BTD, Cache(*keys_values, key_segments, start + tokens.shape[1])

  def logits(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """Next-token logits, float32 [B, T, V]; for tests, demos and decoding, not for training."""
    hidden_BTD = self(tokens, positions, segments)
    head_DV = self.embedding.T if self.tied else self.lm_head
    head_DV = head_DV.astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)

  @nn.nowrap
  def head(self, params: Params) -> jax.Array:
    """The output matrix [D, V] float32 within `params`, the tree of this model's parameters."""
    params = nn.unbox(params)
    return params["embedding"].T if self.tied else params["lm_head"]

  @nn.nowrap
  def empty_cache(self, batch: int, slots: int) -> Cache:
    """A cache of zeros for `slots` tokens per row."""
    shape = (batch, self.key_value_heads, slots, self.head_width)

    def zeros():
      if self.scan:
        return jnp.zeros((self.layers, *shape), jnp.dtype(self.dtype))
      return tuple(jnp.zeros(shape, jnp.dtype(self.dtype)) for _ in range(self.layers))

    return Cache(zeros(), zeros(), jnp.zeros((batch, slots), jnp.int32), jnp.int32(0))

  def _make_blocks(self):
    block = Block
    if self.remat != "none":
      policy = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
      block = nn.remat(Block, policy=policy[self.remat], prevent_cse=not self.scan)
    if self.scan:
      block = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0),
        length=self.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
    fields = dict(
      heads=self.heads,
      kv_heads=self.key_value_heads,
      head_dim=self.head_width,
      hidden=self.mlp_width,
      norm=self.norm,
      mlp=self.mlp,
      bias=self.bias,
      qk_norm=self.qk_norm,
      dropout=self.dropout,
      out_scale=1 / math.sqrt(2 * self.layers),
      dtype=self.dtype,
    )
    return block(**fields) if self.scan else [block(**fields) for _ in range(self.layers)]

  def _run_blocks(self, x_BTD, context, cache):
    if self.scan:
      return self.blocks(x_BTD, context, None if cache is None else (cache.keys, cache.values))
    pairs = []
    for i, block in enumerate(self.blocks):
      x_BTD, kv = block(x_BTD, context, None if cache is None else (cache.keys[i], cache.values[i]))
      pairs.append(kv)
    return x_BTD, None if cache is None else tuple(zip(*pairs, strict=True))


def unstack(params: Params, count: int) -> Params:
  """The parameters of a scanned decoder of `count` layers as those of an unrolled one."""
  rest = {name: value for name, value in params.items() if name != "blocks"}
  blocks = {
    f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(count)
  }
  return {**rest, **blocks}


def stack(params: Params, count: int) -> Params:
  """The inverse of `unstack`."""
  rest = {name: value for name, value in params.items() if not name.startswith("blocks_")}
  blocks = [params[f"blocks_{i}"] for i in range(count)]
  return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def count_parameters(params: Params) -> int:
  """The number of scalars in a tree of arrays (or of their shapes)."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _check(cfg: config.Model) -> None:
  for name, allowed in _CHOICES.items():
    value = getattr(cfg, name)
    if value not in allowed:
      raise UserError(f'config.model.{name}="{value}" is unknown{nearest(str(value), allowed)}')
  for name in ("vocab_size", "dim", "layers", "heads", "max_length"):
    if getattr(cfg, name) < 1:
      raise UserError(f"config.model.{name} must be at least 1, got {getattr(cfg, name)}")
  if not cfg.head_dim and cfg.dim % cfg.heads:
    raise UserError(
      f"config.model.dim={cfg.dim} must be a multiple of config.model.heads={cfg.heads},"
      " or set config.model.head_dim"
    )
  if cfg.kv_heads and cfg.heads % cfg.kv_heads:
    raise UserError(
      f"config.model.heads={cfg.heads} must be a multiple of config.model.kv_heads={cfg.kv_heads}"
    )
  if cfg.position == "rope" and (cfg.head_dim if cfg.head_dim else cfg.dim // cfg.heads) % 2:
    raise UserError("config.model.head_dim must be even for rotary positions")
  if not 0 <= cfg.dropout < 1:
    raise UserError(f"config.model.dropout must be in [0, 1), got {cfg.dropout}")


def _check_inputs(model, tokens, positions, segments, cache) -> None:
  if tokens.ndim != 2:
    raise ValueError(f"tokens {tokens.shape} must be [B, T]")
  for name, value in (("positions", positions), ("segments", segments)):
    if value is not None and value.shape != tokens.shape:
      raise ValueError(f"{name} {value.shape} and tokens {tokens.shape} must match")
  if cache is not None and cache.segments.shape[0] != tokens.shape[0]:
    raise ValueError(f"cache of {cache.segments.shape} slots does not fit tokens {tokens.shape}")
  slots = (tokens if cache is None else cache.segments).shape[1]
  if slots < tokens.shape[1]:
    raise ValueError(f"cache of {cache.segments.shape} slots cannot hold tokens {tokens.shape}")
  if model.position == "learned" and slots > model.max_length:
    raise ValueError(
      f"{slots} tokens per row exceed the learned positions {(model.max_length, model.dim)};"
      " raise max_length or shorten the rows"
    )
