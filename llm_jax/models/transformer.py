"""One decoder for all published architectures that `config.Model` can describe.

Shape letters: B batch, T time, S keys, D model width, H heads, V vocabulary, L layers.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax import config, products, sharding
from llm_jax.errors import UserError
from llm_jax.models import backends, layers, lora, noise, remat
from llm_jax.models import positions as places
from llm_jax.models.attention import NO_WINDOW, Attention, Cache, Context, put
from llm_jax.models.language_model import LanguageModel
from llm_jax.models.shape import resolve, turning
from llm_jax.types import Params


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

  Side by side, as in GPT-J and PaLM, the MLP reads what attention read: x + attention(norm(x)) +
  mlp(norm(x)), with one norm for both or one each.

  Attributes:
    cfg: the decoder's shape, its zeros worked out.
    causal: whether later tokens are out of sight; False in an encoder.
    cross: whether it attends to an encoder's output too, between attention and MLP.
  """

  cfg: config.Model
  causal: bool = True
  cross: bool = False

  @nn.compact
  def __call__(self, x_BTD, context: Context, kv=None, window=NO_WINDOW, memory=None, seen=None):
    """Runs the layer.

    Args:
      x_BTD: [B, T, D].
      context: what all layers share.
      kv: this layer's (keys, values) of a cache, or None.
      window: tokens that it sees; None: as many as in all layers.
      memory: [B, S, D], an encoder's output, if `cross`.
      seen: the context of attention to it.

    Returns:
      [B, T, D], and the updated pair.
    """
    cfg = self.cfg
    window = only_window(cfg) if window is None else window
    normed_BTD = self._norm("attention_norm")(x_BTD)
    y_BTD, kv = self._attention("attention", self.causal)(normed_BTD, context, kv, window)
    y_BTD = self._finish(y_BTD, "attention_post_norm")
    if not cfg.parallel:
      x_BTD = x_BTD + y_BTD
    if self.cross:
      normed_BTD = self._norm("cross_norm")(x_BTD)
      y_BTD, _ = self._attention("cross", False)(normed_BTD, seen, memory=memory)
      x_BTD = x_BTD + self._finish(y_BTD, "cross_post_norm")
    if cfg.parallel != "one":
      normed_BTD = self._norm("mlp_norm")(x_BTD)
    feed = layers.Mlp(
      cfg.hidden,
      cfg.mlp,
      cfg.activation,
      cfg.bias,
      self._out_scale,
      cfg.dtype,
      cfg.matmul_precision,
      name="mlp",
    )
    z_BTD = self._finish(feed(normed_BTD), "mlp_post_norm")
    x_BTD = x_BTD + y_BTD + z_BTD if cfg.parallel else x_BTD + z_BTD
    return sharding.constrain(x_BTD, ("batch", "stream", None)), kv

  @property
  def _out_scale(self) -> float:
    return 1 / math.sqrt(2 * self.cfg.layers)

  @nn.nowrap
  def _norm(self, name: str) -> layers.Norm:
    return make_norm(self.cfg, name)

  @nn.nowrap
  def _attention(self, name: str, causal: bool) -> Attention:
    cfg = self.cfg
    return Attention(
      heads=cfg.heads,
      kv_heads=cfg.kv_heads,
      head_dim=cfg.head_dim,
      bias=cfg.bias,
      qkv_bias=cfg.qkv_bias,
      qk_norm=cfg.qk_norm,
      norm_eps=cfg.norm_eps,
      norm_offset=cfg.norm_offset,
      qkv_clip=cfg.qkv_clip,
      scale=cfg.attention_scale,
      cap=cfg.attention_cap,
      out_scale=self._out_scale,
      dtype=cfg.dtype,
      precision=cfg.matmul_precision,
      causal=causal,
      backend=cfg.attention,
      max_segments=cfg.attention_segments,
      name=name,
    )

  def _finish(self, y_BTD: jax.Array, name: str) -> jax.Array:
    """What is done to a branch before it joins the stream."""
    y_BTD = self._norm(name)(y_BTD) if self.cfg.post_norm else y_BTD
    return nn.Dropout(self.cfg.dropout, deterministic=not self.has_rng("dropout"))(y_BTD)


def only_window(cfg: config.Model) -> int | None:
  """Returns the tokens that each layer sees, a number of the program; None if layers differ."""
  windows = set(cfg.windows) or {0}
  return (windows.pop() or NO_WINDOW) if len(windows) == 1 else None


def make_norm(cfg: config.Model, name: str | None = None) -> layers.Norm:
  """Returns a norm of the model width as `cfg` has them."""
  return layers.Norm(cfg.norm, cfg.norm_bias, eps=cfg.norm_eps, offset=cfg.norm_offset, name=name)


class Transformer(LanguageModel):
  """A decoder. `__call__` gives the hidden states that `head` turns into logits.

  Parameters are float32: `embedding` [V, D], `position_embedding` [max_length, D] if learned,
  `relative_embedding` [buckets, H] if relative, `blocks_0` .. `blocks_{L-1}` (or one stacked
  `blocks` if scan), `final_norm`, and `lm_head` [D, V] unless tied. Dropout acts where an rng named
  "dropout" is given. Make it by `from_config`.
  """

  @nn.nowrap
  @classmethod
  def from_config(cls, cfg: config.Model) -> "Transformer":
    """The decoder that `cfg` describes.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    if cfg.encoder_layers:
      raise UserError(
        f"config.model.encoder_layers={cfg.encoder_layers}: this is an encoder-decoder, and a "
        "decoder is wanted here; set it to 0, or name another model"
      )
    return cls(resolve(cfg))

  def setup(self) -> None:
    """Declares the parameters that are not a block's."""
    cfg, table = self.cfg, self.make_table
    self.embedding = table("embedding", cfg.vocab_size, cfg.dim, ("vocab", "embed"))
    if cfg.position == "learned":
      axes = ("positions", "embed")
      self.position_embedding = table("position_embedding", cfg.max_length, cfg.dim, axes)
    if cfg.position == "relative":
      axes = ("positions", "heads")
      self.relative_embedding = table("relative_embedding", cfg.relative_buckets, cfg.heads, axes)
    if not cfg.tied:
      self.lm_head = self.make_head()
    self.blocks = self._make_blocks()
    self.final_norm = make_norm(cfg)
    self.embedding_dropout = nn.Dropout(cfg.dropout)

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: Cache | None = None,
    angles: tuple | None = None,
    neftune: float = 0.0,
  ):
    """Hidden states after the final norm: `hidden @ head` are the next token's logits.

    Args:
      tokens: [B, T] int32 ids below `vocab_size`.
      positions: [B, T] int32, restarting at each segment; None: the slots.
      segments: [B, T] int32, 0 is padding; None: one segment per row.
      cache: keys and values of the tokens before; these T tokens go to its next T slots, and
        the caller sees to it that there are as many.
      angles: `angles(slots)`, to look positions below `slots` up in; None: they are worked out.
      neftune: alpha of the noise on the tokens' embeddings (noise.py), drawn by the rng "noise".

    Returns:
      [B, T, D] of the compute dtype, or of the matmul precision; with a cache, a pair of that and
      the new cache.

    Raises:
      ValueError: if shapes differ, or slots outnumber the learned positions.
    """
    cfg = self.cfg
    _check_inputs(cfg, tokens, positions, segments, cache)
    start = 0 if cache is None else cache.index
    if positions is None:
      slots = jnp.reshape(start, (-1, 1)) + jnp.arange(tokens.shape[1])
      positions = jnp.broadcast_to(slots, tokens.shape)
    key_segments, key_positions = segments, positions
    if cache is not None:
      segments = jnp.ones_like(tokens) if segments is None else segments
      key_segments = put(cache.segments, segments, start)
      key_positions = put(cache.positions, positions, start)
    learned = cfg.position == "learned"
    x_BTD = layers.look_up(self.embedding, tokens, "float32" if learned else cfg.dtype)
    if neftune:
      own = jnp.ones_like(tokens) if segments is None else segments
      noise_BTD = noise.neftune(self.make_rng("noise"), own, cfg.dim, neftune)
      x_BTD = (x_BTD + noise_BTD).astype(x_BTD.dtype)
    if learned:
      x_BTD = x_BTD + layers.look_up(self.position_embedding, positions, "float32")
    x_BTD = x_BTD.astype(jnp.dtype(cfg.dtype)) * jnp.asarray(cfg.embedding_scale, cfg.dtype)
    x_BTD = self.embedding_dropout(x_BTD, deterministic=not self.has_rng("dropout"))
    x_BTD = sharding.constrain(x_BTD, ("batch", "stream", None))
    bias = self._bias(positions, key_positions)
    whole = cache is not None or backends.at_once(cfg.attention, tokens.shape[1])
    if bias is not None and whole:
      bias = bias.array()  # Once for all layers.
    own = (None, None) if cache is None else (key_segments, start)
    context = Context(*self._ropes(positions, angles), bias, segments, *own)
    x_BTD, keys_values = self._run_blocks(x_BTD, context, cache)
    hidden_BTD = self.for_head(self.final_norm(x_BTD))
    if cache is None:
      return hidden_BTD
    return hidden_BTD, Cache(*keys_values, key_segments, key_positions, start + tokens.shape[1])

  def logits(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """Next-token logits, float32 [B, T, V]; for tests, demos and decoding, not for training."""
    hidden_BTD = self(tokens, positions, segments)
    head_DV = self.embedding.T if self.cfg.tied else self.lm_head
    return logits_of(self.cfg, hidden_BTD, head_DV.astype(hidden_BTD.dtype))

  @nn.nowrap
  def windows(self) -> list[int]:
    """Tokens that each layer sees."""
    pattern = self.cfg.windows if self.cfg.windows else (0,)
    found = (pattern[i % len(pattern)] for i in range(self.cfg.layers))
    return [window if window else NO_WINDOW for window in found]

  @nn.nowrap
  def angles(self, slots: int) -> tuple:
    """Rotary angles of the positions 0 .. slots - 1, for `__call__`.

    For loops over single tokens: there, XLA on a CPU works cosines out again for each layer and
    head.
    """
    return self._ropes(jnp.arange(slots)[None])

  @nn.nowrap
  def _ropes(self, positions: jax.Array, angles: tuple | None = None) -> tuple:
    """The angles of layers that see all tokens, and those of layers with a window."""
    if angles is not None:
      return jax.tree.map(lambda table: jnp.take(table[0], positions, axis=0), angles)
    cfg = self.cfg
    if cfg.position != "rope":
      return None, None
    width = turning(cfg)
    rope = places.rope_table(positions, width, cfg.rope_theta, cfg.rope_scaling)
    if not cfg.rope_local_theta:
      return rope, None
    return rope, places.rope_table(positions, width, cfg.rope_local_theta)

  def _bias(self, positions: jax.Array, key_positions: jax.Array) -> places.Bias | None:
    """What positions add to the scores."""
    cfg = self.cfg
    table = None
    if cfg.position == "alibi":
      of = lambda _, queries, keys: places.alibi(  # noqa: E731
        cfg.alibi, cfg.heads, cfg.head_dim, queries, keys
      )
    elif cfg.position == "relative":
      table = self.relative_embedding
      of = functools.partial(places.relative_bias, most=cfg.relative_distance)
    else:
      return None
    return places.Bias(positions, key_positions, table, of)

  def _make_blocks(self):
    cfg = self.cfg
    block = rematted(cfg)
    if not cfg.scan:
      return [block(cfg) for _ in range(cfg.layers)]
    scanned = nn.scan(
      block,
      variable_axes={"params": 0, lora.KEY: 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, 0, nn.broadcast if only_window(cfg) else 0),
      length=cfg.layers,
      unroll=cfg.scan_unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(cfg)

  def _run_blocks(self, x_BTD, context, cache):
    windows = self.windows()
    if self.cfg.scan:
      per_layer = None if only_window(self.cfg) else jnp.array(windows)
      own = None if cache is None else (cache.keys, cache.values)
      return self.blocks(x_BTD, context, own, per_layer)
    pairs = []
    for i, block in enumerate(self.blocks):
      own = None if cache is None else (cache.keys[i], cache.values[i])
      x_BTD, kv = block(x_BTD, context, own, windows[i])
      pairs.append(kv)
    return x_BTD, None if cache is None else tuple(zip(*pairs, strict=True))


def rematted(cfg: config.Model) -> type[Block]:
  """Returns the block that keeps of its forward pass what `cfg.remat` says (remat.py).

  Raises:
    UserError: if the devices cannot keep it there.
  """
  if cfg.remat == "none":
    return Block
  # In two loops, forwards and backwards, the compiler cannot merge what is computed twice.
  rounds, rest = divmod(cfg.layers, cfg.scan_unroll)
  loops = cfg.scan and rounds > 1 and not rest
  # The window is a number of the program unless layers are scanned.
  static = () if cfg.scan else (4,)
  return nn.remat(Block, policy=remat.policy(cfg), prevent_cse=not loops, static_argnums=static)


def logits_of(cfg: config.Model, hidden: jax.Array, head: jax.Array) -> jax.Array:
  """Returns the logits float32 [..., V] of hidden states [..., D] and a head [D, V]."""
  rows_MD = hidden.reshape(-1, hidden.shape[-1])
  logits = products.product("MD,DV->MV", rows_MD, head).reshape(*hidden.shape[:-1], -1)
  return cfg.logit_cap * jnp.tanh(logits / cfg.logit_cap) if cfg.logit_cap else logits


def unstack(params: Params, count: int) -> Params:
  """The parameters of a scanned decoder of `count` layers as those of an unrolled one."""
  rest = {name: value for name, value in params.items() if name not in ("blocks", lora.KEY)}
  if lora.KEY in params:
    rest[lora.KEY] = unstack(params[lora.KEY], count)
  stacked = params.get("blocks", {})
  return rest | {f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)}


def stack(params: Params, count: int) -> Params:
  """The inverse of `unstack`."""
  skipped = ("blocks_", lora.KEY)
  rest = {name: value for name, value in params.items() if not name.startswith(skipped)}
  if lora.KEY in params:
    rest[lora.KEY] = stack(params[lora.KEY], count)
  blocks = [params[f"blocks_{i}"] for i in range(count)]
  return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def count_parameters(params: Params) -> int:
  """The number of scalars in a tree of arrays (or of their shapes)."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _check_inputs(cfg, tokens, positions, segments, cache) -> None:
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
  if cfg.position == "learned" and slots > cfg.max_length:
    raise ValueError(
      f"{slots} tokens per row exceed the learned positions {(cfg.max_length, cfg.dim)};"
      " raise max_length or shorten the rows"
    )
