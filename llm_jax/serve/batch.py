"""Answers that are decoded together, some tokens at a time.

An answer takes a free row of the batch, and gives it back when it ends or its client goes.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.generate.slots import Arrivals, Slots, admit, empty, grow, run, size_for, take
from llm_jax.models.transformer import Transformer
from llm_jax.types import Params

_PART = 4  # Prompts that are read at a time: one shape to compile for each width.
LEAST_WIDTH = 16  # Slots of the shortest prompts,
_LEAST_ROOM = 128  # and of the shortest answers with theirs.
CHUNK = 256  # Slots of a prompt that are read at a time.
_MORE = 8  # Strides at a time of many answers,
_PIECE = 0.05  # within so many seconds.


class Ask(NamedTuple):
  """What is to be drawn.

  Attributes:
    prompt: token ids, one or more.
    max_new: the most tokens of the answer.
    temperature: 0: the likeliest tokens.
    top_k: 0: no limit.
    top_p: 1: no limit.
    seed: of the draws; of a float32 model the same one gives the same answer, whatever else is
      drawn beside it.
    number: of several answers with one seed.
    end_id: the token that ends the answer.
  """

  prompt: list[int]
  max_new: int
  temperature: float
  top_k: int
  top_p: float
  seed: int
  number: int
  end_id: int


class Piece(NamedTuple):
  """The next tokens of an answer.

  Attributes:
    tokens: ids, the end token not among them.
    logps: of each, nats, under the whole distribution at the temperature.
    reason: "" if more follows; "stop" | "length" | "error".
  """

  tokens: list[int]
  logps: list[float]
  reason: str


class Ticket:
  """A request on its way; `cancel` frees its row."""

  def __init__(self, ask: Ask, emit: Callable[[Piece], None]):
    self.ask, self._emit = ask, emit
    self.cancelled = False
    self.sent = 0
    self.begun = 0  # Slots of the prompt, once it is read.

  @property
  def slots(self) -> int:
    """Slots that are taken so far, the end token's too."""
    return self.begun + self.sent + 1

  def cancel(self) -> None:
    """Wants no more."""
    self.cancelled = True

  def send(self, piece: Piece) -> None:
    """Hands a piece on; who cannot take it any more is taken to have left."""
    if not self.cancelled:
      try:
        self._emit(piece)
      except RuntimeError:  # The event loop that listened is closed.
        self.cancelled = True


class Batch:
  """Rows, and whose answers they hold; it is as large as these need, and so is its cache.

  Args:
    model: a decoder.
    params: its parameters.
    pad_id: a token that fills up.
    rows: the most answers.
    prompt: the most tokens of a prompt.
    max_new: the most tokens of an answer.
    stride: as in `Engine`.
  """

  def __init__(
    self,
    model: Transformer,
    params: Params,
    pad_id: int,
    rows: int,
    prompt: int,
    max_new: int,
    stride: int,
  ):
    self.rows = rows
    self._model, self._params, self._pad = model, params, pad_id
    self._prompt, self._max_new, self._stride = prompt, max_new, stride
    self._slots: Slots | None = None
    self._owner: list[Ticket | None] = [None]
    self._new: list[Ticket] = []
    self._pace = _PIECE  # Seconds that a token took.

  @property
  def busy(self) -> int:
    """Rows that are taken, or will be."""
    return sum(one is not None and not one.cancelled for one in [*self._owner, *self._new])

  @property
  def idle(self) -> bool:
    """Whether there is nothing to do."""
    return not (self._new or any(self._owner))

  def add(self, new: Sequence[Ticket]) -> None:
    """Answers to begin next; no more of them than there are rows that are not taken."""
    self._new += new

  def clear(self) -> list[Ticket]:
    """Forgets all answers, which are returned, and what may be gone after a failure."""
    left = [owner for owner in self._owner if owner] + self._new
    self._slots, self._owner, self._new = None, [None], []
    return left

  def advance(self) -> None:
    """Frees rows whose clients left, lets others in, draws some tokens and sends them."""
    gone = [owner is not None and owner.cancelled for owner in self._owner]
    if any(gone):
      self._slots = _stop(self._slots, np.array(gone))
      self._owner = [None if left else one for one, left in zip(self._owner, gone, strict=True)]
    if self._slots is None or not any(self._owner):  # To grow takes fewer programs than to shrink.
      self._slots, self._owner = empty(self._model, 1, self._room(0), self._max_new), [None]
    begins = self._let_in()
    asks = [owner.ask for owner in self._owner if owner]
    if not asks:
      return
    truncated = any(ask.top_k > 0 or ask.top_p < 1 for ask in asks)
    steps, began = self._steps(begins), time.perf_counter()
    self._slots = run(
      self._model, self._params, self._slots, steps, len(self._owner), truncated, self._pad
    )
    self._send()
    self._pace = (time.perf_counter() - began) / steps

  def _steps(self, begins: bool) -> int:
    """How many tokens are drawn before they are sent.

    To send costs many answers more than to draw: they get more tokens at a time, if these do not
    take long, and if none of them waits for its first.
    """
    if begins or len(self._owner) < self.rows:
      return self._stride
    return max(self._stride, min(_MORE * self._stride, int(_PIECE / self._pace)))

  def _let_in(self) -> bool:
    """Gives new answers rows, and reads their prompts; returns whether there are any."""
    new = [ticket for ticket in self._new if not ticket.cancelled]
    busy = [row for row, owner in enumerate(self._owner) if owner]
    free = [row for row, owner in enumerate(self._owner) if not owner]
    count = next(n for n in (1, self.rows // _PART, self.rows) if n >= len(busy) + len(new))
    kept = (busy + free)[:count] if count < len(self._owner) else list(range(len(self._owner)))
    self._owner = [self._owner[row] for row in kept] + [None] * (count - len(kept))
    places = [row for row, owner in enumerate(self._owner) if not owner]
    parts = [
      dict(zip(places[i : i + _PART], new[i : i + _PART], strict=False))
      for i in range(0, len(new), _PART)
    ]
    for part in parts:
      width = _prompt_width([ticket.ask for ticket in part.values()], self._prompt)
      for row, ticket in part.items():
        self._owner[row], ticket.begun = ticket, width
    self._new = []
    self._fit(kept)
    for part in parts:
      arrivals = self._arrivals(list(part), [ticket.ask for ticket in part.values()])
      self._slots = admit(
        self._model, self._params, self._slots, arrivals, min(CHUNK, self._prompt), self._pad
      )
    return bool(new)

  def _room(self, longest: int, full: bool = False) -> int:
    """Slots of a cache for so many that are taken, and for what is drawn next.

    A `full` batch reads all of them at each token, so that a size in between is worth a program.
    """
    longest += _MORE * self._stride
    size = size_for(longest, self._prompt + self._max_new, _LEAST_ROOM)
    between = size * 3 // 4
    return between if full and max(longest, _LEAST_ROOM) <= between else size

  def _fit(self, kept: list[int]) -> None:
    """Moves the answers of these rows to a batch for all owners."""
    rows, slots = self._slots.cache.segments.shape
    longest = max((owner.slots for owner in self._owner if owner), default=0)
    room = self._room(longest, len(self._owner) == self.rows)
    if len(kept) < rows or room <= slots // 2:
      self._slots = take(self._slots, np.array(kept, np.int32), min(room, slots))
    if len(kept) < len(self._owner) or room > slots:
      self._slots = grow(self._slots, len(self._owner), room)

  def _arrivals(self, rows: list[int], asks: list[Ask]) -> Arrivals:
    filled = asks + [asks[-1]] * (_PART - len(asks))
    width = _prompt_width(asks, self._prompt)
    prompts = np.full((_PART, width), self._pad, np.int32)
    mask = np.zeros((_PART, width), np.int32)
    for row, ask in enumerate(filled):
      prompts[row, width - len(ask.prompt) :] = ask.prompt
      mask[row, width - len(ask.prompt) :] = 1
    each = lambda name, dtype: np.array([getattr(ask, name) for ask in filled], dtype)  # noqa: E731
    whole = self._model.cfg.vocab_size
    return Arrivals(
      prompts=prompts, mask=mask, source=np.arange(_PART, dtype=np.int32),
      row=np.array(rows + [len(self._owner)] * (_PART - len(rows)), np.int32),
      keys=_keys(each("seed", np.uint32), each("number", np.uint32)),
      limit=each("max_new", np.int32), end_id=each("end_id", np.int32),
      temperature=each("temperature", np.float32),
      top_k=np.array([min(ask.top_k or whole, whole) for ask in filled], np.int32),
      top_p=each("top_p", np.float32),
    )  # fmt: skip

  def _send(self) -> None:
    state = self._slots
    drawn, ended, tokens, logps = jax.device_get(
      (state.drawn, state.ended, state.tokens, state.logps)
    )
    for row, owner in enumerate(self._owner):
      if owner is None:
        continue
      count = int(drawn[row])
      full = count >= owner.ask.max_new
      reason = "stop" if ended[row] else "length" if full else ""
      new = slice(owner.sent, count - 1 if ended[row] else count)
      if new.stop > new.start or reason:
        owner.sent = count
        owner.send(Piece(tokens[row, new].tolist(), logps[row, new].tolist(), reason))
      if reason:
        self._owner[row] = None


@jax.jit
def _keys(seeds: jax.Array, numbers: jax.Array) -> jax.Array:
  one = lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)  # noqa: E731
  return jax.vmap(one)(seeds, numbers)


@functools.partial(jax.jit, donate_argnums=0)
def _stop(slots: Slots, gone: jax.Array) -> Slots:
  return slots._replace(limit=jnp.where(gone, slots.drawn, slots.limit))


def _prompt_width(asks: Sequence[Ask], most: int) -> int:
  """Slots for these prompts, read together."""
  return size_for(max(len(ask.prompt) for ask in asks), most, LEAST_WIDTH)
