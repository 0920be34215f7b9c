"""T5's encoder-decoder out of the decoder's layers (Raffel et al. 2020, arXiv:1910.10683).

Shape letters: B batch, T targets, S inputs, D model width, H heads, V vocabulary.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax import config, sharding
from llm_jax.errors import UserError
from llm_jax.models import backends, layers
from llm_jax.models import positions as places
from llm_jax.models.attention import NO_WINDOW, Cache, Context
from llm_jax.models.language_model import LanguageModel
from llm_jax.models.shape import resolve
from llm_jax.models.transformer import logits_of, make_norm, rematted


class EncoderDecoder(LanguageModel):
  """An encoder that sees all inputs, and a decoder that sees its output.

  Positions are relative: a bias on distances, one table for all layers of a side, in both
  directions in the encoder. Parameters are float32: `embedding` [V, D] of both sides,
  `encoder_relative` and `relative_embedding` [buckets, H], `encoder_{i}`, `encoder_norm`,
  `blocks_{i}`, `final_norm`, and `lm_head` [D, V] unless tied. Make it by `from_config`.
  """

  @nn.nowrap
  @classmethod
  def from_config(cls, cfg: config.Model) -> "EncoderDecoder":
    """The model that `cfg` describes.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    cfg = resolve(cfg)
    if cfg.encoder_layers < 1 or cfg.position != "relative":
      raise UserError(
        "an encoder-decoder needs config.model.encoder_layers of at least 1 and "
        f'config.model.position="relative", got {cfg.encoder_layers} and "{cfg.position}"'
      )
    if cfg.scan or cfg.windows or cfg.embedding_scale != 1 or cfg.parallel:
      raise UserError(
        "config.model.scan, windows, embedding_scale and parallel are of decoders alone: unset them"
      )
    return cls(cfg)

  def setup(self) -> None:
    """Declares the parameters that are not a block's."""
    cfg, table = self.cfg, self.make_table
    self.embedding = table("embedding", cfg.vocab_size, cfg.dim, ("vocab", "embed"))
    axes = ("positions", "heads")
    self.encoder_relative = table("encoder_relative", cfg.relative_buckets, cfg.heads, axes)
    self.relative_embedding = table("relative_embedding", cfg.relative_buckets, cfg.heads, axes)
    if not cfg.tied:
      self.lm_head = self.make_head()
    block = rematted(cfg)
    self.encoder = [block(cfg, causal=False) for _ in range(cfg.encoder_layers)]
    self.encoder_norm = make_norm(cfg)
    self.blocks = [block(cfg, cross=True) for _ in range(cfg.layers)]
    self.final_norm = make_norm(cfg)
    self.dropout = nn.Dropout(cfg.dropout)

  def __call__(
    self,
    inputs: jax.Array,
    tokens: jax.Array,
    input_segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states after the final norm: `hidden @ head` are the next target's logits.

    Args:
      inputs: [B, S] int32 ids that the encoder reads.
      tokens: [B, T] int32 ids that the decoder reads: the targets, one place to the right.
      input_segments: [B, S] int32, 0 is padding; None: one segment a row. A decoder's segment sees
        the inputs of the same number.
      positions: [B, T] int32, restarting at each segment; None: the slots.
      segments: [B, T] int32 of `tokens`.

    Returns:
      [B, T, D] of the compute dtype, or of the matmul precision.
    """
    memory_BSD = self.encode(inputs, input_segments)
    return self.decode(tokens, memory_BSD, input_segments, positions, segments)

  def encode(self, inputs: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """[B, S] ids -> [B, S, D] of the compute dtype."""
    slots_BS = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    bias = self._bias(self.encoder_relative, slots_BS, slots_BS, both_ways=True)
    context = Context(None, None, bias, segments, None, None)
    x_BSD = self._embed(inputs)
    for block in self.encoder:
      x_BSD, _ = block(x_BSD, context, None, NO_WINDOW)
    return self._drop(self.encoder_norm(x_BSD))

  def decode(
    self,
    tokens: jax.Array,
    memory: jax.Array,
    memory_segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: Cache | None = None,
  ):
    """Hidden states of the decoder; with a cache a pair of them and the new cache.

    Args:
      tokens: [B, T] int32.
      memory: [B, S, D], what `encode` gave.
      memory_segments: [B, S] int32 of the inputs, or None.
      positions: [B, T] int32, or None: the slots.
      segments: [B, T] int32, or None.
      cache: of the tokens before, as a decoder's.
    """
    start = 0 if cache is None else cache.index
    if positions is None:
      positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    if segments is None and (cache is not None or memory_segments is not None):
      segments = jnp.ones_like(tokens)
    key_segments, key_positions = segments, positions
    if cache is not None:
      key_segments = jax.lax.dynamic_update_slice(cache.segments, segments, (0, start))
      key_positions = jax.lax.dynamic_update_slice(cache.positions, positions, (0, start))
    if segments is not None and memory_segments is None:
      memory_segments = jnp.ones(memory.shape[:2], jnp.int32)
    bias = self._bias(self.relative_embedding, positions, key_positions, cached=cache is not None)
    own = (None, None) if cache is None else (key_segments, start)
    context = Context(None, None, bias, segments, *own)
    seen = Context(None, None, None, segments, memory_segments, None)
    x_BTD, pairs = self._embed(tokens), []
    for i, block in enumerate(self.blocks):
      kv = None if cache is None else (cache.keys[i], cache.values[i])
      x_BTD, kv = block(x_BTD, context, kv, NO_WINDOW, memory=memory, seen=seen)
      pairs.append(kv)
    hidden_BTD = self._drop(self.final_norm(x_BTD))
    if self.cfg.tied and self.cfg.tied_scale:
      hidden_BTD = hidden_BTD * jnp.asarray(self.cfg.tied_scale, hidden_BTD.dtype)
    hidden_BTD = self.for_head(hidden_BTD)
    if cache is None:
      return hidden_BTD
    keys, values = zip(*pairs, strict=True)
    return hidden_BTD, Cache(keys, values, key_segments, key_positions, start + tokens.shape[1])

  def logits(self, inputs: jax.Array, tokens: jax.Array, *rest: jax.Array | None) -> jax.Array:
    """Logits float32 [B, T, V]; for tests and demos. The arguments are those of `__call__`."""
    head_DV = self.embedding.T if self.cfg.tied else self.lm_head
    hidden_BTD = self(inputs, tokens, *rest)
    return logits_of(self.cfg, hidden_BTD, head_DV.astype(hidden_BTD.dtype))

  def _embed(self, tokens: jax.Array) -> jax.Array:
    x_BTD = self._drop(layers.look_up(self.embedding, tokens, self.cfg.dtype))
    return sharding.constrain(x_BTD, ("batch", "stream", None))

  def _drop(self, x: jax.Array) -> jax.Array:
    return self.dropout(x, deterministic=not self.has_rng("dropout"))

  def _bias(self, table, positions, key_positions, both_ways: bool = False, cached: bool = False):
    of = functools.partial(
      places.relative_bias, most=self.cfg.relative_distance, both_ways=both_ways
    )
    bias = places.Bias(positions, key_positions, table, of)
    whole = cached or backends.at_once(self.cfg.attention, key_positions.shape[1])
    return bias.array() if whole else bias
