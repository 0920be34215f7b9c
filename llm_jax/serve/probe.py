"""What a page asks of models besides answers: distributions, divergences, scores token by token.

Shape letters: T tokens, t those of one part, D model width, V vocabulary, K the likeliest.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.generate.logits import draw, next_logits, truncate
from llm_jax.generate.slots import size_for
from llm_jax.models.heads import Critic
from llm_jax.models.transformer import Transformer
from llm_jax.serve.models import Served
from llm_jax.types import Params

_LEAST = 32  # Slots of the shortest texts: few sizes, few programs.
LIKELIEST = 100  # Tokens that a program finds, however many are wanted: one program for all.
_PART = 128  # Rows of logits of two models at a time.


class Next(NamedTuple):
  """The distribution of the next token.

  Attributes:
    ids: [K] of the likeliest tokens, the likeliest first.
    raw: [K] their probabilities as the model gives them.
    shaped: [K] after temperature and top-p; 0: cut off.
    entropy: of the model's own distribution, nats.
    shaped_entropy: of the shaped one, nats.
    kept: tokens that top-p leaves.
    drawn: one token of the shaped distribution.
  """

  ids: np.ndarray
  raw: np.ndarray
  shaped: np.ndarray
  entropy: float
  shaped_entropy: float
  kept: int
  drawn: int


def next_token(
  served: Served, tokens: Sequence[int], temperature: float, top_p: float, uniform: float, top: int
) -> Next:
  """Returns what may follow.

  Args:
    served: the model.
    tokens: the context, one or more.
    temperature: above 0.
    top_p: in (0, 1].
    uniform: in [0, 1), what `drawn` is drawn with.
    top: K, at most `LIKELIEST`.

  Raises:
    ValueError: if the context is too long.
  """
  found = _next(
    served.model, served.params, _fitted(served, tokens), len(tokens) - 1,
    np.float32(temperature), np.float32(top_p), np.float32(uniform),
    min(LIKELIEST, served.tokenizer.vocab_size),
  )  # fmt: skip
  ids, raw, shaped, *rest = jax.device_get(found)
  ids, raw, shaped = ids[:top], raw[:top], shaped[:top]
  entropy, shaped_entropy, kept, drawn = (x.item() for x in rest)
  return Next(ids, raw, shaped, entropy, shaped_entropy, kept, drawn)


@functools.partial(jax.jit, static_argnums=(0, 7))
def _next(
  model: Transformer, params: Params, tokens_1T, last, temperature, top_p, uniform, top: int
):
  hidden_1D = model.apply(params, tokens_1T)[:, last]
  logits_1V = next_logits(hidden_1D, _head(model, params), tied=model.cfg.tied, cap=_cap(model))
  raw_V = jax.nn.log_softmax(logits_1V[0])
  kept_1V = truncate(logits_1V / temperature, model.cfg.vocab_size, top_p[None])
  shaped_V = jax.nn.log_softmax(kept_1V[0])
  token_1, _ = draw(uniform[None], kept_1V)
  _, ids_K = jax.lax.top_k(raw_V, top)
  kept = jnp.isfinite(shaped_V).sum()
  return (
    ids_K, jnp.exp(raw_V[ids_K]), jnp.exp(shaped_V[ids_K]), _entropy(raw_V), _entropy(shaped_V),
    kept, token_1[0],
  )  # fmt: skip


def _entropy(logp_V: jax.Array) -> jax.Array:
  return -jnp.sum(jnp.where(jnp.isfinite(logp_V), jnp.exp(logp_V) * logp_V, 0.0))


class Beside(NamedTuple):
  """Two models on one text.

  Attributes:
    logps: [T - 1] of tokens[1:] under the first, nats.
    ref_logps: [T - 1] under the second.
    kl: [T - 1] of the first to the second in the same places, over the whole vocabulary, nats.
  """

  logps: np.ndarray
  ref_logps: np.ndarray
  kl: np.ndarray


def beside(own: Served, other: Served, tokens: Sequence[int]) -> Beside:
  """Log-probabilities of a text under two models of one tokenizer, and the exact divergence.

  Raises:
    ValueError: if the text is too long.
  """
  found = _beside(own.model, other.model, own.params, other.params, _fitted(own, tokens))
  return Beside(*(x[: len(tokens) - 1] for x in jax.device_get(found)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _beside(
  own: Transformer, other: Transformer, params: Params, ref_params: Params, tokens_1T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  targets_T = jnp.roll(tokens_1T[0], -1)
  vocabulary = min(own.cfg.vocab_size, other.cfg.vocab_size)  # An imported one may have more rows.

  def logps(model: Transformer, weights: Params, hidden_tD: jax.Array) -> jax.Array:
    logits_tV = next_logits(hidden_tD, _head(model, weights), tied=model.cfg.tied, cap=_cap(model))
    return jax.nn.log_softmax(logits_tV[:, :vocabulary])

  def part(given: tuple[jax.Array, jax.Array, jax.Array]):
    own_tV, ref_tV = logps(own, params, given[0]), logps(other, ref_params, given[1])
    pick = lambda x: jnp.take_along_axis(x, given[2][:, None], 1)[:, 0]  # noqa: E731
    return pick(own_tV), pick(ref_tV), jnp.sum(jnp.exp(own_tV) * (own_tV - ref_tV), axis=-1)

  size = min(_PART, len(targets_T))
  given = (own.apply(params, tokens_1T)[0], other.apply(ref_params, tokens_1T)[0], targets_T)

  def cut(x: jax.Array) -> jax.Array:
    widths = [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, widths).reshape(-1, size, *x.shape[1:])

  found = jax.lax.map(part, tuple(map(cut, given)))
  return tuple(x.reshape(-1)[: len(targets_T)] for x in found)


def scores(critic: Critic, params: Params, tokens: Sequence[int], pad_id: int) -> np.ndarray:
  """What a reward model would say after each token, [T] float32; the last is the text's score.

  Args:
    critic: a reward model's decoder and head, read everywhere.
    params: of the reward model.
    tokens: [T] of a whole conversation, the end of the last turn included.
    pad_id: a token that fills up.

  Raises:
    ValueError: if the text is longer than what positions were learned for.
  """
  cfg = critic.decoder.cfg
  # Where positions are learned there are no more of them.
  most = cfg.max_length if cfg.position == "learned" else 1 << 30
  if len(tokens) > most:
    raise ValueError(f"this model has {most} positions, the conversation has {len(tokens)} tokens")
  padded_1T = _padded(tokens, most, pad_id)
  return np.asarray(_scores(critic, params, padded_1T))[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _scores(critic: Critic, params: Params, tokens_1T: jax.Array) -> jax.Array:
  return critic.apply({"params": params}, tokens_1T)[0]


def _head(model: Transformer, params: Params) -> Any:
  return model.for_head(model.head(params).astype(jnp.dtype(model.cfg.dtype)))


def _cap(model: Transformer) -> float:
  return model.cfg.logit_cap


def _fitted(served: Served, tokens: Sequence[int]) -> np.ndarray:
  """The text as `_padded` gives it.

  Raises:
    ValueError: if it is longer than a prompt and its answer may be.
  """
  most = served.engine.prompt + served.engine.max_new
  if not 0 < len(tokens) <= most:
    raise ValueError(f"a text has 1 to {most} tokens here, not {len(tokens)}")
  return _padded(tokens, most, served.tokenizer.pad_id)


def _padded(tokens: Sequence[int], most: int, pad_id: int) -> np.ndarray:
  """[1, T] with room behind the text, which no token before it can see."""
  out = np.full((1, size_for(len(tokens), most, _LEAST)), pad_id, np.int32)
  out[0, : len(tokens)] = tokens
  return out
