"""A toy run on packed documents, in one process or as one of two, as the tests start it.

python -m tests.train.two_processes FOLDER
"""

import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax import config
from llm_jax.data import batches
from llm_jax.train import distributed, feeds, loop, parallel, processes
from llm_jax.train.step import make_train_step, state_maker
from tests.train import toys

ROOT = pathlib.Path(__file__).parents[2]
ROWS, LENGTH = 8, 16


def start(*words, devices=1, env=None):
  """Runs `python -m words` as two tasks of Slurm; returns (exit code, stderr) of each."""
  job = free_port() - 61440  # JAX makes the coordinator's port of the job's number.
  slurm = {
    "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }  # fmt: skip
  tasks = [
    subprocess.Popen(
      [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE, text=True,
      env=os.environ | slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} | (env or {}),
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    errors = [task.communicate(timeout=240)[1] for task in tasks]
  finally:
    for task in tasks:
      task.kill()
  return [(task.returncode, text) for task, text in zip(tasks, errors, strict=True)]


def free_port():
  """Returns a port that JAX may make of a job's number."""
  for port in np.random.default_rng(os.getpid()).permutation(np.arange(61440, 65536)).tolist():
    with socket.socket() as probe:
      try:
        probe.bind(("", port))
        return port
      except OSError:
        continue
  raise RuntimeError("no free port")


def write_documents(path):
  """Toy documents, of which a run reads a part of an epoch."""
  rng = np.random.default_rng(0)
  documents = [rng.integers(0, toys.VOCAB, rng.integers(2, 30)) for _ in range(300)]
  batches.write_tokens(path, documents, toys.VOCAB)


class Interrupted(feeds.IteratorFeed):
  """Gets a signal while it gives its third batch."""

  def next(self, state):
    if self._used == 2:
      signal.raise_signal(signal.SIGTERM)
    return super().next(state)


@functools.cache
def build(data, fsdp):
  """Returns (place, make a new state, compiled step)."""
  place, tx = parallel.make(config.Mesh(data=data, fsdp=fsdp)), optax.adam(1e-2)
  make_state = state_maker(toys.make_params(toys.Toy()), tx)
  first = place.init(make_state, jax.random.key(0))
  copy = place.compile(functools.partial(jax.tree.map, jnp.copy), donate=False)
  step = place.compile(make_train_step(toys.loss_of(toys.Toy()), tx))
  return place, lambda: copy(first), step


def run(folder, name, steps, data=1, fsdp=1, make_feed=feeds.IteratorFeed):
  """Trains `folder`/`name` up to `steps`; its losses are in metrics.jsonl."""
  place, new_state, step = build(data, fsdp)
  feed = make_feed(batches.pack_documents(folder / "tokens", LENGTH, ROWS, seed=1))
  options = {"log_every": 1, "checkpoint_every": 100, "name": name}
  loop.fit(step, new_state(), feed, place=place, workdir=folder / name, steps=steps, **options)


def main(folder):
  """Ends with a signal to process 1 alone, after continuing what one process began."""
  if distributed.start() != 2:
    raise RuntimeError("there must be two processes")
  own = {"number": jax.process_index()}
  if processes.own(processes.joint(own)) != own:
    raise RuntimeError("states of their own were mixed up")
  run(folder, "one", 8, fsdp=2)
  run(
    folder, "two", 100, fsdp=2, make_feed=Interrupted if jax.process_index() else feeds.IteratorFeed
  )


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
