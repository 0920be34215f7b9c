"""Scaling laws and budgets as a page draws them: closed forms on a grid of budgets."""

from typing import Any

import numpy as np

from llm_jax.scaling import budget, chinchilla, devices
from llm_jax.scaling.chinchilla import Law
from llm_jax.serve.workdirs import Workdirs, as_object, read_json
from llm_jax.train.curves import number

_LAWS = {
  "besiroglu": "Chinchilla's runs, refitted (Besiroglu et al. 2024)",
  "hoffmann": "Chinchilla (Hoffmann et al. 2022)",
}
_STATE = 16  # Bytes of a parameter in training: itself, its gradient and two moments, float32.


def options(workdirs: Workdirs) -> dict[str, Any]:
  """Devices and laws to choose from, models that are known, and the runs' own."""
  kinds = [
    {"name": name, "peak": peak, "watts": devices.watts(name)} for name, peak in devices.PEAK_FLOPS
  ]
  laws = [{"name": name, "title": title} for name, title in _LAWS.items()]
  laws += [{"name": name, "title": f"your sweep: {name}"} for name in _sweeps(workdirs)]
  known = [{"name": name, "params": n, "tokens": d} for name, (n, d) in chinchilla.KNOWN.items()]
  return {"devices": kinds, "laws": laws, "known": known, "runs": _runs(workdirs)}


def figures(workdirs: Workdirs, law: str, *, device: str, **given: float) -> dict[str, Any]:
  """What a budget buys, and curves beside it.

  Args:
    workdirs: whose sweeps are laws too.
    law: name of the law.
    device: name of the device.
    **given: arguments of `scaling.budget.plan`.

  Returns:
    The fields of `budget.Budget`, "verdict", "state_bytes", "curve" (sizes and losses for the same
    FLOPs), and "frontier" (best sizes over FLOPs, by three rules).

  Raises:
    KeyError: for an unknown law or device.
    ValueError: if the numbers do not make a budget.
  """
  own = Law(**_sweeps(workdirs)[law]) if law not in _LAWS else chinchilla.PUBLISHED[law]
  peak = dict(devices.PEAK_FLOPS)[device]
  found = budget.plan(peak=peak, watts=devices.watts(device), law=own, **given)
  sizes = found.params * np.geomspace(1 / 64, 64, 61)
  losses = chinchilla.loss(own, sizes, found.flops / (chinchilla.FLOPS * sizes))
  budgets = np.geomspace(1e17, 1e26, 46)
  best = {
    "law": chinchilla.optimal(own, budgets)[0],
    "rule": chinchilla.rule(budgets)[0],
    "kaplan": chinchilla.kaplan(budgets)[0],
  }
  return found._asdict() | {
    "verdict": found.verdict,
    "state_bytes": _STATE * found.params,
    "curve": {"params": sizes.tolist(), "loss": np.asarray(losses).tolist()},
    "frontier": {"flops": budgets.tolist()} | {k: np.asarray(x).tolist() for k, x in best.items()},
  }


def _sweeps(workdirs: Workdirs) -> dict[str, dict[str, float]]:
  """The laws of finished sweeps, by the names of their runs."""
  found = {}
  for name in workdirs.names:
    for path in (workdirs.path(name), workdirs.path(name) / "scaling_law"):
      law = read_json(path / "scaling_law.json").get("law")
      fields = {key: number(as_object(law).get(key)) for key in Law._fields}
      if None not in fields.values():
        found[name] = fields
  return found


def _runs(workdirs: Workdirs) -> list[dict[str, Any]]:
  """Parameters and tokens of the runs' own pretraining."""
  found = []
  for name in workdirs.names:
    own = as_object(read_json(workdirs.path(name) / "summary.json").get("pretrain"))
    params, tokens = number(own.get("parameters")), number(own.get("tokens"))
    if params and tokens:
      found.append({"name": name, "params": params, "tokens": tokens})
  return found
