"""What devices a measurement runs on: a mesh of them, and on a CPU how many there are."""

import argparse
import dataclasses

import jax

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.train import parallel

_EXAMPLE = "numbers of devices by axis, such as data=2,tensor=4"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds `--mesh` and `--cpu_devices`."""
  parser.add_argument("--mesh", default="", help=f"{_EXAMPLE}; the rest is data")
  parser.add_argument(
    "--cpu_devices", type=int, default=0, help="what a CPU's cores are cut into; 0: XLA_FLAGS says"
  )


def make(options: argparse.Namespace) -> parallel.Placement:
  """Returns the placement of these options; it must be asked for before any device is used.

  Raises:
    UserError: if an axis is unknown, or sizes do not fit the devices.
  """
  if options.cpu_devices < 0:
    raise UserError(f"--cpu_devices={options.cpu_devices} must not be negative")
  if options.cpu_devices:
    jax.config.update("jax_num_cpu_devices", options.cpu_devices)
  mesh = config.Mesh()
  for word in filter(None, options.mesh.split(",")):
    name, _, size = word.partition("=")
    if name not in parallel.AXES or not size.strip().isdecimal():
      raise UserError(f"--mesh={options.mesh} must be {_EXAMPLE}; axes: {', '.join(parallel.AXES)}")
    mesh = dataclasses.replace(mesh, **{name: int(size)})
  return parallel.make(mesh)


def described(figures: dict) -> str:
  """Returns the devices of some figures and their mesh, if one was asked for."""
  return figures["device"] + (f" as {figures['mesh']}" if figures["mesh"] else "")
