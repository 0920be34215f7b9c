"""Over-optimisation in miniature: what a gold score does while a proxy of it is optimised.

python -m tools.overoptimisation --out=runs/overoptimisation
python -m tools.overoptimisation --out=runs/short --seeds=0 --sizes=small --pairs=200

The experiment of Gao et al. 2022, arXiv:2210.10760, on a language of 64 words whose gold score is a
rule (tools/_small_world.py): reward models of several sizes are trained on several numbers of
comparisons, then best-of-n and PPO, with and without a KL penalty, follow them. Curves are fitted
to the gold score over d = sqrt(KL to the reference), best-of-n d (a - b d), PPO d (a - b log d).
Controls: labels of a coin, a reward model that is not trained, the same score for every answer, and
the gold score itself. A frontier sets DPO beside PPO over several strengths of the KL penalty.

In --out: results.json, overoptimisation.svg. What a seed has finished is not done again.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np

from llm_jax import rundir
from llm_jax.errors import UserError
from llm_jax.stages import best_of
from tools import _figures, _overoptimisation_plot, _small_world

BETA = 0.1  # Of PPO with a KL penalty.
BETAS = (0.03, 0.1, 0.3, 1.0)  # Of the frontier.


def main(argv: list[str] | None = None) -> int:
  """Prints the tables; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/overoptimisation"))
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--sizes", default="small,middle,large", help="of proxies")
  parser.add_argument("--pairs", default="800,3200,12800", help="comparisons of proxies")
  parser.add_argument("--steps", type=int, default=600, help="updates of every model")
  parser.add_argument("--iterations", type=int, default=150, help="of PPO")
  parser.add_argument("--best_of", type=int, default=1024, help="answers to choose from")
  options = parser.parse_args(argv)
  return _figures.finish(lambda: study(options), table, None)


def study(options: argparse.Namespace) -> dict:
  """Returns all curves, their fits, the controls and the frontier, of all seeds.

  Raises:
    UserError: for options that cannot be.
  """
  seeds, counts = _numbers("seeds", options.seeds, 0), _numbers("pairs", options.pairs, 2)
  sizes = options.sizes.split(",")
  for size in sizes:
    if size not in _small_world.SIZES:
      raise UserError(f"--sizes={size} is unknown: {', '.join(_small_world.SIZES)}")
  if min(options.steps, options.iterations) < 1 or options.best_of < 2:
    raise UserError("--steps and --iterations must be at least 1, --best_of at least 2")
  options.out.mkdir(parents=True, exist_ok=True)
  how = {name: getattr(options, name) for name in ("steps", "iterations", "best_of")}
  runs = [_Seed(seed, options.out, how).run(sizes, counts) for seed in seeds]
  found = {"seeds": seeds, "sizes": sizes, "pairs": counts} | how
  found["proxies"] = {name: _joined([run[name] for run in runs]) for name in runs[0] if "/" in name}
  for part in ("controls", "frontier"):
    found[part] = {name: _means([run[part][name] for run in runs]) for name in runs[0][part]}
  rundir.write_json(options.out / "results.json", found)
  (options.out / "overoptimisation.svg").write_text(_overoptimisation_plot.page(found))
  return found


class _Seed:
  """All of one seed, kept in a file as it is done."""

  def __init__(self, seed: int, out: pathlib.Path, how: dict):
    self.path, self.how = out / f"seed{seed}.json", how
    self.done = json.loads(self.path.read_text()) if self.path.exists() else {"how": how}
    if self.done["how"] != how:
      raise UserError(f"{self.path} was made with {self.done['how']}: choose another --out")
    self.world = _small_world.World.make(seed, how["steps"])

  def run(self, sizes: Sequence[str], counts: Sequence[int]) -> dict:
    """Returns what is asked for; does what is missing of it."""
    for size in sizes:
      for count in counts:
        self._keep(f"{size}/{count}", lambda s=size, n=count: self._proxy(s, n))
    size, count = sizes[-1], counts[-1]
    self._keep("controls", lambda: self._controls(size, count))
    self._keep("frontier", lambda: self._frontier(size, count))
    wanted = {f"{size}/{count}" for size in sizes for count in counts}
    return {k: v for k, v in self.done.items() if k in wanted | {"controls", "frontier"}}

  def _keep(self, name: str, make: Callable[[], dict]) -> None:
    if name not in self.done:
      self.done[name] = make()
      rundir.write_json(self.path, self.done)
      print(f"{self.path.stem}: {name}", file=sys.stderr, flush=True)

  def _proxy(self, size: str, count: int) -> dict:
    score = _small_world.proxy(self.world, size, count, self.how["steps"])
    found = {"accuracy": self._accuracy(score), "best_of": self._best_of(score)}
    for name, beta in (("ppo", 0.0), ("ppo_kl", BETA)):
      found[name] = _small_world.ppo(self.world, score, beta, self.how["iterations"])
    return found

  def _accuracy(self, score: _small_world.Score) -> float:
    """How often the better one of two new answers has the higher score."""
    one, two = self.world.draw(1024, 3), self.world.draw(1024, 4)
    better = self.world.gold(one) > self.world.gold(two)
    return float(np.mean((score(one) > score(two)) == better))

  def _best_of(self, score: _small_world.Score) -> list[dict[str, float]]:
    count, prompts = self.how["best_of"], 16
    batches = [self.world.draw(count, 100 + i) for i in range(prompts)]
    proxy_QN = np.stack([score(batch) for batch in batches])
    gold_QN = np.stack([self.world.gold(batch) for batch in batches])
    sizes = best_of.sizes(count)
    proxies = best_of.expected(proxy_QN, proxy_QN, sizes).mean(0)
    golds = best_of.expected(proxy_QN, gold_QN, sizes).mean(0)
    return [
      {"kl": math.log(n) - (n - 1) / n, "proxy": float(p), "gold": float(g)}
      for n, p, g in zip(sizes, proxies, golds, strict=True)
    ]

  def _controls(self, size: str, count: int) -> dict:
    world, steps, iterations = self.world, self.how["steps"], self.how["iterations"]
    found = {}
    for kind in ("shuffled", "random"):
      score = _small_world.proxy(world, size, count, steps, kind=kind)
      found[kind] = _last(_small_world.ppo(world, score, BETA, iterations))
      found[kind]["accuracy"] = self._accuracy(score)
    constant = lambda batch: np.zeros(len(batch["tokens"]), np.float32)  # noqa: E731
    found["constant"] = _last(_small_world.ppo(world, constant, BETA, iterations))
    found["gold"] = _last(_small_world.ppo(world, world.gold, BETA, iterations))
    return found

  def _frontier(self, size: str, count: int) -> dict:
    world, steps, iterations = self.world, self.how["steps"], self.how["iterations"]
    score, found = _small_world.proxy(world, size, count, steps), {}
    for beta in BETAS:
      found[f"dpo/{beta}"] = _small_world.dpo(world, count, beta, steps)
      found[f"ppo/{beta}"] = _last(_small_world.ppo(world, score, beta, iterations))
      found[f"gold/{beta}"] = _last(_small_world.ppo(world, world.gold, beta, iterations))
    return found


def fitted(points: Sequence[dict[str, float]], log: bool, value: str = "gold") -> dict | None:
  """Returns a, b of d (a - b d), or of d (a - b log d), by least squares, and R^2.

  Args:
    points: with "kl" in nats and `value`; those within 0.01 nats of the reference are left out. Of
      those of like d the mean counts, or a run would count most where it stays longest.
    log: which.
    value: what is fitted.

  Returns:
    {"a", "b", "peak", "r2"}; the peak, a d, is None of a curve without one. None: too few points.
  """
  kept = [p for p in points if p["kl"] > 0.01]
  kept = _overoptimisation_plot.binned(kept) if kept else kept
  if len(kept) < 3:
    return None
  d = np.sqrt([p["kl"] for p in kept])
  y = np.array([p[value] for p in kept])
  design = np.stack([d, -d * (np.log(d) if log else d)], 1)
  (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
  rest = y - design @ (a, b)
  peak = None
  if b > 1e-6:
    peak = math.exp(min(a / b - 1, 50.0)) if log else float(a / (2 * b))
  spread = max(((y - y.mean()) ** 2).sum(), 1e-12)
  return {"a": float(a), "b": float(b), "peak": peak, "r2": float(1 - (rest**2).sum() / spread)}


def _joined(parts: Sequence[dict]) -> dict:
  """One proxy over seeds: curves averaged point by point, fits over the points of all."""
  found: dict = {"accuracy": float(np.mean([part["accuracy"] for part in parts]))}
  for name in ("best_of", "ppo", "ppo_kl"):
    curves = [part[name] for part in parts]
    every = [point for curve in curves for point in curve]
    mean = [_means(points) for points in zip(*curves, strict=True)]
    fits = {v: fitted(every, name != "best_of", v) for v in ("gold", "proxy")}
    # Where each seed's gold score was best, smoothed over some iterations.
    bests = [_best(curve) for curve in curves]
    found[name] = {
      "mean": mean,
      "fit": fits,
      "best": _means(bests),
      "last": _means([_last(curve) for curve in curves]),
    }
  return found


def _best(curve: Sequence[dict[str, float]]) -> dict[str, float]:
  """Where the gold score is highest, over five iterations of a long run."""
  window = 5 if len(curve) > 50 else 1
  means = [_means(curve[i : i + window]) for i in range(len(curve) - window + 1)]
  return max(means, key=lambda point: point["gold"])


def _last(curve: Sequence[dict[str, float]]) -> dict[str, float]:
  return _means(curve[-5:] if len(curve) > 50 else curve[-1:])


def _means(points: Sequence[dict[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([point[name] for point in points])) for name in points[0]}


def _numbers(name: str, text: str, least: int) -> list[int]:
  try:
    found = [int(word) for word in text.split(",")]
  except ValueError:
    found = []
  if not found or min(found) < least:
    raise UserError(f"--{name}={text} must be numbers from {least} on, such as {least},{least + 1}")
  return found


def table(found: dict) -> str:
  """Returns the figures as Markdown."""
  lines = [
    f"seeds {', '.join(map(str, found['seeds']))}; gold scores in standard deviations of the"
    " reference's answers, d = sqrt(nats); best / last: of a run, mean over seeds", "",
    "| proxy | pairs | accuracy | best-of-n: gold best / last | d of best | PPO, no KL: best /"
    f" last | d of best | its proxy, last | PPO, beta {BETA}: best / last |",
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
  ]  # fmt: skip
  for name, one in found["proxies"].items():
    size, pairs = name.split("/")
    cells = [size, pairs, f"{one['accuracy']:.3f}"]
    for curve in ("best_of", "ppo", "ppo_kl"):
      best, last = one[curve]["best"], one[curve]["last"]
      cells.append(f"{best['gold']:.2f} / {last['gold']:.2f}")
      cells += [f"{math.sqrt(max(best['kl'], 0)):.1f}"] if curve != "ppo_kl" else []
      cells += [f"{last['proxy']:.1f}"] if curve == "ppo" else []
    lines.append("| " + " | ".join(cells) + " |")
  lines += ["", "| proxy | pairs | best-of-n a, b, R2 | PPO, no KL a, b, R2 |", "|---|--:|--:|--:|"]
  for name, one in found["proxies"].items():
    fits = [one[curve]["fit"]["gold"] for curve in ("best_of", "ppo")]
    cells = [
      f"{fit['a']:.2f}, {fit['b']:.2f}, {fit['r2']:.2f}" if fit else "too near" for fit in fits
    ]
    lines.append("| " + " | ".join([*name.split("/"), *cells]) + " |")
  lines += ["", f"| control, PPO with beta {BETA} | accuracy | KL | proxy | gold |",
            "|---|--:|--:|--:|--:|"]  # fmt: skip
  for name, one in found["controls"].items():
    accuracy = f"{one['accuracy']:.3f}" if "accuracy" in one else ""
    lines.append(
      f"| {name} | {accuracy} | {one['kl']:.2f} | {one['proxy']:.2f} | {one['gold']:.2f} |"
    )
  lines += ["", "| frontier, beta | DPO: KL, gold | PPO: KL, gold | PPO on gold: KL, gold |",
            "|--:|--:|--:|--:|"]  # fmt: skip
  for beta in BETAS:
    points = [found["frontier"][f"{kind}/{beta}"] for kind in ("dpo", "ppo", "gold")]
    cells = [f"{p['kl']:.1f}, {p['gold']:.2f}" for p in points]
    lines.append("| " + " | ".join([f"{beta:g}", *cells]) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
