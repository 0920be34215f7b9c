"""A toy training run: the tests of the loop call it, and kill it when it runs as a program."""

import functools
import itertools
import pathlib
import sys
import time

import jax
import optax

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.train import feeds, loop, parallel
from llm_jax.train.step import make_train_step, state_maker
from tests.train import toys

MODEL = toys.Toy(dropout=0.1)


@functools.cache
def build(kind="mesh"):
  """Returns (place, make a new state, compiled step)."""
  place = parallel.make(config.Mesh(kind=kind) if kind == "pmap" else config.Mesh(data=2))
  tx = optax.adam(1e-2)
  make_state = state_maker(toys.make_params(MODEL), tx)
  step = make_train_step(toys.loss_of(MODEL), tx, accum=2, axis_name=place.axis_name)
  return place, lambda: place.init(make_state, jax.random.key(0)), place.compile(step)


def batches(delay=0.0, poison=None):
  """Endless batches; number `poison` (from 1) has a NaN."""
  for n in itertools.count(1):
    time.sleep(delay)
    batch = toys.make_batch(n)
    if n == poison:
      batch["mask"][0, 0] = float("nan")
    yield batch


def run(workdir, steps, *, kind="mesh", feed=None, **kwargs):
  """Trains; returns the final state as numpy."""
  place, new_state, step = build(kind)
  options = {"log_every": 4, "checkpoint_every": 5, "name": "toy"} | kwargs
  feed = feed or feeds.IteratorFeed(batches())
  state = loop.fit(step, new_state(), feed, place=place, workdir=workdir, steps=steps, **options)
  return place.fetch(state.params)


if __name__ == "__main__":
  directory, count, *patience = sys.argv[1:]
  care = loop.Care(keep=3, hang_after=float(patience[0]) if patience else 0.0)
  try:
    run(pathlib.Path(directory), int(count), feed=feeds.IteratorFeed(batches(0.02)), care=care)
  except UserError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
