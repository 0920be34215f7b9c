"""One training step, taken apart: compilation, memory, FLOPs, time, roofline, and where it goes.

python -m tools.profile_step --config=configs/pretrain.py --config.model.dim=256
python -m tools.profile_step --size=gpt2s --config.model.dtype=bfloat16 --config.model.remat=full
python -m tools.profile_step --size=tiny --steps=5 --json=step.json --out=trace

It takes the config of a pretraining, with its optimizer, mesh and loss, and random tokens: no
corpus is needed. --size sets model, batch and length as tools/bench_train does, before the fields.
FLOPs of a step are those of the model: three forwards, recomputation not counted. "All keys" counts
the whole square of attention scores (Chowdhery et al. 2022, arXiv:2204.02311, appendix B; nanoGPT),
"causal half" the half that a causal mask leaves (MaxText since 2025). MFU is one of them over the
peak of the device's dense bfloat16 (llm_jax/scaling/devices.py), or over the rate that a large
product reaches here.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _fields, _plan
from llm_jax import config, spec
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import budget, devices, flops
from llm_jax.stages import training
from llm_jax.train import allocator, monitor, optim, parallel, profile, trace
from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import Batch
from tools import _config, bench_train

_MEMORY = {
  "arguments": "argument_size_in_bytes",
  "outputs": "output_size_in_bytes",
  "aliased": "alias_size_in_bytes",  # Outputs in the place of arguments.
  "temporaries": "temp_size_in_bytes",
  "code": "generated_code_size_in_bytes",
}


def main(argv: list[str] | None = None) -> int:
  """Prints what was measured; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--size", choices=bench_train.SIZES, help="model, batch and length")
  parser.add_argument("--steps", type=int, default=10, help="timed steps")
  parser.add_argument("--traced", type=int, default=3, help="steps in the trace, after the timed")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  parser.add_argument("--out", type=pathlib.Path, help="keeps the trace; default: it is deleted")
  options, words = parser.parse_known_args(argv)
  try:
    cfg, note = configured(words, options.size)
    if min(options.steps, options.traced) < 1:
      raise UserError("--steps and --traced must be at least 1")
    with tempfile.TemporaryDirectory() as scratch:
      found = measure(cfg, options.steps, options.traced, options.out or pathlib.Path(scratch))
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  found["profile"]["trace"] = found["profile"]["trace"] if options.out else ""
  print(report(found) + (f"\n\n{note}" if note else ""))
  if options.json:
    options.json.write_text(json.dumps(found, indent=2) + "\n")
  return 0


def configured(words: list[str], size: str | None = None) -> tuple[config.Pretrain, str]:
  """Returns the config of a command line with its vocabulary, and a note if that is assumed.

  Raises:
    UserError: for what experiments refuse too, another stage's config, or an encoder-decoder.
  """
  known = ("size", "steps", "traced", "json", "out")
  command = _config.command("tools.profile_step", words, known, "pretrain")
  cfg = command.cfg
  if not isinstance(cfg, config.Pretrain):
    raise UserError("--config: a config of experiments.pretrain is needed")
  if size:
    model, cfg.batch, cfg.length = bench_train.SIZES[size]
    cfg.model = dataclasses.replace(model)
    for name, value in command.overrides.items():
      *groups, field = name.split(".")
      node = cfg
      for group in groups:
        node = getattr(node, group)
      setattr(node, field, value)
  _fields.validate(cfg)
  if cfg.model.encoder_layers:
    raise UserError("config.model.encoder_layers must be 0: random tokens are for a decoder")
  shape, note = _plan.shape_of(cfg, cfg)
  return dataclasses.replace(cfg, model=shape), note


def measure(cfg: config.Pretrain, steps: int, traced: int, directory: pathlib.Path) -> dict:
  """Returns all figures of one config's training step; seconds, bytes and FLOPs.

  Args:
    cfg: with a vocabulary.
    steps: timed ones, two steps after the first.
    traced: steps that are traced then.
    directory: gets the trace.
  """
  place, model = parallel.make(cfg.mesh), Transformer.from_config(cfg.model)
  tx = optim.make(cfg.optimizer, cfg.steps)
  token_loss = spec.resolve(cfg.loss, "llm_jax.losses.token")
  loss_fn = objectives.next_token(training.decoder_apply(model, train=True), token_loss)
  step = place.compile(make_train_step(loss_fn, tx, accum=cfg.accum, axis_name=place.axis_name))
  state = place.init(state_maker(training.initializer(model), tx), jax.random.key(cfg.seed))
  feed = batches(cfg)
  before = monitor.compilations()
  with training.fitting(cfg):
    began = time.perf_counter()
    lowered = step.lower(state, place.batch(next(feed)))
    traced_in = time.perf_counter() - began
    compiled = lowered.compile()
  compiled_in = time.perf_counter() - began - traced_in
  run = _Runner(step, state, feed, place)
  run.make(3)
  first = monitor.compilations() - before
  seconds = run.make(steps)
  with profile.recording(directory):
    run.make(traced)
  summary = profile.summarize(trace.newest(directory), range(steps + 4, steps + traced + 4))
  return {
    **_about(cfg),
    "seconds_to_lower": traced_in,
    "seconds_to_compile": compiled_in,
    "recompilations": monitor.compilations() - before - first,
    "memory": memory(compiled, cfg),
    "cost_analysis": _cost(compiled),
    "seconds": seconds,
    "tokens_per_second": cfg.batch * cfg.length / statistics.median(seconds),
    **rates(cfg.model.dtype),
    "profile": summary,
  }


def batches(cfg: config.Pretrain) -> Iterator[Batch]:
  """Endless batches of random tokens, each row one document without padding."""
  rng = np.random.default_rng(cfg.seed)
  ones = np.ones((cfg.batch, cfg.length), np.int32)
  while True:
    ids = rng.integers(0, cfg.model.vocab_size, (cfg.batch, cfg.length + 1), np.int32)
    yield {
      "tokens": ids[:, :-1],
      "targets": ids[:, 1:],
      "mask": ones.astype(np.float32),
      "segments": ones,
      "positions": np.tile(np.arange(cfg.length, dtype=np.int32), (cfg.batch, 1)),
    }


def rates(dtype: str) -> dict[str, float | None]:
  """Returns what one device reaches here, and what it is sold for (None: not known)."""
  large = jax.devices()[0].platform != "cpu"
  return {
    "matmul_flops_per_second": bench_train.matmul_rate(dtype, 8192 if large else 2048),
    "copy_bytes_per_second": copy_rate(2**30 if large else 2**27),
    "peak_flops": devices.peak_flops(jax.devices()[0].device_kind),
  }


def copy_rate(size: int) -> float:
  """Returns the bytes per second, read and written, of a pass over `size` bytes; best of 10."""
  x = jnp.ones(size // 4, jnp.float32)
  add = jax.jit(lambda a: a + 1)
  jax.block_until_ready(add(x))
  seconds = []
  for _ in range(10):
    began = time.perf_counter()
    jax.block_until_ready(add(x))
    seconds.append(time.perf_counter() - began)
  return 2 * size / min(seconds)


def memory(compiled: Any, cfg: config.Pretrain) -> dict[str, int]:
  """Returns bytes of the compiled step on one device by kind, and the closed form's estimate."""
  analysis = compiled.memory_analysis()
  found = {name: int(getattr(analysis, field, 0)) for name, field in _MEMORY.items()}
  found["in all"] = sum(found.values()) - 2 * found["aliased"]
  rows = max(1, cfg.batch // cfg.accum // jax.device_count())
  alone = dataclasses.replace(cfg.mesh, kind="mesh", data=1, fsdp=1, sequence=1, tensor=1)
  planned = budget.memory(cfg.model, alone, 1, rows=rows, length=cfg.length)
  found["closed form, unsharded"] = planned.total
  return found


def roofline(found: dict) -> dict[str, float]:
  """Returns the seconds that a step would take if each of its operations ran at what binds it.

  An operation takes the longer of FLOPs over the measured matmul rate and bytes over the measured
  copy bandwidth (Williams, Waterman, Patterson 2009); "products" and "memory" say which it was.
  """
  bound = {"products": 0.0, "memory": 0.0}
  for entry in found["profile"]["operations"]:
    compute = entry["flops"] / found["matmul_flops_per_second"]
    moved = entry["bytes"] / found["copy_bytes_per_second"]
    bound["products" if compute > moved else "memory"] += max(compute, moved)
  return bound


def utilization(found: dict) -> list[tuple[str, str, float]]:
  """Returns (convention, of what, MFU) for both conventions and each known rate."""
  step, rows = statistics.median(found["seconds"]), []
  of = {"the measured matmul rate": found["matmul_flops_per_second"]}
  if found["peak_flops"]:
    of = {"the bfloat16 peak": found["peak_flops"]} | of
  for name, rate in of.items():
    for convention, count in found["model_flops"].items():
      rows.append((convention, name, count / step / rate / found["measured"]))
  return rows


def report(found: dict) -> str:
  """Returns the figures for a terminal."""
  return "\n\n".join([
    profile.columns([("step", "")] + _step_rows(found)),
    profile.columns([("memory of the compiled step, one device", "MiB")] + [
      (name, f"{size / 2**20:,.1f}") for name, size in found["memory"].items()
    ]),
    profile.columns([("FLOPs of a step, all devices", "GFLOP", "of all keys")] + _flop_rows(found)),
    profile.columns([("roofline, one device", "")] + _roofline_rows(found)),
    profile.columns([("MFU", "of", "")] + [
      (convention, of, f"{100 * value:.1f} %") for convention, of, value in utilization(found)
    ]),
    profile.table(found["profile"]),
  ])  # fmt: skip


class _Runner:
  """Makes steps as the loop does: the next one is sent before the last one is waited for."""

  def __init__(self, step, state, feed, place):
    self._step, self._state, self._feed, self._place = step, state, feed, place

  def make(self, count: int) -> list[float]:
    """Makes `count` steps; returns the seconds of each."""
    ends, flying = [time.perf_counter()], None
    for _ in range(count):
      with profile.mark("feed"):
        batch = self._place.batch(next(self._feed))
      self._state, metrics = self._step(self._state, batch)
      if flying is not None:
        jax.block_until_ready(flying)
        ends.append(time.perf_counter())
      flying = metrics
    jax.block_until_ready((self._state, flying))
    ends.append(time.perf_counter())
    return [b - a for a, b in zip(ends, ends[1:], strict=False)]


def _about(cfg: config.Pretrain) -> dict:
  tokens = cfg.batch * cfg.length
  # A causal mask leaves half of the keys, and the FLOPs of attention are linear in them.
  keys = {"all keys": cfg.length, "causal half": cfg.length // 2}
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    # Many devices on one CPU (XLA_FLAGS) share it: the host is measured as one.
    "measured": jax.process_count() if jax.default_backend() == "cpu" else jax.device_count(),
    "jax": jax.__version__,
    "model": dataclasses.asdict(cfg.model),
    "optimizer": cfg.optimizer.name,
    "parameters": flops.parameters(cfg.model),
    "batch": cfg.batch,
    "accum": cfg.accum,
    "length": cfg.length,
    "model_flops": {
      name: tokens * flops.train_flops_per_token(cfg.model, count) for name, count in keys.items()
    },
  }


def _cost(compiled: Any) -> dict[str, float]:
  """FLOPs and bytes of XLA's analysis for one device; the body of a loop is counted once in it."""
  found = compiled.cost_analysis()
  found = (found[0] if isinstance(found, list) else found) or {}
  return {"flops": found.get("flops", 0.0), "bytes": found.get("bytes accessed", 0.0)}


def _step_rows(found: dict) -> list[tuple[str, str]]:
  seconds, model = found["seconds"], found["model"]
  return [
    ("device", f"{found['devices']} x {found['device']}, jax {found['jax']}"),
    ("parameters", f"{found['parameters']:,}, computed in {model['dtype']}"),
    ("batch", f"{found['batch']} x {found['length']}, accum {found['accum']}"),
    ("to trace and lower", f"{found['seconds_to_lower']:.2f} s"),
    ("to compile", f"{found['seconds_to_compile']:.2f} s"),
    ("compiled again in later steps", str(found["recompilations"])),
    ("a step, median", f"{1e3 * statistics.median(seconds):,.1f} ms"),
    ("a step, least and most", f"{1e3 * min(seconds):,.1f} to {1e3 * max(seconds):,.1f} ms"),
    ("tokens/s", f"{found['tokens_per_second']:,.0f}"),
  ]


def _flop_rows(found: dict) -> list[tuple[str, str, str]]:
  whole = found["model_flops"]["all keys"]
  counts = {f"closed form, {name}": count for name, count in found["model_flops"].items()}
  counts["products that ran, in the trace"] = found["profile"]["flops"] * found["measured"]
  counts["cost_analysis, a loop's body once"] = found["cost_analysis"]["flops"] * found["devices"]
  return [(n, f"{count / 1e9:,.1f}", f"{count / whole:.2f}") for n, count in counts.items()]


def _roofline_rows(found: dict) -> list[tuple[str, str]]:
  ran, bound = found["profile"], roofline(found)
  step, rate = statistics.median(found["seconds"]), found["matmul_flops_per_second"]
  bandwidth, moved = found["copy_bytes_per_second"], max(ran["bytes"], 1.0)
  most = max(bound, key=lambda name: bound[name])
  whole = sum(bound.values())
  return [
    ("products, FLOP/s", f"{_si(ran['flops'] / step)} of {_si(rate)} measured"),
    ("memory, B/s", f"{_si(ran['bytes'] / step)} of {_si(bandwidth)} measured"),
    ("intensity, FLOP/B", f"{ran['flops'] / moved:.1f}; the rates meet at {rate / bandwidth:.1f}"),
    ("bound by products", f"{1e3 * bound['products']:,.1f} ms"),
    ("bound by memory", f"{1e3 * bound['memory']:,.1f} ms"),
    ("the step takes", f"{step / max(whole, 1e-12):.2f} times their sum; most is bound by {most}"),
  ]


def _si(value: float) -> str:
  for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if value >= limit:
      return f"{value / limit:,.1f} {unit}"
  return f"{value:,.0f}"


if __name__ == "__main__":
  allocator.huge_pages()
  sys.exit(main())
