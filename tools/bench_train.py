"""Tokens a second of the training step, in turn with a peer, and its share of the matmul rate.

python -m tools.bench_train
python -m tools.bench_train --attention=xla_chunked --batch=1 --length=4096 --json=step.json
python -m tools.bench_train --peer='other/bin/python their_training.py' --rounds=3

The peer is any command that prints "<number> tokens/s" for the same model and batch; it is run in
turn with ours. The share is model FLOPs (three forwards, all of the attention square) over what a
large float32 product reaches here. Programs come from the cache that experiments use
(docs/profiling.md): the second run shows how soon a run starts.
"""

import argparse
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.losses import objectives, token
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import flops
from llm_jax.stages import training
from llm_jax.train import allocator, compiling, monitor, optim, parallel
from llm_jax.train.step import make_train_step, state_maker
from tools import _figures, _mesh

_BEGAN = time.time()
_LOADED = "/jax/compilation_cache/cache_hits"
_LLAMA = {"qk_norm": False, "norm_eps": 1e-6}
SIZES = {
  "tiny": (config.Model(8192, 384, 6, 6, hidden=1024, **_LLAMA), 16, 256),
  "gpt2s": (config.Model(32000, 768, 12, 12, hidden=2048, **_LLAMA), 64, 1024),
  "1b": (config.Model(32000, 2048, 16, 16, hidden=5504, tied=False, **_LLAMA), 8, 2048),
}


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=SIZES, default="tiny")
  parser.add_argument("--batch", type=int, default=0, help="rows; 0: the size's own")
  parser.add_argument("--length", type=int, default=0, help="tokens a row; 0: the size's own")
  parser.add_argument("--attention", default="xla", help="see config.model.attention")
  parser.add_argument("--remat", default="none", help="see config.model.remat")
  parser.add_argument("--dtype", default="float32", help="compute dtype")
  parser.add_argument("--matmul_precision", default="", help="see config.model.matmul_precision")
  parser.add_argument("--scan", action="store_true", help="layers in a loop")
  parser.add_argument("--scan_unroll", type=int, default=1, help="layers a round of this loop")
  _mesh.add_options(parser)
  parser.add_argument("--steps", type=int, default=5, help="timed steps a round")
  parser.add_argument("--rounds", type=int, default=1, help="turns of both sides")
  parser.add_argument("--peer", default="", help="command that prints tokens/s")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options = parser.parse_args(argv)
  compiling.cache()
  return _figures.finish(lambda: race(options), table, options.json)


def race(options: argparse.Namespace) -> dict:
  """Returns the figures of all rounds."""
  shape, batch, length = SIZES[options.size]
  batch, length = options.batch or batch, options.length or length
  for name in ("attention", "remat", "dtype", "matmul_precision", "scan", "scan_unroll"):
    setattr(shape, name, getattr(options, name))
  step, first, size = prepared(shape, batch, length, _mesh.make(options))
  own: list[float] = []
  theirs: list[float] = []
  for _ in range(options.rounds):
    own.append(batch * length / min(step() for _ in range(options.steps)))
    if options.peer:
      theirs.append(peer(options.peer))
  rate = matmul_rate(shape.dtype)
  per_token = flops.train_flops_per_token(shape, length)
  return {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "size": options.size,
    "parameters": flops.parameters(shape),
    "batch": batch,
    "length": length,
    "attention": options.attention,
    "dtype": options.dtype,
    "matmul_precision": options.matmul_precision,
    "mesh": options.mesh,
    "temporary_bytes": size,
    "tokens_per_second": own,
    "peer_tokens_per_second": theirs,
    "matmul_flops_per_second": rate,
    "share": statistics.median(own) * per_token / rate,
  } | first


def prepared(shape: config.Model, batch: int, length: int, place: parallel.Placement):
  """Returns (a function that makes one step and gives its seconds, figures of the first, bytes)."""
  model = Transformer.from_config(shape)
  tx = optim.make(config.Optimizer(lr=1e-3, schedule="constant", warmup=0), 1000)
  loss_fn = objectives.next_token(training.decoder_apply(model, train=True), token.cross_entropy)
  step = place.compile(make_train_step(loss_fn, tx))
  loaded: list[str] = []
  jax.monitoring.register_event_listener(
    lambda event, **_: loaded.append(event) if event == _LOADED else None
  )
  programs = monitor.compilations()
  state = place.init(state_maker(training.initializer(model), tx), jax.random.key(0))
  ids = np.random.default_rng(0).integers(0, shape.vocab_size, (batch, length + 1), np.int32)
  ones = np.ones((batch, length), np.int32)
  rows = place.batch({
    "tokens": ids[:, :-1], "targets": ids[:, 1:], "mask": ones.astype(np.float32),
    "segments": ones, "positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
  })  # fmt: skip

  def timed() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = step(state, rows)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start

  timed()
  first = {
    "first_step_seconds": round(age(), 2),
    "first_step_cpu_seconds": round(time.process_time(), 2),
    "programs_loaded": len(loaded),
    "programs_compiled": monitor.compilations() - programs - len(loaded),
  }
  size = step.lower(state, rows).compile().memory_analysis().temp_size_in_bytes
  timed()
  return timed, first, size


def age() -> float:
  """Seconds since this process began; where Linux does not say, since this file was imported."""
  try:
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  except OSError:
    return time.time() - _BEGAN
  return up - int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc_pid_stat(5), starttime.


def peer(command: str, unit: str = "tokens/s") -> float:
  """Runs the peer once; returns the last number of this unit that it prints.

  Raises:
    UserError: if it fails or prints no such number.
  """
  done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
  found = re.findall(rf"([\d.,]+) {unit}", done.stdout)
  if done.returncode or not found:
    last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
    raise UserError(f"--peer ended with {done.returncode} and printed no {unit}: {last[0][:200]}")
  return float(found[-1].replace(",", ""))


def matmul_rate(dtype: str, size: int = 2048) -> float:
  """Returns the FLOPs per second of a [size, size] product, the best of 10."""
  x = jnp.ones((size, size), jnp.dtype(dtype))
  product = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(product(x, x))
  seconds = []
  for _ in range(10):
    start = time.perf_counter()
    jax.block_until_ready(product(x, x))
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def table(figures: dict) -> str:
  """Returns the figures as Markdown."""
  own, theirs = figures["tokens_per_second"], figures["peer_tokens_per_second"]
  rows = [
    ("device", f"{_mesh.described(figures)}, jax {figures['jax']}"),
    ("model", f"{figures['size']}, {figures['parameters']:,} parameters"),
    ("batch", f"{figures['batch']} x {figures['length']}, attention {figures['attention']}"),
    ("computes in", _figures.numbers(figures)),
    ("first step done, seconds after the process began", figures["first_step_seconds"]),
    ("CPU seconds until then", figures["first_step_cpu_seconds"]),
    (
      "programs loaded, compiled until then",
      f"{figures['programs_loaded']}, {figures['programs_compiled']}",
    ),
    ("temporary memory of the step, MiB", f"{figures['temporary_bytes'] / 2**20:,.0f}"),
    ("tokens/s", ", ".join(f"{rate:,.0f}" for rate in own)),
    ("share of the matmul rate", f"{100 * figures['share']:.0f} %"),
  ]
  if theirs:
    ratio = statistics.median(own) / statistics.median(theirs)
    rows += [("peer, tokens/s", ", ".join(f"{rate:,.0f}" for rate in theirs))]
    rows += [("ratio of the medians", f"{ratio:.2f}")]
  return "\n".join(
    ["| figure | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows)]
  )


if __name__ == "__main__":
  allocator.huge_pages()
  sys.exit(main())
