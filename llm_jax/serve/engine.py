"""Continuous batching: threads decode all answers of a model, some tokens at a time.

Requests wait in one queue; what becomes of them is batch.py's.

Shape letters: T tokens, t those of one part, D model width, V vocabulary.
"""

import collections
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.generate.logits import logp_of, next_logits
from llm_jax.generate.slots import size_for
from llm_jax.models.transformer import Transformer, count_parameters
from llm_jax.serve.batch import CHUNK, LEAST_WIDTH, Ask, Batch, Piece, Ticket
from llm_jax.types import Params

__all__ = ["Ask", "Engine", "Full", "Piece", "Ticket", "check_positions"]

MAX_NEW = 256  # Tokens of an answer, unless it is said otherwise.

_PATIENCE = 2.0  # Seconds in which a request that has found an engine uses it.
_LANE = 8  # Rows that are worth a thread of their own,
_SMALL = 32_000_000  # of models with fewer parameters.


class Full(Exception):
  """Too many requests are waiting."""


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
    lanes: int = 0,
  ):
    """Starts the threads.

    Args:
      model: a decoder.
      params: its parameters.
      pad_id: a token that fills up.
      rows: as above.
      prompt: as above.
      max_new: as above.
      stride: tokens of each answer that are drawn before they are sent; up to eight times as many
        where more than a quarter of the rows is taken, as far as they take a twentieth of a second.
      waiting: answers that may wait for a row.
      lanes: batches that share the rows, each with a thread; 0: see `lanes_for`.

    Raises:
      UserError: if the model has no positions for so many tokens.
    """
    check_positions(model.cfg, prompt, max_new)
    self.rows, self.prompt, self.max_new = rows, prompt, max_new
    self._model, self._pad = model, pad_id
    self._params = jax.device_put(params)
    self._most_waiting = waiting
    self._waiting: collections.deque[Ticket] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    lanes = lanes if lanes else lanes_for(params, rows)
    self._batches = [
      Batch(model, self._params, pad_id, (rows + lanes - 1 - i) // lanes, prompt, max_new, stride)
      for i in range(lanes)
    ]
    self._threads = [
      threading.Thread(target=self._work, args=(batch,), name="engine", daemon=True)
      for batch in self._batches
    ]
    for thread in self._threads:
      thread.start()

  def submit(self, asks: Sequence[Ask], emit: Callable[[int, Piece], None]) -> list[Ticket]:
    """Queues the answers of a request, all or none of them.

    Args:
      asks: what is to be drawn.
      emit: called in a thread of the engine with the number of an answer and its next piece.

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
      self._changed.notify_all()
    return tickets

  def check_prompt(self, prompt: Sequence[int]) -> None:
    """Raises ValueError if a prompt is empty or too long."""
    if not 0 < len(prompt) <= self.prompt:
      raise ValueError(f"a prompt has 1 to {self.prompt} tokens here, not {len(prompt)}")

  def busy(self) -> tuple[int, int]:
    """Returns how many rows are taken, and how many answers wait."""
    with self._changed:
      waiting = sum(not one.cancelled for one in self._waiting)
      return sum(batch.busy for batch in self._batches), waiting

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
    width = size_for(len(tokens), self.prompt + self.max_new, LEAST_WIDTH)
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
    """Ends the threads; requests that are not done end with "error"."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    for thread in self._threads:
      thread.join(timeout=60)

  def _work(self, batch: Batch) -> None:
    while True:
      with self._changed:
        while batch.idle and not self._share(batch) and not self._closed:
          self._changed.wait()
        batch.add([self._waiting.popleft() for _ in range(self._share(batch))])
        closed = self._closed
      if closed:
        self._fail(batch)
        return
      try:
        batch.advance()
      except Exception:  # Whatever it was: nobody may wait for ever, and the next one may be fine.
        logging.exception("the engine failed, and goes on with the next request")
        self._fail(batch)

  def _share(self, batch: Batch) -> int:
    """How many of those that wait a batch may take: all get equally much to do, the first first."""
    waiting, count, place = len(self._waiting), len(self._batches), self._batches.index(batch)
    answers = sum(one.busy for one in self._batches) + waiting
    fair = (answers + count - 1 - place) // count
    return max(0, min(waiting, min(batch.rows, fair) - batch.busy))

  def _fail(self, batch: Batch) -> None:
    """Ends the answers of a batch, and all that wait."""
    with self._changed:
      left = [*batch.clear(), *self._waiting]
      self._waiting.clear()
    for ticket in left:
      ticket.send(Piece([], [], "error"))


def lanes_for(params: Params, rows: int) -> int:
  """How many batches so many rows are decoded in.

  On a CPU what a small model does for one batch is too little to be spread over cores. A larger
  one spends its time on reading weights, which each batch would have to do by itself.
  """
  if jax.default_backend() != "cpu" or count_parameters(params) > _SMALL:
    return 1
  return max(1, min(os.cpu_count() or 1, rows // _LANE))


def check_positions(cfg: config.Model, prompt: int, max_new: int) -> None:
  """Raises UserError if a model has no positions for so many tokens."""
  if cfg.position == "learned" and prompt + max_new > cfg.max_length:
    raise UserError(
      f"--prompt={prompt} and --max_new={max_new} are more than the {cfg.max_length} positions "
      "that this model has learned: lower them"
    )


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
  size = min(CHUNK, len(targets_T))
  padded = -len(targets_T) % size

  def cut(x: jax.Array) -> jax.Array:
    widths = [(0, padded)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, widths).reshape(-1, size, *x.shape[1:])

  found = jax.lax.map(part, (cut(hidden_TD), cut(targets_T)))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(targets_T)], found)
