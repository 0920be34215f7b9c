"""Continuous batching: a thread decodes all answers of a model together, some tokens at a time.

A request takes a free row of the batch, and gives it back when its answer ends or its client goes.

Shape letters: T tokens, t those of one part, D model width, V vocabulary.
"""

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.generate.logits import logp_of, next_logits
from llm_jax.generate.slots import Arrivals, Slots, admit, empty, run, size_for
from llm_jax.models.transformer import Transformer
from llm_jax.types import Params

MAX_NEW = 256  # Tokens of an answer, unless it is said otherwise.

_PART = 4  # Prompts that are read at a time: one shape to compile for each width.
_LEAST_WIDTH = 32  # Slots of the shortest prompts,
_LEAST_ROOM = 128  # and of the shortest answers with theirs.
_PATIENCE = 2.0  # Seconds in which a request that has found an engine uses it.
_CHUNK = 256  # Slots of a prompt that are read at a time, and rows of logits of a score.


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


class Full(Exception):
  """Too many requests are waiting."""


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


class Engine:
  """One model at work.

  Attributes:
    rows: answers that are decoded together.
    prompt: the most tokens of a prompt.
    max_new: the most tokens of an answer.
  """

  def __init__(
    self,
    model: Transformer,
    params: Params,
    *,
    pad_id: int,
    rows: int = 32,
    prompt: int = 512,
    max_new: int = MAX_NEW,
    stride: int = 4,
    waiting: int = 256,
  ):
    """Starts the thread.

    Args:
      model: a decoder.
      params: its parameters.
      pad_id: a token that fills up.
      rows: as above.
      prompt: as above.
      max_new: as above.
      stride: tokens of each answer that are drawn before they are sent; twice as many where more
        than a quarter of the rows is taken.
      waiting: answers that may wait for a row.

    Raises:
      UserError: if the model has no positions for so many tokens.
    """
    check_positions(model.cfg, prompt, max_new)
    self.rows, self.prompt, self.max_new = rows, prompt, max_new
    self._model, self._pad, self._stride = model, pad_id, stride
    self._params = jax.device_put(params)
    self._most_waiting = waiting
    self._slots: Slots | None = None
    self._owner: list[Ticket | None] = [None] * rows
    self._waiting: collections.deque[Ticket] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
    self._thread.start()

  def submit(self, asks: Sequence[Ask], emit: Callable[[int, Piece], None]) -> list[Ticket]:
    """Queues the answers of a request, all or none of them.

    Args:
      asks: what is to be drawn.
      emit: called in the engine's thread with the number of an answer and its next piece.

    Raises:
      ValueError: if a prompt or an answer is too long.
      Full: if too many answers wait.
    """
    for ask in asks:
      self.check_prompt(ask.prompt)
      if not 0 < ask.max_new <= self.max_new:
        raise ValueError(f"an answer has 1 to {self.max_new} tokens here, not {ask.max_new}")
    tickets = [Ticket(ask, functools.partial(emit, i)) for i, ask in enumerate(asks)]
    with self._changed:
      if self._closed:
        raise Full("the server is closing")
      self._waiting = collections.deque(one for one in self._waiting if not one.cancelled)
      if len(self._waiting) + len(tickets) > self._most_waiting:
        raise Full(f"{len(self._waiting)} answers are waiting already")
      self._waiting += tickets
      self._changed.notify()
    return tickets

  def check_prompt(self, prompt: Sequence[int]) -> None:
    """Raises ValueError if a prompt is empty or too long."""
    if not 0 < len(prompt) <= self.prompt:
      raise ValueError(f"a prompt has 1 to {self.prompt} tokens here, not {len(prompt)}")

  def busy(self) -> tuple[int, int]:
    """Returns how many rows are taken, and how many answers wait."""
    with self._changed:
      waiting = sum(not one.cancelled for one in self._waiting)
      return sum(owner is not None for owner in self._owner), waiting

  def score(self, tokens: list[int], top: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of given tokens, and the likeliest ones in their places.

    Returns:
      [T - 1] nats of tokens[1:]; [T - 1, top] nats and [T - 1, top] ids of the likeliest.

    Raises:
      ValueError: if there are more tokens than prompt and answer together may have.
    """
    if not 0 < len(tokens) <= self.prompt + self.max_new:
      raise ValueError(
        f"1 to {self.prompt + self.max_new} tokens can be scored here, not {len(tokens)}"
      )
    width = size_for(len(tokens), self.prompt + self.max_new, _LEAST_WIDTH)
    padded = np.full((1, width), self._pad, np.int32)
    padded[0, : len(tokens)] = tokens
    found = jax.device_get(_score(self._model, self._params, padded, max(top, 1)))
    logps, values, ids = (x[: len(tokens) - 1] for x in found)
    return logps, values[:, :top], ids[:, :top]

  def drain(self) -> None:
    """Ends once all answers are done, and those who were about to ask have asked."""
    time.sleep(_PATIENCE)
    while any(self.busy()):
      time.sleep(0.1)
    self.close()

  def close(self) -> None:
    """Ends the thread; requests that are not done end with "error"."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join(timeout=60)

  def _work(self) -> None:
    while True:
      with self._changed:
        while not (self._waiting or any(self._owner) or self._closed):
          self._changed.wait()
        if self._closed:
          self._fail()
          return
      try:
        if self._slots is None:
          self._slots = empty(self._model, self.rows, self.prompt, self.max_new)
        self._round()
      except Exception:  # Whatever it was: nobody may wait for ever, and the next one may be fine.
        logging.exception("the engine failed, and goes on with the next request")
        self._slots = None  # What it held may be gone, and its memory is wanted.
        self._fail()

  def _round(self) -> None:
    """Frees rows whose clients left, lets others in, draws some tokens and sends them."""
    gone = [owner is not None and owner.cancelled for owner in self._owner]
    if any(gone):
      self._slots = _stop(self._slots, np.array(gone))
      self._owner = [None if left else one for one, left in zip(self._owner, gone, strict=True)]
    self._admit()
    asks = [owner.ask for owner in self._owner if owner]
    if not asks:
      return
    truncated = any(ask.top_k > 0 or ask.top_p < 1 for ask in asks)
    rows, room = self._at_work()
    # Many wait for each other anyway: they get more at a time.
    steps = self._stride if len(rows) < self.rows else 2 * self._stride
    self._slots = run(
      self._model, self._params, self._slots, steps, len(rows), truncated, self._pad, rows,
      room=room,
    )  # fmt: skip
    self._send()

  def _at_work(self) -> tuple[np.ndarray, int]:
    """The rows of answers, filled up with free ones to one of few numbers, and slots for them."""
    busy = [row for row, owner in enumerate(self._owner) if owner]
    free = [row for row, owner in enumerate(self._owner) if not owner]
    count = next(n for n in (1, self.rows // _PART, self.rows) if n >= len(busy))
    longest = max(owner.slots for owner in self._owner if owner) + 2 * self._stride
    rows = np.array((busy + free)[:count], np.int32)
    return rows, size_for(longest, self.prompt + self.max_new, _LEAST_ROOM)

  def _admit(self) -> None:
    while True:
      free = [i for i, owner in enumerate(self._owner) if owner is None][:_PART]
      new: list[Ticket] = []
      with self._changed:
        while self._waiting and len(new) < len(free):
          ticket = self._waiting.popleft()
          new += [] if ticket.cancelled else [ticket]
      if not new:
        return
      width = _prompt_width([ticket.ask for ticket in new], self.prompt)
      for row, ticket in zip(free, new, strict=False):
        self._owner[row], ticket.begun = ticket, width
      arrivals = self._arrivals(free[: len(new)], [ticket.ask for ticket in new])
      self._slots = admit(
        self._model, self._params, self._slots, arrivals, min(_CHUNK, self.prompt), self._pad
      )

  def _arrivals(self, rows: list[int], asks: list[Ask]) -> Arrivals:
    filled = asks + [asks[-1]] * (_PART - len(asks))
    width = _prompt_width(asks, self.prompt)
    prompts = np.full((_PART, width), self._pad, np.int32)
    mask = np.zeros((_PART, width), np.int32)
    for row, ask in enumerate(filled):
      prompts[row, width - len(ask.prompt) :] = ask.prompt
      mask[row, width - len(ask.prompt) :] = 1
    each = lambda name, dtype: np.array([getattr(ask, name) for ask in filled], dtype)  # noqa: E731
    whole = self._model.cfg.vocab_size
    return Arrivals(
      prompts=prompts, mask=mask, source=np.arange(_PART, dtype=np.int32),
      row=np.array(rows + [self.rows] * (_PART - len(rows)), np.int32),
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

  def _fail(self) -> None:
    with self._changed:
      left = [owner for owner in self._owner if owner] + list(self._waiting)
      self._owner = [None] * self.rows
      self._waiting.clear()
    for ticket in left:
      ticket.send(Piece([], [], "error"))


def check_positions(cfg: config.Model, prompt: int, max_new: int) -> None:
  """Raises UserError if a model has no positions for so many tokens."""
  if cfg.position == "learned" and prompt + max_new > cfg.max_length:
    raise UserError(
      f"--prompt={prompt} and --max_new={max_new} are more than the {cfg.max_length} positions "
      "that this model has learned: lower them"
    )


@jax.jit
def _keys(seeds: jax.Array, numbers: jax.Array) -> jax.Array:
  one = lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)  # noqa: E731
  return jax.vmap(one)(seeds, numbers)


@functools.partial(jax.jit, donate_argnums=0)
def _stop(slots: Slots, gone: jax.Array) -> Slots:
  return slots._replace(limit=jnp.where(gone, slots.drawn, slots.limit))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _score(model: Transformer, params: Params, tokens: jax.Array, top: int):
  """[T] log-probs of the tokens that follow, [T, top] of the likeliest, and their ids."""
  hidden_TD = model.apply(params, tokens)[0]
  head_DV = model.for_head(model.head(params).astype(jnp.dtype(model.cfg.dtype)))
  targets_T = jnp.concatenate([tokens[0, 1:], tokens[0, :1]])

  def part(given: tuple[jax.Array, jax.Array]):
    hidden_tD, targets_t = given
    logits_tV = next_logits(hidden_tD, head_DV, tied=model.cfg.tied, cap=model.cfg.logit_cap)
    values, ids = jax.lax.top_k(logits_tV, top)
    total_t1 = jax.nn.logsumexp(logits_tV, axis=-1, keepdims=True)
    return logp_of(logits_tV, targets_t), values - total_t1, ids

  # Some rows of logits at a time: [T, V] is never there.
  size = min(_CHUNK, len(targets_T))
  padded = -len(targets_T) % size

  def cut(x: jax.Array) -> jax.Array:
    widths = [(0, padded)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, widths).reshape(-1, size, *x.shape[1:])

  found = jax.lax.map(part, (cut(hidden_TD), cut(targets_T)))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(targets_T)], found)


def _prompt_width(asks: Sequence[Ask], most: int) -> int:
  """Slots for these prompts, read together."""
  return size_for(max(len(ask.prompt) for ask in asks), most, _LEAST_WIDTH)
