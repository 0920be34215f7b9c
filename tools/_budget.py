"""What tools/plan.py says of a budget: tokens, loss and cost of N parameters, and what is best."""

import argparse
import math
import re
from typing import Any

from experiments import _plan
from llm_jax.errors import UserError
from llm_jax.scaling import budget, chinchilla, devices

OPTIONS = ("params", "tokens", "days")
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_STATE = 16  # Bytes of a parameter in training: itself, its gradient and two moments, float32.


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of a budget."""
  parser.add_argument("--params", default="", help="parameters of a model, such as 7e9 or 7B")
  parser.add_argument("--tokens", default="", help="tokens that it is trained on, such as 2T")
  parser.add_argument("--days", default="", help="that the devices are yours")


def asked(options: argparse.Namespace) -> bool:
  """Whether it is a budget that is asked about, and no configuration."""
  return any(getattr(options, name) for name in OPTIONS)


def figures(options: argparse.Namespace, peak: float) -> dict[str, Any]:
  """Returns the figures of a budget.

  Raises:
    UserError: for what cannot be.
  """
  params, tokens, days = (number(name, getattr(options, name)) for name in OPTIONS)
  watts = devices.watts(options.device)
  try:
    found = budget.plan(
      devices=options.devices, peak=peak, mfu=options.mfu, params=params, days=days,
      tokens=tokens, price=options.price, watts=watts,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"--params, --days, --tokens: {error}") from error
  if found.tokens < 1 or found.params < 1:
    raise UserError("--params, --days, --tokens: this is less than one parameter or token")
  return found._asdict() | {"verdict": found.verdict, "state_bytes": _STATE * found.params}


def number(name: str, text: str) -> float:
  """Returns the number of "7e9", "7B" or "2T"; 0 of "".

  Raises:
    UserError: if it is none, or not above 0.
  """
  if not text:
    return 0.0
  match = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)([KMBT]?)", text.strip(), re.IGNORECASE)
  try:
    value = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
  except ValueError:
    value = 0.0
  if not 0 < value < math.inf:
    raise UserError(f"--{name}={text} must be a number above 0, such as 7e9 or 7B")
  return value


def report(found: dict[str, Any]) -> str:
  """Returns the budget for a terminal."""
  own = found["budget"]
  total, kwh = own["state_bytes"], own["kilowatt_hours"]
  share = total / found["devices"] / budget.GIB
  rows = [
    ["what it buys", ""],
    ["parameters", short(own["params"])],
    ["tokens", f"{short(own['tokens'])}, {own['tokens'] / own['params']:.3g} per parameter"],
    ["FLOPs, 6 N D", f"{own['flops']:.3g}"],
    ["days", f"{own['days']:,.3g}"],
    ["device hours", f"{own['device_hours']:,.0f}"],
    ["dollars", f"{own['dollars']:,.0f}"],
    [
      "energy, kWh",
      "not known" if kwh is None else f"{kwh:,.0f} at {found['device']}'s rated power",
    ],
    ["state in training, GiB", f"{total / budget.GIB:,.0f}, {share:,.1f} a device if split evenly"],
    ["loss to expect, nats per token", f"{own['loss']:.3f}"],
  ]
  best = [
    ["the same FLOPs, best spent", "parameters", "tokens", "loss"],
    ["by the law of Besiroglu et al. 2024", *_pair(own["best"])],
    [f"by {chinchilla.RULE} tokens per parameter", *_pair(own["rule"])],
    ["by Kaplan et al. 2020", *_pair(own["kaplan"])],
  ]
  head = (
    f"{found['devices']} x {found['device']} at {100 * found['mfu']:.0f} % of "
    f"{found['peak'] / 1e12:,.0f} TFLOP/s, ${found['price']:.2f} an hour"
  )
  note = (
    "Losses are those of Chinchilla's text and tokenizer; yours will differ. A law of your own: "
    "python -m experiments.scaling_law"
  )
  return "\n\n".join([f"{head}\n{_plan.table(rows)}", _plan.table(best), own["verdict"], note])


def _pair(pair: tuple[float, float]) -> list[str]:
  law = chinchilla.PUBLISHED["besiroglu"]
  return [short(pair[0]), short(pair[1]), f"{chinchilla.loss(law, *pair):.3f}"]


def short(value: float) -> str:
  """A count for people: 7 B, 1.4 T."""
  for unit in ("T", "B", "M", "K"):
    if value >= _UNITS[unit]:
      return f"{value / _UNITS[unit]:.3g} {unit}"
  return f"{value:.3g}"
