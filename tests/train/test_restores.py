"""A run that stops on one placement goes on, on any other: same state, same data, same losses."""

import functools
import shutil

import jax
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.train import feeds, loop, metrics, parallel
from llm_jax.train.step import make_train_step, state_maker
from tests.train import toy_run, toys
from tests.train.test_checkpoint import assert_equal

PLACES = {
  "data": config.Mesh(data=8),
  "fsdp and tensor": config.Mesh(data=1, fsdp=4, tensor=2),
  "zero": config.Mesh(data=4, fsdp=2, zero=True),
  "pmap": config.Mesh(kind="pmap"),
  "one device": config.Mesh(data=1),
}
STOP, END = 3, 7
pytestmark = pytest.mark.long


@functools.cache
def build(name):
  """Returns (place, a new state that is not to be used up, compiled step)."""
  place, tx = parallel.make(PLACES[name]), optax.adam(1e-2)
  state = place.init(state_maker(toys.make_params(toys.Toy()), tx), jax.random.key(0))
  step = make_train_step(toys.loss_of(toys.Toy()), tx, accum=2, axis_name=place.axis_name)
  return place, state, place.compile(step)


class Noting(feeds.IteratorFeed):
  """Notes the tokens that it gives."""

  def __init__(self):
    super().__init__(toy_run.batches())
    self.given = []

  def next(self, state):
    batch = super().next(state)
    self.given.append(batch["tokens"])
    return batch


class Forgetful(Noting):
  """Begins anew."""

  def set_state(self, state):
    pass


def run(name, workdir, steps, feed):
  """Trains up to `steps`; returns the final state as numpy."""
  place, state, step = build(name)
  state = jax.tree.map(jax.numpy.copy, state)
  options = {"log_every": 1, "checkpoint_every": 100, "name": "toy"}
  state = loop.fit(step, state, feed, place=place, workdir=workdir, steps=steps, **options)
  return place.fetch(state)


def losses(workdir):
  found = metrics.read(workdir)
  assert [row["step"] for row in found] == list(range(1, END + 1))
  return [row["loss"] for row in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp("whole")
  run("one device", path, END, Noting())
  return losses(path)


@pytest.mark.parametrize("before", PLACES)
def test_it_goes_on_anywhere(before, whole, tmp_path):
  saved = run(before, tmp_path / "stopped", STOP, Noting())
  for after in PLACES:
    workdir = tmp_path / after
    shutil.copytree(tmp_path / "stopped", workdir)
    idle = Noting()
    assert_equal(run(after, workdir, STOP, idle), saved)  # Nothing is left to do.
    assert not idle.given
    feed = Noting()
    run(after, workdir, END, feed)
    for number, tokens in zip(range(STOP + 1, END + 1), feed.given, strict=True):
      np.testing.assert_array_equal(tokens, toys.make_batch(number)["tokens"])
    np.testing.assert_allclose(losses(workdir), whole, rtol=1e-5)


def test_there_and_back(whole, tmp_path):
  for steps, name in enumerate(("data", "pmap", "fsdp and tensor", "pmap", "zero", "data"), 2):
    run(name, tmp_path, steps, Noting())
  np.testing.assert_allclose(losses(tmp_path), whole, rtol=1e-5)


def test_data_that_begins_anew_gives_other_losses(whole, tmp_path):
  """The control: losses tell one batch from another."""
  run("data", tmp_path, STOP, Noting())
  run("pmap", tmp_path, END, Forgetful())
  found = losses(tmp_path)
  np.testing.assert_allclose(found[:STOP], whole[:STOP], rtol=1e-5)
  assert np.abs(np.array(found[STOP:]) / whole[STOP:] - 1).min() > 1e-3
