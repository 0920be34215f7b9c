"""Lanes: chains of jobs at a time, one that fails, a signal that stops trainings in threads."""

import os
import signal
import threading
import time

import pytest

from llm_jax.errors import UserError
from llm_jax.stages import lanes
from llm_jax.train.signals import Signals


def training(started, ended):
  """A job like a training: it goes on until it is asked to stop, and then says so."""

  def job():
    with Signals() as signals:
      started.set()
      while not signals.received:
        time.sleep(0.01)
      ended.append(signals.received)
      raise SystemExit(128 + signals.received)

  return job


def test_jobs_of_a_lane_keep_their_order_and_lanes_run_at_a_time():
  meet, order = threading.Barrier(2, timeout=20), []

  def job(name):
    return lambda: (meet.wait(), order.append(name))  # Alone, it would wait for ever.

  lanes.run([[job("a"), job("b")], [job("c"), job("d")]])
  assert sorted(order) == ["a", "b", "c", "d"]
  assert order.index("a") < order.index("b") and order.index("c") < order.index("d")


@pytest.mark.parametrize("error", [UserError("no"), ValueError("a bug")])
def test_a_job_that_fails_stops_the_other_lane_and_is_what_is_raised(error):
  started, ended, later = threading.Event(), [], []

  def fails():
    started.wait(20)
    raise error

  with pytest.raises(type(error), match=str(error)):
    lanes.run([[training(started, ended), lambda: later.append(1)], [fails]])
  assert ended and not later


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_trainings_of_all_lanes_once(number):
  started, ended, later = [threading.Event(), threading.Event()], [], []
  handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

  def send():
    for event in started:
      event.wait(20)
    os.kill(os.getpid(), number)

  sender = threading.Thread(target=send)
  sender.start()
  with pytest.raises(SystemExit) as raised:
    lanes.run([[training(event, ended), lambda: later.append(1)] for event in started])
  sender.join()
  assert raised.value.code == 128 + number
  assert ended == [number, number] and not later
  assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_a_signal_between_trainings_keeps_the_next_one_from_starting():
  later = []

  def between():
    with Signals() as signals:  # Those of the main thread, whose handler comes when it may.
      os.kill(os.getpid(), signal.SIGTERM)
      while not signals.received:
        time.sleep(0.01)

  with pytest.raises(SystemExit):
    lanes.run([[between, lambda: later.append(1)]])
  assert not later
