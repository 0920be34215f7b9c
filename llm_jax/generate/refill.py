"""Many answers with few rows: where one ends, the next prompt moves in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.errors import UserError
from llm_jax.generate.slots import Arrivals, Slots, admit, empty, run, size_for, take
from llm_jax.models.transformer import Transformer
from llm_jax.types import Params

_PART = 4  # Rows are filled a quarter at a time: few sizes compile, and prompts are read together.
_LEAST_ROWS = 32  # From which on a batch hands its last quarter over to a smaller one.
_LEAST_WIDTH = 32  # Slots of the shortest prompts.


class Written(NamedTuple):
  """Answers in the order of their prompts; numpy.

  Attributes:
    first: [B] int32, the position of the first new token.
    tokens: [B, N] int32.
    mask: [B, N] float32.
    logps: [B, N] float32.
    sampled_logps: [B, N] float32.
    ended: [B] bool.
  """

  first: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray
  logps: np.ndarray
  sampled_logps: np.ndarray
  ended: np.ndarray
  values: None = None  # Rows that are refilled have none.


class Asked(NamedTuple):
  """What is drawn: the arguments of `sample`, checked."""

  prompts: np.ndarray
  mask: np.ndarray
  keys: jax.Array
  samples: int
  max_new: int
  temperature: float
  top_k: int
  top_p: float
  end_id: int
  pad_id: int
  chunk: int


def refilled(model: Transformer, params: Params, asked: Asked, rows: int) -> Written:
  """Draws all answers, `rows` of them at a time.

  A quarter of the rows at a time takes new prompts. When none are left and a quarter of the rows is
  still at work, these go on as a batch of their own.

  Raises:
    UserError: if the model is no decoder, or there are several processes.
  """
  if not isinstance(model, Transformer) or jax.process_count() > 1:
    raise UserError(
      "config.sampling.rows is for decoders and one process; set it to 0, all answers at once"
    )
  return _Refill(model, params, asked, rows).drawn()


class _Refill:
  """The rows, whose answer each of them holds, and what is written of all."""

  def __init__(self, model: Transformer, params: Params, asked: Asked, rows: int):
    total, most = len(asked.prompts) * asked.samples, asked.max_new
    self.model, self.params, self.asked = model, params, asked
    self.slots: Slots = empty(model, rows, asked.prompts.shape[1] + most, most)
    self.owner = np.full(rows, -1)  # The answer in each row; -1: none.
    self.part = max(1, rows // _PART)
    self.next, self.total = 0, total
    real, whole = (
      np.zeros((total, most), np.float32),
      np.full((total, most), asked.pad_id, np.int32),
    )
    first = np.repeat((asked.mask > 0).sum(1).astype(np.int32), asked.samples)
    self.written = Written(first, whole, real, real.copy(), real.copy(), np.zeros(total, bool))

  def drawn(self) -> Written:
    asked = self.asked
    truncated = asked.top_k > 0 or asked.top_p < 1
    while True:
      self._admit()
      if (self.owner < 0).all():
        return self.written
      self.slots = run(
        self.model, self.params, self.slots, asked.max_new, self._enough(), truncated,
        asked.pad_id,
      )  # fmt: skip
      self._collect()

  def _enough(self) -> int:
    """Free rows at which something else is to be done."""
    rows, waiting = len(self.owner), self.total - self.next
    if waiting:
      return min(self.part, waiting)
    return rows - rows // _PART if rows >= _LEAST_ROWS else rows

  def _admit(self) -> None:
    while self.next < self.total:
      count = min(self.part, self.total - self.next)
      free = np.flatnonzero(self.owner < 0)[:count]
      if len(free) < count:
        return
      self.slots = admit(
        self.model, self.params, self.slots, self._arrivals(free), self.asked.chunk,
        self.asked.pad_id,
      )  # fmt: skip
      self.owner[free] = np.arange(self.next, self.next + count)
      self.next += count

  def _arrivals(self, free: np.ndarray) -> Arrivals:
    """The next answers, filled up to a size that is always the same."""
    asked, part = self.asked, self.part
    # Those that fill up are the last one again, and take no row.
    answer_R = np.minimum(np.arange(self.next, self.next + part), self.next + len(free) - 1)
    row_R = np.full(part, len(self.owner), np.int32)
    row_R[: len(free)] = free
    first = answer_R[0] // asked.samples
    count = part if asked.samples == 1 else min(part, (part - 1) // asked.samples + 2)
    prompt_C = np.minimum(np.arange(first, first + count), answer_R[-1] // asked.samples)
    mask = asked.mask[prompt_C]
    width = size_for(int((mask > 0).sum(1).max()), mask.shape[1], _LEAST_WIDTH)
    each = lambda value, dtype: np.full(part, value, dtype)  # noqa: E731
    return Arrivals(
      prompts=asked.prompts[prompt_C, -width:], mask=mask[:, -width:],
      source=(answer_R // asked.samples - first).astype(np.int32), row=row_R,
      keys=asked.keys[jnp.asarray(answer_R)], limit=each(asked.max_new, np.int32),
      end_id=each(asked.end_id, np.int32),
      temperature=each(asked.temperature, np.float32),
      top_k=each(asked.top_k or self.model.cfg.vocab_size, np.int32),
      top_p=each(asked.top_p, np.float32),
    )  # fmt: skip

  def _collect(self) -> None:
    """Writes down what is done, frees its rows, and leaves rows that are needed no more."""
    state = self.slots
    busy_B, drawn_B, *values = jax.device_get(
      (state.busy(), state.drawn, state.tokens, state.logps, state.sampled_logps, state.ended)
    )
    done = np.flatnonzero((self.owner >= 0) & ~busy_B)
    answers, (tokens, logps, sampled, ended) = self.owner[done], (x[done] for x in values)
    real = np.arange(tokens.shape[1]) < drawn_B[done, None]
    written = self.written
    written.tokens[answers] = np.where(real, tokens, self.asked.pad_id)
    written.mask[answers] = real
    written.logps[answers] = np.where(real, logps, 0)
    written.sampled_logps[answers] = np.where(real, sampled, 0)
    written.ended[answers] = ended
    self.owner[done] = -1
    rows, few = len(self.owner), len(self.owner) // _PART
    if self.next == self.total and rows >= _LEAST_ROWS and (self.owner >= 0).sum() <= few:
      kept = np.argsort(self.owner < 0, kind="stable")[:few]
      room = state.cache.segments.shape[1]
      self.slots, self.owner = take(state, kept, room), self.owner[kept]
