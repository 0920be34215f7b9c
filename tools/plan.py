"""Before you run: memory of a device by part and stage, FLOPs, tokens, hours and money.

python -m tools.plan --params=7e9 --gpus=64 --gpu=a100-80 --days=14
python -m tools.plan --config=configs/pipeline.py
python -m tools.plan --config=configs/llama2.py:70b --devices=512 --device=H100 --price=2.5
python -m tools.plan --config=configs/ppo.py --preset='llama2(size="7b")' --devices=16
python -m tools.plan --config=configs/llama2.py:7b --devices=64 --compile --weak=8,16,32,64

Memory is in closed form (llm_jax/scaling/budget.py): exact for parameters, gradients and moments,
an estimate for activations. --compile lowers the real step of a pretraining on as many virtual
devices and compares. --weak compiles it for other numbers of devices with the same work for each,
and puts the collectives through a model of the network (llm_jax/scaling/network.py).

--params, --tokens and --days ask what a budget buys: two of them give the third, --days alone the
best model for it.
"""

import argparse
import pathlib
import re
import sys
from typing import Any

from experiments import _plan
from llm_jax import config, spec
from llm_jax.errors import UserError
from llm_jax.models import presets
from llm_jax.scaling import budget, devices, flops, roles
from llm_jax.scaling.network import Network, Scaling
from tools import _budget, _config, _figures, compile_step

_PARTS = budget.Memory._fields
_PRODUCTS = 0.75  # Of the peak, what large bfloat16 products reach on an H100 or H200.


def main(argv: list[str] | None = None) -> int:
  """Prints the plan; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--preset", default="", help="the model: a call in llm_jax/models/presets.py")
  parser.add_argument("--devices", "--gpus", type=int, default=1, help="how many")
  parser.add_argument(
    "--device", "--gpu", default="H100", help="its name in llm_jax/scaling/devices.py"
  )
  parser.add_argument("--memory", type=float, default=80, help="GiB of a device")
  parser.add_argument(
    "--mfu", type=float, default=0.4, help="the share of its peak that you expect"
  )
  parser.add_argument("--price", type=float, default=2.5, help="of a device and hour, in dollars")
  _budget.add_options(parser)
  parser.add_argument("--compile", action="store_true", help="compile the real step and compare")
  parser.add_argument("--weak", default="", help="numbers of devices, such as 8,64,512")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options, words = parser.parse_known_args(argv)
  return _figures.finish(lambda: plan(options, words), report, options.json)


def plan(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
  """Returns all figures: bytes on a device, tokens, FLOPs, hours, dollars.

  Raises:
    UserError: for what cannot be planned.
  """
  peak = devices.peak_flops(options.device)
  if peak is None:
    known = ", ".join(name for name, _ in devices.PEAK_FLOPS)
    raise UserError(f"--device={options.device} is not known; there are {known}")
  if (
    options.devices < 1
    or not 0 < options.mfu <= 1
    or options.memory <= 0
    or not 0 <= options.price < 1e9
  ):
    raise UserError(
      "--devices and --memory must be above 0, --mfu in (0, 1] and --price not negative"
    )
  if options.weak and not re.fullmatch(r"\d+(,\d+)*", options.weak):
    raise UserError(f"--weak={options.weak} must be numbers of devices, such as 8,64,512")
  if _budget.asked(options):
    if words or options.preset or options.compile or options.weak:
      raise UserError("--params, --tokens and --days take no configuration, --compile or --weak")
    named = {name: getattr(options, name) for name in ("devices", "device", "mfu", "price")}
    return named | {"peak": peak, "budget": _budget.figures(options, peak)}
  known = ("preset", "devices", "device", "memory", "mfu", "price", "compile", "weak", "json")
  cfg = _config.configured("tools.plan", words, known, "pipeline")
  found: dict[str, Any] = {name: getattr(options, name) for name in known[1:6]} | {"peak": peak}
  found["stages"], found["notes"] = _stages(cfg, options, peak)
  if options.compile or options.weak:
    shape = preset(options.preset)
    if shape is not None:
      raise UserError("--compile and --weak take the model from --config, not from --preset")
    found["compiled"] = compile_step.compiled(words, options.devices)
  if options.weak:
    found["weak"] = weak(cfg, words, options, peak)
  return found


def preset(text: str) -> config.Model | None:
  """Returns the model of a call such as 'llama2(size="7b")', None of "".

  Raises:
    UserError: if there is none.
  """
  return spec.resolve(text, presets.__name__, "preset")() if text else None


def _stages(cfg: Any, options: argparse.Namespace, peak: float) -> tuple[list[dict], list[str]]:
  given, rows, notes = preset(options.preset), [], []
  name = type(cfg).__name__.lower()
  for stage, part in _plan.stages(name, cfg).items():
    shape, note = (given, "") if given else _plan.shape_of(cfg, part)
    notes += [f"{stage}: {note}"] if note else []
    if shape is not None:
      rows.append(_stage(stage, part, shape, options, peak))
  if not rows:
    raise UserError("nothing to plan: " + ("; ".join(notes) or f"{name} trains no model"))
  return rows, list(dict.fromkeys(notes))


def _stage(
  stage: str, part: config.Stage, shape: config.Model, options: argparse.Namespace, peak: float
) -> dict:
  if shape.encoder_layers:
    raise UserError(f"{stage}: an encoder-decoder is not planned; see --dry_run of its experiment")
  use = _plan.passes(part)
  mesh = config.Mesh() if part.mesh.kind == "pmap" else part.mesh
  length = _plan.lengths(part, shape)[0]
  cached = part.rollouts * length if isinstance(part, config.Online | config.OnlineDpo) else 0
  try:
    memory = budget.memory(
      shape, mesh, options.devices,
      rows=part.batch * use.sequences // part.accum, length=length,
      optimizer=part.optimizer.name, roles=budget.Roles(use.trained, use.frozen), cached=cached,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"{stage}: config.mesh: {error}") from error
  rows = part.steps * part.batch * use.sequences
  forward = length * flops.forward_flops_per_token(shape, length)
  work = rows * forward * use.forwards
  hours = budget.hours(work, 1, options.devices, peak, options.mfu)
  return {
    "stage": stage,
    "parameters": flops.parameters(shape),
    "trained": use.trained,
    "frozen": use.frozen,
    "tokens": rows * length,
    "flops": work,
    "hours": hours,
    "dollars": hours * options.devices * options.price,
    "bytes": memory._asdict() | {"total": memory.total},
    "roles": roles.at_rest(part, shape) if isinstance(part, config.Ppo) else {},
  }


def weak(
  cfg: config.Pretrain, words: list[str], options: argparse.Namespace, peak: float
) -> list[dict]:
  """Returns a row for each number of devices: the compiled step through the network's model.

  Rows of a batch grow with the devices, and so does the mesh's axis that is -1, or fsdp.
  """
  network, rows = Network(), []
  for count in map(int, options.weak.split(",")):
    batch = max(1, cfg.batch * count // options.devices)
    tensor = cfg.mesh.tensor * cfg.mesh.sequence
    own = [*words, f"--config.batch={batch}", "--config.mesh.data=1"]
    own.append(f"--config.mesh.fsdp={max(1, count // tensor)}")
    found = compile_step.compiled(own, count)
    work = batch * cfg.length * flops.train_flops_per_token(cfg.model, cfg.length) / count
    again = 4 / 3 if cfg.model.remat == "full" else 1.0  # The forward pass a second time.
    times = {False: 0.0, True: 0.0}
    for one in found["collectives"]:
      group = tuple(one["group"])
      times[network.leaves_node(group)] += network.seconds(one["sent"], one["count"], group)
    scaling = Scaling(work * again / (peak * _PRODUCTS), times[False], times[True])
    rows.append({
      "devices": count, "batch": batch, "bytes": found["bytes"],
      "involuntary": found["involuntary"], **scaling._asdict(),
      "hidden": scaling.hidden, "shown": scaling.shown,
    })  # fmt: skip
  return rows


def report(found: dict[str, Any]) -> str:
  """Returns the plan for a terminal."""
  if "budget" in found:
    return _budget.report(found)
  shared = [_roles_table(stage) for stage in found["stages"] if stage["roles"]]
  parts = [_memory_table(found), *shared, _cost_table(found)]
  if "compiled" in found:
    parts.append(compile_step.report(found["compiled"]) + "\n" + _comparison(found))
  if "weak" in found:
    parts.append(_weak_table(found["weak"]))
  return "\n\n".join([*parts, *found["notes"]])


def _memory_table(found: dict[str, Any]) -> str:
  small = max(stage["bytes"]["total"] for stage in found["stages"]) < budget.GIB
  name, unit = ("MiB", 2**20) if small else ("GiB", budget.GIB)
  head = [f"{name} on a device", *_PARTS, "total", "fits"]
  rows = []
  for stage in found["stages"]:
    cells = [f"{stage['bytes'][part] / unit:,.1f}" for part in (*_PARTS, "total")]
    fits = stage["bytes"]["total"] <= found["memory"] * budget.GIB
    rows.append([stage["stage"], *cells, "yes" if fits else "no"])
  return _plan.table([head, *rows])


def _roles_table(stage: dict[str, Any]) -> str:
  sizes = stage["roles"] | {"total": sum(stage["roles"].values())}
  small = sizes["total"] < budget.GIB
  name, unit = ("MiB", 2**20) if small else ("GiB", budget.GIB)
  head = [f"{stage['stage']} by role, {name}, before any split", *sizes]
  return _plan.table([head, ["between updates", *(f"{x / unit:,.1f}" for x in sizes.values())]])


def _cost_table(found: dict[str, Any]) -> str:
  head = ["stage", "parameters", "models", "tokens", "FLOPs", "hours", "dollars"]
  rows = [
    [
      stage["stage"],
      f"{stage['parameters']:,}",
      f"{stage['trained']} trained, {stage['frozen']} frozen",
      f"{stage['tokens']:,}",
      f"{stage['flops']:.2e}",
      *(_short(stage[key]) for key in ("hours", "dollars")),
    ]
    for stage in found["stages"]
  ]
  sums = [_short(sum(s[key] for s in found["stages"])) for key in ("hours", "dollars")]
  rows.append(["all", "", "", "", "", *sums])
  return (
    f"{found['devices']} x {found['device']} at {100 * found['mfu']:.0f} % of "
    f"{found['peak'] / 1e12:,.0f} TFLOP/s, ${found['price']:.2f} an hour\n"
  ) + _plan.table([head, *rows])


def _short(value: float) -> str:
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _comparison(found: dict[str, Any]) -> str:
  planned, size = found["stages"][0]["bytes"], found["compiled"]["bytes"]
  kept = planned["parameters"] + planned["moments"]
  rest = planned["total"] - kept
  return (
    f"closed form: {kept / budget.GIB:.2f} GiB of state, {kept / size['argument']:.2f} of the "
    f"compiled; {rest / budget.GIB:.2f} GiB of the rest, {rest / max(size['temp'], 1):.2f} of the "
    "temporaries"
  )


def _weak_table(rows: list[dict]) -> str:
  head = ["devices", "batch", "GiB a device", "compute", "in nodes", "between", "hidden", "shown"]
  cells = [
    [
      str(row["devices"]),
      str(row["batch"]),
      f"{(row['bytes']['argument'] + row['bytes']['temp']) / budget.GIB:.1f}",
      *(f"{row[key]:.2f} s" for key in ("compute", "inside", "outside")),
      *(f"{100 * row[key]:.0f} %" for key in ("hidden", "shown")),
    ]
    for row in rows
  ]
  n = Network()
  return (
    f"weak scaling: products at {100 * _PRODUCTS:.0f} % of the peak; nodes of {n.node}, "
    f"{n.inside / 1e9:.0f} GB/s inside, {n.outside / 1e9:.0f} GB/s between, "
    f"{1e6 * n.latency:.0f} us a message; share of compute with what leaves a node hidden, or not\n"
  ) + _plan.table([head, *cells])


if __name__ == "__main__":
  sys.exit(main())
