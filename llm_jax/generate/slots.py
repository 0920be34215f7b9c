"""A batch whose rows are answers at places of their own: where one ends, another may begin.

refill.py draws many answers with few rows by it.

Shape letters: B rows, C prompts, R answers that move in, P prompt slots, N new tokens, D model
width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.generate.cache import decoding_model, prefill, prompt_places, read, unrolled
from llm_jax.generate.cache import grow as longer
from llm_jax.generate.logits import (
  draw,
  draw_and_total,
  likeliest,
  logp_of,
  next_logits,
  truncate,
  uniforms,
)
from llm_jax.models.attention import Cache
from llm_jax.models.transformer import Transformer
from llm_jax.types import Params


class Slots(NamedTuple):
  """Answers in progress; a row is free once its answer has ended or is full.

  Attributes:
    cache: its `index` is [B].
    hidden: [B, D], the state that predicts a row's next token.
    first: [B] int32, the position of the first new token: tokens of the prompt.
    drawn: [B] int32, tokens of the answer so far.
    limit: [B] int32, the most that it may have.
    ended: [B] bool, whether the end token was drawn.
    end_id: [B] int32, the token that ends it.
    uniform: [B, N] float32, what tokens are drawn with.
    temperature: [B] float32; 0: the most likely token.
    top_k: [B] int32; V: all.
    top_p: [B] float32.
    tokens: [B, N] int32.
    logps: [B, N] float32, as in `Rollout`.
    sampled_logps: [B, N] float32, as in `Rollout`.
  """

  cache: Cache
  hidden: jax.Array
  first: jax.Array
  drawn: jax.Array
  limit: jax.Array
  ended: jax.Array
  end_id: jax.Array
  uniform: jax.Array
  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  tokens: jax.Array
  logps: jax.Array
  sampled_logps: jax.Array

  def busy(self) -> jax.Array:
    """[B] bool."""
    return ~self.ended & (self.drawn < self.limit)


class Arrivals(NamedTuple):
  """Answers that move in, each into a row of its own.

  Attributes:
    prompts: [C, P] int32, padded on the left.
    mask: [C, P], 1 on real tokens.
    source: [R] int32, the prompt of each answer: one is read once for all of its answers.
    row: [R] int32, the row that it takes; B: none, the answer only fills up the shape.
    keys: [R] PRNG keys.
    limit: [R] int32, the most tokens that it may have.
    end_id: [R] int32, the token that ends it.
    temperature: [R] float32.
    top_k: [R] int32, V: all.
    top_p: [R] float32.
  """

  prompts: jax.Array
  mask: jax.Array
  source: jax.Array
  row: jax.Array
  keys: jax.Array
  limit: jax.Array
  end_id: jax.Array
  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(model: Transformer, rows: int, room: int, max_new: int) -> Slots:
  """Free rows for answers of up to `max_new` tokens, with `room` slots of a cache."""
  cache = unrolled(model).empty_cache(rows, room)
  whole_B, real_B = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
  real_BN = jnp.zeros((rows, max_new), jnp.float32)
  kind = model.cfg.matmul_precision or model.cfg.dtype
  return Slots(
    cache=cache._replace(index=whole_B), hidden=jnp.zeros((rows, model.cfg.dim), jnp.dtype(kind)),
    first=whole_B, drawn=whole_B, limit=whole_B, ended=jnp.zeros(rows, bool), end_id=whole_B,
    uniform=real_BN,
    temperature=real_B, top_k=whole_B, top_p=real_B, tokens=jnp.zeros((rows, max_new), jnp.int32),
    logps=real_BN, sampled_logps=real_BN,
  )  # fmt: skip


def admit(
  model: Transformer, params: Params, slots: Slots, new: Arrivals, chunk: int, pad_id: jax.Array
) -> Slots:
  """Reads the prompts, `chunk` slots at a time, and lets their answers into their rows.

  Two programs: what reads takes long to compile, and does not know how many rows there are.
  """
  count = slots.uniform.shape[1]
  return _enter(slots, new, *_read(model, params, new, chunk, pad_id, count))


@functools.partial(jax.jit, static_argnums=(0, 3, 5))
def _read(model: Transformer, params: Params, new: Arrivals, chunk: int, pad_id, count: int):
  """What `prefill` gives, and [R, N] uniform numbers."""
  model, params = decoding_model(model, params)
  places = prompt_places(new.mask)
  read_in = prefill(model, params, new.prompts, *places, room=0, start_id=pad_id, chunk=chunk)
  return read_in, uniforms(new.keys, count)


@functools.partial(jax.jit, donate_argnums=0)
def _enter(slots: Slots, new: Arrivals, prompts: tuple, uniform_RN: jax.Array) -> Slots:
  width = new.prompts.shape[1]
  hidden_CD, first_C, read_in = prompts

  def enter(old: jax.Array, x: jax.Array) -> jax.Array:
    return old.at[new.row].set(x.astype(old.dtype), mode="drop")

  def fill(old: jax.Array, x: jax.Array) -> jax.Array:
    return old.at[new.row, :, :width].set(x[new.source], mode="drop")

  def label(old: jax.Array, x: jax.Array) -> jax.Array:
    """What is left of the answer before is no longer seen."""
    return enter(old, jnp.pad(x[new.source], ((0, 0), (0, old.shape[1] - width))))

  old, zeros_R = slots.cache, jnp.zeros_like(new.row)
  cache = Cache(
    tuple(map(fill, old.keys, read_in.keys)),
    tuple(map(fill, old.values, read_in.values)),
    label(old.segments, read_in.segments),
    label(old.positions, read_in.positions),
    enter(old.index, zeros_R + width),
  )
  return slots._replace(
    cache=cache, hidden=enter(slots.hidden, hidden_CD[new.source]),
    first=enter(slots.first, first_C[new.source]), drawn=enter(slots.drawn, zeros_R),
    limit=enter(slots.limit, new.limit), ended=enter(slots.ended, zeros_R),
    end_id=enter(slots.end_id, new.end_id),
    uniform=enter(slots.uniform, uniform_RN),
    temperature=enter(slots.temperature, new.temperature), top_k=enter(slots.top_k, new.top_k),
    top_p=enter(slots.top_p, new.top_p),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(1, 2))
def grow(slots: Slots, rows: int, room: int) -> Slots:
  """The same answers in the first of `rows` rows, with a cache of `room` slots or more."""
  count, most = slots.cache.segments.shape

  def more(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, rows - count)] + [(0, 0)] * (x.ndim - 1))

  return jax.tree.map(more, slots._replace(cache=longer(slots.cache, max(0, room - most))))


@functools.partial(jax.jit, static_argnums=2)
def take(slots: Slots, rows: jax.Array, room: int) -> Slots:
  """The answers of some rows [W], with a cache of the first `room` slots or fewer."""
  some = lambda x: x[rows, :, :room]  # noqa: E731
  own = jax.tree.map(lambda x: x[rows], slots._replace(cache=None))
  cache = slots.cache
  return own._replace(
    cache=Cache(
      tuple(map(some, cache.keys)), tuple(map(some, cache.values)),
      cache.segments[rows, :room], cache.positions[rows, :room], cache.index[rows],
    )
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def run(
  model: Transformer,
  params: Params,
  slots: Slots,
  steps: jax.Array,
  free: jax.Array,
  truncated: bool,
  pad_id: jax.Array,
) -> Slots:
  """Draws up to `steps` tokens of every answer, and stops once `free` rows are free.

  Args:
    model: a decoder.
    params: its parameters.
    slots: answers in progress, whose cache has room for these steps.
    steps: [] int32.
    free: [] int32.
    truncated: whether any row has a `top_k` or `top_p`.
    pad_id: what free rows read.
  """
  model, params = decoding_model(model, params)
  head_DV = model.for_head(model.head(params).astype(jnp.dtype(model.cfg.dtype)))
  angles = model.angles(slots.cache.segments.shape[1])

  def unfinished(carry: tuple[jax.Array, Slots]) -> jax.Array:
    step, slots = carry
    busy = slots.busy().sum()
    return (step < steps) & (busy > 0) & (len(slots.ended) - busy < free)

  def advance(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
    """Draws the next token of every row, then reads it."""
    step, slots = carry
    busy_B = slots.busy()
    logits_BV = next_logits(slots.hidden, head_DV, tied=model.cfg.tied, cap=model.cfg.logit_cap)
    token_B, logp_B, sampled_B = _choose(slots, logits_BV, truncated)
    token_B = jnp.where(busy_B, token_B, pad_id)
    position_B = slots.first + slots.drawn
    hidden_B1D, cache = read(
      model, params, token_B[:, None], position_B[:, None], busy_B[:, None].astype(jnp.int32),
      slots.cache, angles,
    )  # fmt: skip
    rows_B, at_B = jnp.arange(len(busy_B)), jnp.where(busy_B, slots.drawn, slots.tokens.shape[1])
    put = lambda old, x: old.at[rows_B, at_B].set(x, mode="drop")  # noqa: E731
    return step + 1, slots._replace(
      cache=cache._replace(index=slots.cache.index + busy_B),
      hidden=hidden_B1D[:, 0],
      drawn=slots.drawn + busy_B,
      ended=slots.ended | (busy_B & (token_B == slots.end_id)),
      tokens=put(slots.tokens, token_B),
      logps=put(slots.logps, logp_B),
      sampled_logps=put(slots.sampled_logps, sampled_B),
    )

  return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), slots))[1]


def _choose(
  slots: Slots, logits_BV: jax.Array, truncated: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Each row's next token, and its log-probability before and after truncation."""
  greedy_B = slots.temperature == 0
  scaled_BV = logits_BV / jnp.where(greedy_B, 1.0, slots.temperature)[:, None]
  uniform_B = jnp.take_along_axis(slots.uniform, slots.drawn[:, None], axis=1, mode="clip")[:, 0]
  if truncated:
    kept_BV = truncate(scaled_BV, slots.top_k, slots.top_p)
    token_B, sampled_B = draw(uniform_B, kept_BV)
  else:
    token_B, total_B = draw_and_total(uniform_B, scaled_BV)
  token_B = jax.lax.cond(
    jnp.any(greedy_B),
    lambda: jnp.where(greedy_B, likeliest(scaled_BV), token_B),
    lambda: token_B,
  )
  if truncated:
    logp_B = logp_of(scaled_BV, token_B)
  else:
    logp_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=1)[:, 0] - total_B
    sampled_B = logp_B
  return token_B, logp_B, jnp.where(greedy_B, 0.0, sampled_B)


def size_for(longest: int, most: int, least: int) -> int:
  """The next of few sizes, each twice the one before: few programs compile."""
  size = least
  while size < longest:
    size *= 2
  return min(size, most)
