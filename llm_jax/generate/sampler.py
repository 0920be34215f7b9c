"""The one sampler: a jitted prefill, then a while-loop of single tokens over a KV cache.

Shape letters: C prompts, B answers, P prompt slots, N new tokens, S = P + N slots, D model width,
V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import sharding
from llm_jax.generate.cache import decoding_model, grow, prefill, prompt_places, read
from llm_jax.generate.logits import draw, likeliest, logp_of, next_logits, truncate, uniforms
from llm_jax.generate.refill import Asked, Written, refilled
from llm_jax.models.language_model import LanguageModel
from llm_jax.types import Batch, Params

_CHUNK = 2048  # Tokens of all prompts that a device reads at a time,
_LEAST, _MOST = 32, 512  # between these of each prompt.
_STAGES = 4  # Sizes that a cache grows through,
_STAGE = 32  # each by as many tokens at least.
_SPLIT = 32  # Rows from which on a batch hands its last quarter over to a smaller one.


class Rollout(NamedTuple):
  """Prompts with their answers; S = P + N slots, the prompts padded on the left.

  Attributes:
    tokens: [B, S] int32; after an answer's end, padding.
    positions: [B, S] int32, 0 at a prompt's first real token.
    segments: [B, S] int32, 1 on the prompt and the answer, 0 on padding.
    mask: [B, S] float32, 1 on generated tokens, the end token included.
    logps: [B, S] float32 nats: log-probability of each generated token under the whole
      distribution at the temperature; it is what a learner recomputes. 0 elsewhere.
    sampled_logps: [B, S] float32 nats: the same under the distribution that was drawn from, after
      top-k and top-p; it is the behaviour policy of importance weights.
    lengths: [B] int32, generated tokens per row, the end token included.
    ended: [B] bool, whether the end token was drawn.
    values: [B, S] float32: of each generated token, what a head says of the state that it was drawn
      from; None: there was no head.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  mask: jax.Array
  logps: jax.Array
  sampled_logps: jax.Array
  lengths: jax.Array
  ended: jax.Array
  values: jax.Array | None = None


def sample(
  model: LanguageModel,
  params: Params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  *,
  max_new: int,
  samples: int = 1,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  end_id: int,
  pad_id: int = 0,
  chunk: int = 0,
  rows: int = 0,
  value: Params | None = None,
) -> Rollout:
  """Draws `samples` answers to each prompt, side by side: B = C * samples rows from C prompts.

  A prompt is read once. Row b's token n is drawn with `fold_in(keys[b], n)`, so a row's answer
  depends neither on its batch mates nor on its padding. Compiles once per model, shapes, `max_new`,
  `samples`, `top_k`, and for whether `temperature` is 0 and `top_p` is 1.

  Args:
    model: a decoder, which goes on after its prompts; or an encoder-decoder, which reads them and
      answers from `pad_id` on, as T5 does. The rows of its Rollout are no LM batch.
    params: its parameters.
    prompts: [C, P] int32, padded on the left.
    prompt_mask: [C, P], 1 on real tokens.
    keys: [B] PRNG keys (typed, or raw [B, 2] uint32).
    max_new: N, the most tokens that an answer has.
    samples: answers per prompt; those of prompt c are rows c * samples and after.
    temperature: divides the logits; 0 takes the most likely token, and then `logps` are those of
      temperature 1 and `sampled_logps` are 0.
    top_k: draw from the k most likely tokens; 0: from all.
    top_p: draw from the smallest set of this probability; 1: from all.
    end_id: the token that ends an answer.
    pad_id: the token that fills the rest.
    chunk: slots of a prompt read at a time, so that memory is linear in P; 0: some 2,000 tokens.
    rows: answers of a decoder that are drawn at a time: where one ends the next begins, so that
      memory does not grow with B, and the Rollout is of numpy arrays. 0: all at once.
    value: {"kernel": [D], "bias": []}, a head on the states, such as a critic's; with rows=0 only.

  Raises:
    ValueError: if shapes do not match, a setting is out of range, a prompt is not padded on the
      left, or P + N exceeds a table of learned positions.
  """
  _check(prompts, prompt_mask, keys, max_new, samples, temperature, top_k, top_p, chunk, rows)
  setting = _Setting(
    temperature=jnp.float32(temperature if temperature > 0 else 1.0),
    top_p=jnp.float32(top_p), end_id=jnp.int32(end_id), pad_id=jnp.int32(pad_id),
    cap=model.cfg.logit_cap, tied=model.cfg.tied, chunk=chunk,
    max_new=max_new, samples=samples, top_k=top_k,
    greedy=temperature == 0, nucleus=top_p < 1, value=value,
  )  # fmt: skip
  if 0 < rows < len(keys):
    return _refilled(model, params, prompts, prompt_mask, keys, setting, rows)
  prompts, prompt_mask = jnp.asarray(prompts, jnp.int32), jnp.asarray(prompt_mask)
  return _sample(model, params, prompts, prompt_mask, keys, setting)


def rollout_to_batch(rollout: Rollout) -> Batch:
  """The LM batch of a rollout, [B, P + N - 1]: each token with the next one as its target.

  `mask` is 1 where the target was generated; `sampler_logps` are `rollout.logps` of the targets,
  `sampler_values` the `rollout.values` if there are any.
  """
  values = {} if rollout.values is None else {"sampler_values": rollout.values[:, 1:]}
  return values | {
    "tokens": rollout.tokens[:, :-1],
    "targets": rollout.tokens[:, 1:],
    "mask": rollout.mask[:, 1:],
    "positions": rollout.positions[:, :-1],
    "segments": rollout.segments[:, :-1],
    "sampler_logps": rollout.logps[:, 1:],
  }


class _State(NamedTuple):
  step: jax.Array  # [] int32, tokens drawn so far.
  uniform: jax.Array | None  # [B, N] float32, what tokens are drawn with; None: greedily.
  first: jax.Array  # [B] int32, the position of the first new token.
  hidden: jax.Array  # [B, D], the state that predicts the next token.
  ended: jax.Array  # [B] bool.
  tokens: jax.Array  # [B, N] int32.
  mask: jax.Array  # [B, N] float32.
  logps: jax.Array  # [B, N] float32.
  sampled_logps: jax.Array  # [B, N] float32.
  values: jax.Array | None  # [B, N] float32.
  cache: Any  # A Cache, or a Memory.


@flax.struct.dataclass
class _Setting:
  temperature: jax.Array
  top_p: jax.Array
  end_id: jax.Array
  pad_id: jax.Array
  value: Params | None
  cap: float = flax.struct.field(pytree_node=False)
  tied: bool = flax.struct.field(pytree_node=False)
  chunk: int = flax.struct.field(pytree_node=False)
  max_new: int = flax.struct.field(pytree_node=False)
  samples: int = flax.struct.field(pytree_node=False)
  top_k: int = flax.struct.field(pytree_node=False)
  greedy: bool = flax.struct.field(pytree_node=False)
  nucleus: bool = flax.struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnums=0)
def _sample(model, params, prompts, prompt_mask, keys, setting) -> Rollout:
  model, params = decoding_model(model, params)
  chunk = setting.chunk if setting.chunk else _chunk(len(prompts))
  head_DV = model.for_head(model.head(params).astype(jnp.dtype(model.cfg.dtype)))
  rooms = _rooms(prompts.shape[1], setting.max_new)
  angles = model.angles(prompts.shape[1] + setting.max_new)
  positions_CP, segments_CP = prompt_places(prompt_mask)
  prefilled = prefill(
    model, params, prompts, positions_CP, segments_CP, rooms[0], setting.pad_id, chunk
  )
  prompts, positions_BP, segments_BP, hidden_BD, first_B, cache = _repeat(
    (prompts, positions_CP, segments_CP, *prefilled), setting.samples
  )

  def advance(state: _State) -> _State:
    """Reads the newest token of every row, then draws the next."""
    at = state.step - 1
    token_B1 = jax.lax.dynamic_slice_in_dim(state.tokens, at, 1, axis=1)
    segment_B1 = jax.lax.dynamic_slice_in_dim(state.mask, at, 1, axis=1).astype(jnp.int32)
    position_B1 = (state.first + at)[:, None]
    hidden_B1D, cache = read(model, params, token_B1, position_B1, segment_B1, state.cache, angles)
    return _pick(setting, head_DV, state._replace(hidden=hidden_B1D[:, 0], cache=cache))

  uniform_BN = None if setting.greedy else uniforms(keys, setting.max_new)
  state = _pick(setting, head_DV, _start(uniform_BN, first_B, hidden_BD, cache, setting))
  state = _decode(advance, state, rooms)
  return _rollout(state, prompts, positions_BP, segments_BP)


def _chunk(rows: int) -> int:
  """Slots of each of these prompts to read at a time."""
  return min(max(_CHUNK * sharding.ways("batch") // rows, _LEAST), _MOST)


def _rooms(slots: int, max_new: int) -> list[int]:
  """New tokens that the cache has room for, stage after stage.

  Attention reads every slot, empty or not, so a cache that grows saves up to half of it. Where the
  prompts are longer than the answers it is not worth a program for each size.
  """
  stages = max(1, min(_STAGES, max_new // _STAGE)) if max_new >= slots else 1
  return [-(-max_new * (i + 1) // stages) for i in range(stages)]


def _repeat(tree, samples: int):
  """Every row of every array `samples` times, side by side; scalars stay."""
  return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0) if x.ndim else x, tree)


def _start(uniform_BN, first_B, hidden_BD: jax.Array, cache: Any, setting: _Setting) -> _State:
  rows = hidden_BD.shape[0]
  zeros_BN = jnp.zeros((rows, setting.max_new), jnp.float32)
  return _State(
    step=jnp.int32(0),
    uniform=uniform_BN,
    first=first_B,
    hidden=hidden_BD,
    ended=jnp.zeros(rows, bool),
    tokens=jnp.full(zeros_BN.shape, setting.pad_id, jnp.int32),
    mask=zeros_BN,
    logps=zeros_BN,
    sampled_logps=zeros_BN,
    values=None if setting.value is None else zeros_BN,
    cache=cache,
  )


def _decode(advance: Callable[[_State], _State], state: _State, rooms: Sequence[int]) -> _State:
  """Advances until every row has ended or is full.

  Most answers are short and a few are long: once a quarter of the rows is left, these go on as a
  batch of their own; not where devices have rows of their own, for most of them might have none.
  """
  rows = len(state.ended)
  few = rows // 4 if rows >= _SPLIT and sharding.ways("batch") == 1 else 0
  for last, room in zip((rooms[0], *rooms), rooms, strict=False):

    def unfinished(state: _State, room: int = room) -> jax.Array:
      return (state.step < room) & (jnp.sum(~state.ended) > few)

    state = state._replace(cache=grow(state.cache, room - last))
    state = jax.lax.while_loop(unfinished, advance, state)
  if not few:
    return state
  alive = jnp.argsort(state.ended, stable=True)[:few]
  rest = _decode(advance, jax.tree.map(lambda x: x[alive] if x.ndim else x, state), rooms[-1:])
  written = ("tokens", "mask", "logps", "sampled_logps", "ended")
  written += () if state.values is None else ("values",)
  return state._replace(
    **{name: getattr(state, name).at[alive].set(getattr(rest, name)) for name in written}
  )


def _pick(setting: _Setting, head_DV, state: _State) -> _State:
  """Draws token number `state.step` of every row from its hidden state, and writes it down."""
  logits_BV = next_logits(state.hidden, head_DV, tied=setting.tied, cap=setting.cap)
  logits_BV = logits_BV / setting.temperature
  if setting.greedy:
    token_B = likeliest(logits_BV)
    logp_B = logp_of(logits_BV, token_B)
    sampled_B = jnp.zeros_like(logp_B)
  else:
    uniform_B = jax.lax.dynamic_index_in_dim(state.uniform, state.step, axis=1, keepdims=False)
    kept_BV = truncate(logits_BV, setting.top_k, setting.top_p if setting.nucleus else 1.0)
    token_B, sampled_B = draw(uniform_B, kept_BV)
    logp_B = sampled_B if kept_BV is logits_BV else logp_of(logits_BV, token_B)
  alive_B = ~state.ended

  def put(buffer_BN, value_B):
    value_B1 = value_B.astype(buffer_BN.dtype)[:, None]
    return jax.lax.dynamic_update_slice(buffer_BN, value_B1, (0, state.step))

  if setting.value is not None:
    value_B = state.hidden.astype(jnp.float32) @ setting.value["kernel"] + setting.value["bias"]
    state = state._replace(values=put(state.values, jnp.where(alive_B, value_B, 0)))
  return state._replace(
    step=state.step + 1,
    ended=state.ended | (token_B == setting.end_id),
    tokens=put(state.tokens, jnp.where(alive_B, token_B, setting.pad_id)),
    mask=put(state.mask, alive_B),
    logps=put(state.logps, jnp.where(alive_B, logp_B, 0)),
    sampled_logps=put(state.sampled_logps, jnp.where(alive_B, sampled_B, 0)),
  )


def _refilled(model, params, prompts, prompt_mask, keys, setting: _Setting, rows: int) -> Rollout:
  if setting.value is not None:
    raise ValueError("values are for answers that are drawn all at once: rows=0")
  asked = Asked(
    np.asarray(prompts, np.int32), np.asarray(prompt_mask), keys, setting.samples, setting.max_new,
    temperature=0.0 if setting.greedy else float(setting.temperature), top_k=setting.top_k,
    top_p=float(setting.top_p), end_id=int(setting.end_id), pad_id=int(setting.pad_id),
    chunk=setting.chunk if setting.chunk else _chunk(rows),
  )  # fmt: skip
  written = refilled(model, params, asked, rows)
  given = (asked.prompts, *prompt_places(asked.mask))
  return jax.device_get(_rollout(written, *_repeat(given, asked.samples)))


def _rollout(written: _State | Written, prompts, positions_BP, segments_BP) -> Rollout:
  zeros_BP = jnp.zeros(prompts.shape, jnp.float32)
  steps_N = jnp.arange(written.tokens.shape[1])

  def join(left, right):
    return jnp.concatenate([left, right], axis=1)

  return Rollout(
    tokens=join(prompts, written.tokens),
    positions=join(positions_BP, written.first[:, None] + steps_N[None, :]),
    segments=join(segments_BP, written.mask.astype(jnp.int32)),
    mask=join(zeros_BP, written.mask),
    logps=join(zeros_BP, written.logps),
    sampled_logps=join(zeros_BP, written.sampled_logps),
    lengths=written.mask.sum(axis=1).astype(jnp.int32),
    ended=written.ended,
    values=None if written.values is None else join(zeros_BP, written.values),
  )


def _check(
  prompts, prompt_mask, keys, max_new, samples, temperature, top_k, top_p, chunk, rows
) -> None:
  if np.ndim(prompts) != 2 or np.shape(prompt_mask) != np.shape(prompts):
    raise ValueError(
      f"prompts {np.shape(prompts)} and prompt_mask {np.shape(prompt_mask)} must both be [C, P]"
    )
  if min(max_new, samples) < 1 or min(chunk, rows) < 0:
    raise ValueError(
      "max_new and samples must be at least 1, chunk and rows not negative, got "
      f"{max_new}, {samples}, {chunk} and {rows}"
    )
  if keys.shape[0] != prompts.shape[0] * samples:
    raise ValueError(
      f"keys {keys.shape} must be one per answer: {samples} for each row of {prompts.shape}"
    )
  if temperature < 0:
    raise ValueError(f"temperature must be at least 0, got {temperature}")
  if top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(f"top_k must be at least 0 and top_p in (0, 1], got {top_k} and {top_p}")
  mask_CP = np.asarray(prompt_mask) > 0
  if not mask_CP[:, -1].all() or (np.diff(mask_CP.astype(int), axis=1) < 0).any():
    raise ValueError("prompts must be padded on the left: prompt_mask is 0...01...1 in each row")
