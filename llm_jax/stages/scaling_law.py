"""Scaling laws of one's own: a sweep of small pretrainings, and what is fitted to it."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax import config, rundir
from llm_jax.errors import UserError
from llm_jax.scaling import chinchilla, flops
from llm_jax.stages import pretrain, runs
from llm_jax.train import metrics

_WARMUP = 0.1  # At most this share of a run.


class Planned(NamedTuple):
  """A run of the sweep.

  Attributes:
    name: its directory.
    params: N.
    budget: FLOPs that it was planned for.
    cfg: its config.
  """

  name: str
  params: int
  budget: float
  cfg: config.Pretrain

  @property
  def tokens(self) -> int:
    """D, tokens that it is trained on: whole updates."""
    return self.cfg.steps * self.cfg.batch * self.cfg.length


def run(cfg: config.ScalingLaw, workdir: str) -> dict[str, Any]:
  """Trains what is missing of the sweep, fits, and writes scaling_law.json, which is returned.

  Raises:
    UserError: if too few runs are left to fit to, or a run has no loss at its end.
  """
  cfg.validate()
  root = pathlib.Path(workdir)
  planned, left_out = plan(cfg)
  fitted = len(planned) - len(held_out(cfg, planned))
  if fitted < 6:
    raise UserError(
      f"{len(planned)} runs, of which {fitted} are fitted to, are too few for five numbers: add "
      f"config.budgets or config.sizes ({len(left_out)} were left out: {'; '.join(left_out[:3])})"
    )
  for i, one in enumerate(planned):
    if final_loss(root / one.name, one.cfg.steps) is None:
      print(
        f"run {i + 1} of {len(planned)}: {one.name}, {one.params:,} parameters, "
        f"{one.tokens:,} tokens", flush=True,
      )  # fmt: skip
      pretrain.run(one.cfg, str(root / one.name))
      jax.clear_caches()  # Each length of a schedule is a program of its own.
  found = fit(cfg, [_row(one, root) for one in planned], held_out(cfg, planned))
  found["left_out"] = left_out
  rundir.write_json(root / "scaling_law.json", found)
  print("\n" + table(found), flush=True)
  return found


def plan(cfg: config.ScalingLaw) -> tuple[list[Planned], list[str]]:
  """Returns the runs, those of fewest FLOPs first, and why others were left out."""
  vocabulary = runs.tokenizer(cfg.prepared).vocab_size
  manifest = json.loads((pathlib.Path(cfg.prepared) / "manifest.json").read_text())
  corpus = manifest["splits"]["train"]["tokens"]
  own, left_out, planned = cfg.pretrain, [], []
  for budget, (width, layers) in itertools.product(cfg.flops(), cfg.shapes()):
    shape = dataclasses.replace(
      own.model, vocab_size=vocabulary, dim=width, layers=layers, heads=cfg.heads(width)
    )
    params = flops.parameters(shape)
    steps = round(budget / (chinchilla.FLOPS * params * own.batch * own.length))
    name = f"{width}x{layers}-{budget:.3g}"
    epochs = steps * own.batch * own.length / corpus
    if steps < cfg.least_steps:
      left_out.append(f"{name}: {steps} updates, fewer than config.least_steps")
    elif epochs > cfg.most_epochs:
      left_out.append(f"{name}: {epochs:.1f} epochs, more than config.most_epochs")
    else:
      warmup = min(own.optimizer.warmup, int(_WARMUP * steps))
      made = dataclasses.replace(
        own, seed=cfg.seed, prepared=cfg.prepared, model=shape, steps=steps, eval_every=steps,
        checkpoint_every=steps, optimizer=dataclasses.replace(own.optimizer, warmup=warmup),
      )  # fmt: skip
      planned.append(Planned(name, params, budget, made))
  return planned, left_out


def held_out(cfg: config.ScalingLaw, planned: list[Planned]) -> list[int]:
  """Returns the numbers of the runs that the law is judged by: the dearest, and others of all."""
  count = round(cfg.held_out * len(planned))
  order = sorted(range(len(planned)), key=lambda i: planned[i].params * planned[i].tokens)
  return sorted(order[-1 - round(k * len(order) / max(count, 1))] for k in range(count))


def final_loss(directory: pathlib.Path, steps: int) -> float | None:
  """Returns the loss on held-out text after the last update; None: the run is not done."""
  found = [row for row in metrics.read(directory) if row.get("step") == steps]
  losses = [row["eval/loss"] for row in found if "eval/loss" in row]
  return float(losses[-1]) if losses else None


def fit(cfg: config.ScalingLaw, rows: list[dict[str, Any]], judged: list[int]) -> dict[str, Any]:
  """Returns the law of `rows` but those that are `judged`, its intervals, and how well it does.

  Args:
    cfg: of the sweep.
    rows: of each run "params", "tokens", "loss".
    judged: numbers of the rows that are not fitted to.
  """
  rows = [row | {"held_out": i in judged} for i, row in enumerate(rows)]
  N, D, L = (np.array([row[key] for row in rows], float) for key in ("params", "tokens", "loss"))
  new = np.array([row["held_out"] for row in rows])
  law = chinchilla.fit(N[~new], D[~new], L[~new])
  predicted = chinchilla.loss(law, N, D)
  for row, value in zip(rows, predicted, strict=True):
    row["predicted"] = float(value)
  found: dict[str, Any] = {"runs": rows, "law": law._asdict(), "seed": cfg.seed}
  found["r_squared"] = {"fitted": chinchilla.r_squared(L[~new], predicted[~new])}
  if new.sum() > 1:
    found["r_squared"]["held_out"] = chinchilla.r_squared(L[new], predicted[new])
  if cfg.bootstrap:
    samples = chinchilla.bootstrap(N[~new], D[~new], L[~new], cfg.bootstrap, seed=cfg.seed)
    low, high = chinchilla.interval(samples)
    found["interval"] = {"low": low._asdict(), "high": high._asdict()}
    shares = samples[:, 4] / (samples[:, 3] + samples[:, 4])
    found["exponent_interval"] = [float(x) for x in np.quantile(shares, (0.025, 0.975))]
  found["exponent"] = law.beta / (law.alpha + law.beta)  # Of the best N over C.
  try:
    frontier = chinchilla.isoflop(N, D, L)
  except ValueError as error:
    found["isoflop"] = {"missing": str(error)}
  else:
    points = {name: getattr(frontier, name).tolist() for name in ("budgets", "best", "loss")}
    found["isoflop"] = {"exponent": frontier.params.exponent, "factor": frontier.params.factor}
    found["isoflop"] |= points
  return found


def table(found: dict[str, Any]) -> str:
  """Returns the fit as Markdown."""
  law, ends = found["law"], found.get("interval")
  head = " | ".join(law)
  lines = [f"| L = E + A / N^alpha + B / D^beta | {head} |", "|---|" + "--:|" * len(law)]
  lines.append("| fit | " + " | ".join(f"{x:.4g}" for x in law.values()) + " |")
  if ends:
    cells = [f"{ends['low'][key]:.3g} to {ends['high'][key]:.3g}" for key in law]
    lines.append("| 95 % interval | " + " | ".join(cells) + " |")
  judged = sum(row["held_out"] for row in found["runs"])
  lines += ["", f"R2 of {len(found['runs']) - judged} runs that it is fitted to: "
            f"{found['r_squared']['fitted']:.3f}"]  # fmt: skip
  if "held_out" in found["r_squared"]:
    lines.append(f"R2 of {judged} held-out runs: {found['r_squared']['held_out']:.3f}")
  lines.append(f"the best N grows as C^{found['exponent']:.2f}")
  if "exponent" in found["isoflop"]:
    lines.append(f"by parabolas through equal FLOPs: C^{found['isoflop']['exponent']:.2f}")
  return "\n".join(lines)


def _row(one: Planned, root: pathlib.Path) -> dict[str, Any]:
  loss = final_loss(root / one.name, one.cfg.steps)
  if loss is None:
    raise UserError(f"{root / one.name} has no eval/loss after its last update")
  return {
    "name": one.name, "params": one.params, "tokens": one.tokens, "budget": one.budget,
    "loss": loss,
  }  # fmt: skip
