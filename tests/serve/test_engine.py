"""The engine: answers are those of the sampler, whoever else is asking, and rows come back."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm_jax.errors import UserError
from llm_jax.generate import sample
from llm_jax.serve import batch, engine
from tests.generate import test_sampler as small

ROWS, PROMPT, NEW = 3, 12, 20


@pytest.fixture(scope="module")
def served():
  made = engine.Engine(
    small.MODEL, small.PARAMS, pad_id=small.PAD, rows=ROWS, prompt=PROMPT, max_new=NEW
  )
  yield made
  made.close()


class Heard:
  """Collects the pieces of one answer."""

  def __init__(self):
    self.tokens, self.logps, self.reason, self.pieces = [], [], "", 0
    self.done, self.begun = threading.Event(), threading.Event()

  def __call__(self, number, piece):
    self.pieces += 1
    self.tokens += piece.tokens
    self.logps += piece.logps
    self.begun.set()
    if piece.reason:
      self.reason = piece.reason
      self.done.set()


def ask(prompt=(7, 8, 9), **fields):
  given = {"max_new": NEW, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, "number": 0}
  return engine.Ask(**(given | {"prompt": list(prompt), "end_id": small.END} | fields))


def expected(asked):
  """The sampler's answer with the same keys: tokens without the end, and their log-probs."""
  ids = np.array([asked.prompt], np.int32)
  key = jax.random.fold_in(jax.random.key(asked.seed), asked.number)
  rollout = sample(
    small.MODEL, small.PARAMS, ids, np.ones_like(ids), key[None], max_new=asked.max_new,
    temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, end_id=asked.end_id,
  )  # fmt: skip
  count = int(rollout.lengths[0]) - int(rollout.ended[0])
  own = slice(ids.shape[1], ids.shape[1] + count)
  reason = "stop" if rollout.ended[0] else "length"
  return np.asarray(rollout.tokens)[0, own], np.asarray(rollout.logps)[0, own], reason


def heard(served, *asks):
  listeners = [Heard() for _ in asks]
  for one, listener in zip(asks, listeners, strict=True):
    served.submit([one], listener)
  assert all(listener.done.wait(120) for listener in listeners)
  return listeners


SETTINGS = [
  {}, {"seed": 3}, {"seed": 3, "number": 1}, {"temperature": 0.0}, {"top_k": 3, "seed": 5},
  {"top_p": 0.6, "temperature": 0.7, "seed": 2}, {"max_new": 1}, {"end_id": small.NEVER, "seed": 9},
  {"prompt": (6,)}, {"top_k": 2**40}, {"prompt": (10, 11, 12, 13, 6, 7, 8, 9, 10, 11)},
]  # fmt: skip


@pytest.mark.parametrize("count", [4, pytest.param(len(SETTINGS), marks=pytest.mark.long)])
def test_many_at_once_in_few_rows_get_what_each_would_get_alone(served, count):
  asks = [ask(**fields) for fields in SETTINGS[:count]]
  for one, found in zip(asks, heard(served, *asks), strict=True):
    tokens, logps, reason = expected(one)
    assert found.tokens == tokens.tolist() and found.reason == reason
    np.testing.assert_allclose(found.logps, logps, atol=1e-4)
  assert served.busy() == (0, 0)


@pytest.mark.long
def test_a_batch_is_as_large_as_its_answers_need(monkeypatch):
  monkeypatch.setattr(batch, "_LEAST_ROOM", 16)
  monkeypatch.setattr(batch, "LEAST_WIDTH", 4)
  monkeypatch.setattr(batch, "_MORE", 1)
  run, sizes = batch.run, []
  monkeypatch.setattr(batch, "run", lambda *a: sizes.append(a[2].cache.segments.shape) or run(*a))
  own = engine.Engine(
    small.MODEL, small.PARAMS, pad_id=small.PAD, rows=8, prompt=PROMPT, max_new=NEW, stride=1
  )
  (found,) = heard(own, ask(end_id=small.NEVER))
  assert found.tokens == expected(ask(end_id=small.NEVER))[0].tolist()
  assert set(sizes) == {(1, 16), (1, 32)}
  sizes.clear()
  # They end one by one: what is left of them moves to a smaller batch.
  asks = [ask(seed=seed, end_id=small.NEVER, max_new=NEW - 2 * seed) for seed in range(8)]
  for one, many in zip(asks, heard(own, *asks), strict=True):
    assert many.tokens == expected(one)[0].tolist()
  assert {rows for rows, _ in sizes} >= {2, 8} and (8, 24) in sizes and sizes[-1][0] < 8
  own.close()


def test_batches_share_what_waits_and_answers_are_the_same():
  own = engine.Engine(
    small.MODEL, small.PARAMS, pad_id=small.PAD, rows=5, prompt=PROMPT, max_new=NEW, lanes=2
  )
  asks = [ask(seed=seed) for seed in range(12)]
  for one, many in zip(asks, heard(own, *asks), strict=True):
    tokens, _, reason = expected(one)
    assert many.tokens == tokens.tolist() and many.reason == reason
  assert own.busy() == (0, 0)
  own.close()


@pytest.mark.parametrize(
  ("busy", "waiting", "shares"),
  [
    ((0, 0), 1, (1, 0)), ((1, 0), 1, (0, 1)), ((0, 1), 1, (1, 0)), ((0, 0), 3, (2, 1)),
    ((3, 0), 1, (0, 1)), ((3, 0), 9, (0, 2)), ((0, 2), 3, (3, 0)), ((3, 2), 9, (0, 0)),
  ],
)  # fmt: skip
def test_who_has_less_to_do_takes_more(served, monkeypatch, busy, waiting, shares):
  batches = [SimpleNamespace(rows=3 - i, busy=count) for i, count in enumerate(busy)]
  monkeypatch.setattr(served, "_batches", batches)
  monkeypatch.setattr(served, "_waiting", [None] * waiting)
  assert tuple(served._share(one) for one in batches) == shares


def test_small_models_are_decoded_in_a_batch_for_each_core(monkeypatch):
  monkeypatch.setattr(engine.os, "cpu_count", lambda: 3)
  assert [engine.lanes_for(small.PARAMS, rows) for rows in (1, 15, 16, 24, 99)] == [1, 1, 2, 3, 3]
  monkeypatch.setattr(engine, "_SMALL", 10)
  assert engine.lanes_for(small.PARAMS, 99) == 1


def test_many_get_more_at_a_time_if_it_does_not_take_long():
  own = batch.Batch(small.MODEL, small.PARAMS, small.PAD, 4, PROMPT, NEW, 4)
  assert own._steps(False) == 4  # One row of four is at work.
  own._owner = [None] * 4
  for pace, steps in ((1e-4, 32), (0.005, 10), (1.0, 4)):
    own._pace = pace
    assert own._steps(False) == steps and own._steps(True) == 4


def test_an_answer_comes_in_pieces(served):
  (found,) = heard(served, ask(end_id=small.NEVER))
  assert found.pieces >= NEW / 4 and len(found.tokens) == NEW


def test_who_leaves_gives_the_row_back(served):
  """More than there are rows leave: were rows kept, the last one would wait for ever."""
  for seed in range(2 * ROWS):
    listener = Heard()
    (ticket,) = served.submit([ask(end_id=small.NEVER, seed=seed)], listener)
    listener.begun.wait(60)
    ticket.cancel()
  gone = Heard()
  served.submit([ask()], gone)[0].cancel()
  (found,) = heard(served, ask())
  assert found.reason
  assert not gone.pieces
  for _ in range(100):
    if served.busy() == (0, 0):
      break
    threading.Event().wait(0.1)
  assert served.busy() == (0, 0)


def test_scores_are_those_of_the_whole_distribution(served):
  tokens = [7, 8, 9, 10, 6, 5, 11]
  logps, values, ids = served.score(tokens, top=4)
  logits = small.MODEL.apply(small.PARAMS, np.array([tokens]), method="logits")[0]
  every = np.asarray(jax.nn.log_softmax(logits, axis=-1))[:-1]
  np.testing.assert_allclose(logps, every[np.arange(6), tokens[1:]], atol=1e-5)
  np.testing.assert_allclose(values, -np.sort(-every, axis=1)[:, :4], atol=1e-5)
  np.testing.assert_allclose(np.take_along_axis(every, ids, 1), values, atol=1e-5)
  assert served.score([7])[0].shape == (0,)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"prompt": ()}, "1 to 12 tokens"),
    ({"prompt": (6,) * 13}, "1 to 12 tokens"),
    ({"max_new": 0}, "1 to 20 tokens"),
    ({"max_new": 21}, "1 to 20 tokens"),
  ],
)
def test_what_is_too_long_is_refused(served, fields, message):
  with pytest.raises(ValueError, match=message):
    served.submit([ask(), ask(**fields)], print)


def test_too_many_that_wait_are_refused_and_closing_ends_all():
  own = engine.Engine(
    small.MODEL, small.PARAMS, pad_id=small.PAD, rows=1, prompt=PROMPT, max_new=NEW, waiting=2
  )
  stuck, release = threading.Event(), threading.Event()

  def block(number, piece):
    stuck.set()
    release.wait(60)

  own.submit([ask(end_id=small.NEVER)], block)
  assert stuck.wait(120)
  waiting = [Heard(), Heard()]
  for listener in waiting:
    own.submit([ask()], listener)
  with pytest.raises(engine.Full, match="2 answers are waiting"):
    own.submit([ask()], print)
  left = own.submit([], print)
  assert left == []
  # Who has left does not count, and a request is taken whole or not at all.
  own._waiting[0].cancel()
  with pytest.raises(engine.Full, match="1 answers are waiting"):
    own.submit([ask(), ask()], print)
  more = Heard()
  own.submit([ask()], more)
  assert own.busy() == (1, 2)
  release.set()
  own.close()
  assert more.done.is_set() and waiting[1].done.is_set() and not waiting[0].pieces
  with pytest.raises(engine.Full, match="closing"):
    own.submit([ask()], print)


def test_a_listener_that_fails_is_taken_to_have_left(served):
  def closed(number, piece):
    raise RuntimeError("Event loop is closed")

  served.submit([ask(end_id=small.NEVER)], closed)
  (found,) = heard(served, ask())
  assert found.tokens == expected(ask())[0].tolist()


def test_positions_that_were_not_learned_are_refused():
  model, params = small.make(position="learned")
  with pytest.raises(UserError, match="32 positions that this model has learned"):
    engine.Engine(model, params, pad_id=small.PAD, rows=2, prompt=20, max_new=13)


def test_a_failure_ends_the_answers_and_not_the_engine(monkeypatch):
  own = engine.Engine(
    small.MODEL, small.PARAMS, pad_id=small.PAD, rows=2, prompt=PROMPT, max_new=NEW
  )
  run = batch.run

  def broken(*args, **how):
    monkeypatch.setattr(batch, "run", run)
    raise RuntimeError("no")

  def none(*args):
    monkeypatch.setattr(batch, "empty", empty)
    raise RuntimeError("no memory")

  empty = batch.empty
  monkeypatch.setattr(batch, "run", broken)
  (first,) = heard(own, ask())
  assert first.reason == "error"
  monkeypatch.setattr(batch, "empty", none)  # What it needs to go on fails, too.
  (first,) = heard(own, ask())
  assert first.reason == "error"
  (second,) = heard(own, ask())
  assert second.tokens == expected(ask())[0].tolist()
  own.close()
