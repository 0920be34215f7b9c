"""The real training step compiled for many devices that need not be there: memory and collectives.

python -m tools.compile_step --devices=64 --config=configs/llama2.py:7b
python -m tools.compile_step --devices=512 --config=configs/llama2.py:70b --json=step.json

It makes virtual devices on this CPU and runs nothing. A CPU's compiler widens bfloat16 to float32,
so float16 stands in for it: it takes the same bytes. Bytes are those of the CPU's program; another
compiler fuses otherwise, and lays out arrays otherwise.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError
from tools import _config, _figures

_OWN = ("devices", "json")
_WARNING = "nvoluntary full rematerialization"


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--devices", type=int, default=8, help="virtual devices")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options, words = parser.parse_known_args(argv)
  return _figures.finish(lambda: compiled(words, options.devices), report, options.json)


def compiled(words: list[str], devices: int) -> dict[str, Any]:
  """Compiles the step of a config in a process of its own, whose devices are virtual.

  Args:
    words: the config's flags.
    devices: how many.

  Returns:
    Seconds, bytes on a device by kind, collectives, and the number of times that the partitioner
    gave up ("involuntary full rematerialization").

  Raises:
    UserError: for a bad config, or if it does not compile.
  """
  if devices < 1:
    raise UserError(f"--devices must be at least 1, got {devices}")
  cfg = _config.configured("tools.compile_step", words, _OWN, "pretrain")
  if not isinstance(cfg, config.Pretrain) or cfg.model.encoder_layers:
    raise UserError("only the step of a decoder's pretraining is compiled: give such a --config")
  with tempfile.TemporaryDirectory() as scratch:
    out = pathlib.Path(scratch) / "found.json"
    code = f"import sys; from tools import compile_step as c; c.child(sys.argv[2:], {str(out)!r})"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
    done = subprocess.run(
      [sys.executable, "-c", code, "--", *words], env=env, capture_output=True, text=True
    )
    if done.returncode:
      lines = done.stderr.strip().splitlines()
      error = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
      raise UserError(error.removeprefix("error: "))
    found = json.loads(out.read_text())
  return found | {"involuntary": done.stderr.count(_WARNING), "devices": devices}


def child(words: list[str], out: str) -> None:
  """What `compiled` runs where the devices are: writes its figures as JSON."""
  import jax

  from llm_jax.train import collectives

  try:
    step, state, batch = abstract_step(
      _config.configured("tools.compile_step", words, _OWN, "pretrain")
    )
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  began = time.perf_counter()
  lowered = step.lower(state, batch)
  traced = time.perf_counter()
  program = lowered.compile()
  seconds = time.perf_counter() - traced
  analysis = program.memory_analysis()
  kinds = ("argument", "output", "alias", "temp")
  found = {
    "jax": jax.__version__,
    "seconds_to_lower": traced - began,
    "seconds_to_compile": seconds,
    "bytes": {kind: int(getattr(analysis, f"{kind}_size_in_bytes")) for kind in kinds},
    "collectives": [
      one._asdict() | {"sent": one.sent} for one in collectives.collectives_of(program.as_text())
    ],
  }
  pathlib.Path(out).write_text(json.dumps(found))


def abstract_step(cfg: config.Pretrain) -> tuple[Any, Any, Any]:
  """Returns (step, state, batch) of a pretraining, the last two as shapes with their shardings.

  Raises:
    UserError: if the config does not fit the devices.
  """
  import dataclasses

  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  from llm_jax import spec
  from llm_jax.losses import objectives
  from llm_jax.models.transformer import Transformer
  from llm_jax.stages import training
  from llm_jax.train import optim, parallel
  from llm_jax.train.step import make_train_step, state_maker

  shape = cfg.model
  if shape.dtype == "bfloat16":
    shape = dataclasses.replace(shape, dtype="float16")
  if cfg.mesh.kind != "mesh":
    raise UserError('config.mesh.kind must be "mesh": pmap has every array whole on every device')
  place, model, tx = (
    parallel.make(cfg.mesh),
    Transformer.from_config(shape),
    optim.make(cfg.optimizer, cfg.steps),
  )
  make_state = state_maker(training.initializer(model), tx)
  boxed = jax.eval_shape(make_state, jax.random.key(0))
  state = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    nn.unbox(boxed),
    place.shardings(boxed),
  )
  rows = NamedSharding(place.mesh, P(("data", "fsdp")))
  array = lambda dtype: jax.ShapeDtypeStruct((cfg.batch, cfg.length), dtype, sharding=rows)  # noqa: E731
  batch = {name: array(jnp.int32) for name in ("tokens", "targets", "positions", "segments")}
  batch["mask"] = array(jnp.float32)
  token_loss = spec.resolve(cfg.loss, "llm_jax.losses.token")
  loss_fn = objectives.next_token(training.decoder_apply(model, train=True), token_loss)
  return place.compile(make_train_step(loss_fn, tx, accum=cfg.accum)), state, batch


def by_kind(found: dict[str, Any]) -> list[tuple[str, int, int, float]]:
  """Returns (kind and size of group, number, bytes, bytes sent) of a step on a device."""
  sums: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0, 0])
  for one in found["collectives"]:
    row = sums[f"{one['kind']} over {len(one['group'])}"]
    for i, value in enumerate((one["count"], one["count"] * one["bytes"], one["sent"])):
      row[i] += value
  rows = [(name, int(n), int(size), sent) for name, (n, size, sent) in sums.items()]
  return sorted(rows, key=lambda row: -row[3])


def report(found: dict[str, Any]) -> str:
  """Returns the figures for a terminal."""
  size = found["bytes"]
  state, temporary = size["argument"] / 2**30, size["temp"] / 2**30
  lines = [
    f"{found['devices']} virtual devices, jax {found['jax']}: lowered in "
    f"{found['seconds_to_lower']:.1f} s, compiled in {found['seconds_to_compile']:.1f} s",
    f"bytes on a device: {state:.2f} GiB of state and batch, {temporary:.2f} GiB of temporaries",
    f"involuntary full rematerializations: {found['involuntary']}",
    "",
    f"{'collectives of a step, on a device':40}{'number':>8}{'GB':>10}{'GB sent':>10}",
  ]
  for name, count, whole, sent in by_kind(found):
    lines.append(f"{name:40}{count:>8,}{whole / 1e9:>10.2f}{sent / 1e9:>10.2f}")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
