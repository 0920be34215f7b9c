"""Scaling laws: the loss of N parameters after D tokens, and what a budget of FLOPs is best for.

Hoffmann et al. 2022, arXiv:2203.15556 ("Chinchilla") have three approaches, all here: the lower
envelope of training curves (`envelope`), parabolas through runs of equal FLOPs (`isoflop`), and a
law in closed form, L(N, D) = E + A / N^alpha + B / D^beta (`fit`). Besiroglu et al. 2024,
arXiv:2404.10102, showed that the third was published with an optimizer that had stopped early.
Losses are in nats per token; C = 6 N D FLOPs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

FLOPS = 6  # Of training, per parameter and token (Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1).
RULE = 20  # Tokens per parameter: what is left of Chinchilla in most people's memory.
_EXPONENTS = np.linspace(0.05, 1.5, 30)  # Where fits start from.
_STARTS = 6  # The best of them are followed to the end.


class Law(NamedTuple):
  """L(N, D) = E + A / N^alpha + B / D^beta, nats per token.

  Attributes:
    E: what no model can be without, the entropy of the text.
    A: of the model's size.
    B: of the number of tokens.
    alpha: exponent of the model's size.
    beta: exponent of the number of tokens.
  """

  E: float
  A: float
  B: float
  alpha: float
  beta: float


PUBLISHED = {
  "hoffmann": Law(1.69, 406.4, 410.7, 0.34, 0.28),  # arXiv:2203.15556, eq. 10.
  "besiroglu": Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658),  # arXiv:2404.10102, table 1.
}
# Parameters and training tokens of models that were published: arXiv:2005.14165, 2112.11446,
# 2203.15556, 2307.09288.
KNOWN = {
  "GPT-3": (174.6e9, 300e9),
  "Gopher": (280e9, 300e9),
  "Chinchilla": (70e9, 1.4e12),
  "Llama 2 7B": (7e9, 2e12),
  "Llama 2 70B": (70e9, 2e12),
}


class PowerLaw(NamedTuple):
  """y = factor * x^exponent."""

  factor: float
  exponent: float

  def __call__(self, x: np.ndarray | float) -> np.ndarray | float:
    """Returns y."""
    return self.factor * np.asarray(x, float) ** self.exponent


class Frontier(NamedTuple):
  """What a budget of C FLOPs is best spent on.

  Attributes:
    params: N of C.
    tokens: D of C.
    budgets: [K] FLOPs of the points that the two go through.
    best: [K] N of these points.
    loss: [K] their losses.
  """

  params: PowerLaw
  tokens: PowerLaw
  budgets: np.ndarray
  best: np.ndarray
  loss: np.ndarray


def loss(law: Law, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray | float:
  """Returns L(N, D) in nats per token."""
  return law.E + law.A * np.power(params, -law.alpha) + law.B * np.power(tokens, -law.beta)


def optimal(law: Law, flops: np.ndarray | float) -> tuple:
  """Returns (N, D) of least loss with 6 N D = `flops` (arXiv:2203.15556, eq. 4)."""
  ratio = law.alpha * law.A / (law.beta * law.B)
  product = np.asarray(flops, float) / FLOPS
  params = ratio ** (1 / (law.alpha + law.beta)) * product ** (law.beta / (law.alpha + law.beta))
  return params, product / params


def rule(flops: np.ndarray | float, ratio: float = RULE) -> tuple:
  """Returns (N, D) with 6 N D = `flops` and D = `ratio` N."""
  params = np.sqrt(np.asarray(flops, float) / (FLOPS * ratio))
  return params, ratio * params


def tokens_for(law: Law, params: float, target: float) -> float:
  """Tokens after which a model of N parameters has the loss `target`; inf: it never has.

  What a small model costs that is to be as good as a large one: it is trained on more.
  """
  left = target - law.E - law.A * params**-law.alpha
  return float((law.B / left) ** (1 / law.beta)) if left > 0 else float("inf")


def flops_for(law: Law, target: float) -> float:
  """The least FLOPs that reach the loss `target`; inf: none do.

  Raises:
    ValueError: if the law has no exponents above 0.
  """
  if min(law.alpha, law.beta) <= 0:
    raise ValueError(f"exponents must be above 0, got {law}")
  if target <= law.E:
    return float("inf")
  # At the optimum alpha A N^-alpha = beta B D^-beta: each term is a fixed share of what is left.
  left = (target - law.E) / (law.alpha + law.beta)
  params = (law.A / (left * law.beta)) ** (1 / law.alpha)
  tokens = (law.B / (left * law.alpha)) ** (1 / law.beta)
  return float(FLOPS * params * tokens)


def fit(
  params: np.ndarray | Sequence[float],
  tokens: np.ndarray | Sequence[float],
  loss: np.ndarray | Sequence[float],
  delta: float = 1e-3,
) -> Law:
  """Fits the law to final losses of runs, each trained to the end of its own schedule.

  Minimises the sum of Huber losses of log L (arXiv:2203.15556, sec. 3.3) by L-BFGS, from the best
  points of a grid over both exponents; there E, A and B follow from linear least squares.

  Args:
    params: [R] N.
    tokens: [R] D.
    loss: [R] nats per token.
    delta: residuals of log L above it count linearly.

  Raises:
    ValueError: if there are fewer than five runs, or a number is not above 0.
  """
  runs = _checked(params, tokens, loss)
  return _fit(*(np.log(x) for x in runs), np.ones(len(runs[0])), delta, None)


def bootstrap(
  params: np.ndarray | Sequence[float],
  tokens: np.ndarray | Sequence[float],
  loss: np.ndarray | Sequence[float],
  samples: int = 200,
  delta: float = 1e-3,
  seed: int = 0,
) -> np.ndarray:
  """Fits to runs that are drawn again with replacement; returns [samples, 5], a `Law` each row.

  Raises:
    ValueError: as in `fit`.
  """
  runs = [np.log(x) for x in _checked(params, tokens, loss)]
  whole = _fit(*runs, np.ones(len(runs[0])), delta, None)
  random = np.random.default_rng(seed)
  counts = random.multinomial(len(runs[0]), np.full(len(runs[0]), 1 / len(runs[0])), samples)
  return np.array([_fit(*runs, weights, delta, whole) for weights in counts.astype(float)])


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[Law, Law]:
  """Returns the ends of the middle `level` of `bootstrap`'s laws, number by number."""
  low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return Law(*low), Law(*high)


def r_squared(found: np.ndarray, predicted: np.ndarray) -> float:
  """1 - the squares of what is left over those around the mean; of equal values 1 or 0."""
  found = np.asarray(found, float)
  left, spread = np.sum((found - predicted) ** 2), np.sum((found - found.mean()) ** 2)
  return float(1 - left / spread) if spread > 0 else float(left == 0)


def isoflop(
  params: np.ndarray | Sequence[float],
  tokens: np.ndarray | Sequence[float],
  loss: np.ndarray | Sequence[float],
  *,
  within: float = 0.1,
) -> Frontier:
  """Approach 2: at each budget a parabola of L over log N; its lowest points give the frontier.

  Budgets are groups of runs whose 6 N D lie within a factor of 1 + `within` of their neighbours'. A
  group counts if it has three sizes and its parabola opens upwards, with its lowest point between
  the smallest and the largest size.

  Raises:
    ValueError: as in `fit`, or if fewer than two groups count.
  """
  N, D, L = _checked(params, tokens, loss)
  flops = FLOPS * N * D
  order = np.argsort(flops)
  cuts = np.flatnonzero(np.diff(np.log(flops[order])) > np.log1p(within)) + 1
  points = []
  for group in np.split(order, cuts):
    x = np.log(N[group])
    if len(np.unique(x)) < 3:
      continue
    # Around the middle, so that the squares are well conditioned.
    middle = x.mean()
    bend, slope, height = np.polyfit(x - middle, L[group], 2)
    lowest = middle - slope / (2 * bend) if bend > 0 else np.inf
    if x.min() <= lowest <= x.max():
      bottom = height - slope**2 / (4 * bend)
      points.append((np.exp(np.log(flops[group]).mean()), np.exp(lowest), bottom))
  if len(points) < 2:
    raise ValueError(
      f"{len(points)} groups of runs of equal FLOPs have a parabola with a lowest point: two or"
      " more are needed, each of three sizes with the best between the others"
    )
  return _frontier(points)


def envelope(
  params: Sequence[float],
  tokens: Sequence[np.ndarray],
  loss: Sequence[np.ndarray],
  *,
  points: int = 50,
) -> Frontier:
  """Approach 1: at each number of FLOPs, the training curve that is lowest there.

  A budget counts where curves of three sizes reach it, and neither the smallest nor the largest of
  them is the best: there a size beyond them might be better.

  Args:
    params: [M] N of each model.
    tokens: [M] arrays of the tokens at which its loss was taken, ascending.
    loss: [M] arrays of these losses, smoothed if they are noisy.
    points: budgets, evenly spaced in log C.

  Raises:
    ValueError: if fewer than two budgets count, or a number is not above 0.
  """
  if not all(n > 0 and np.min(d) > 0 for n, d in zip(params, tokens, strict=True)):
    raise ValueError("params and tokens must be above 0")
  flops = [FLOPS * n * np.asarray(d, float) for n, d in zip(params, tokens, strict=True)]
  ends = min(f[0] for f in flops), max(f[-1] for f in flops)
  found = []
  for budget in np.geomspace(*ends, points):
    there = [i for i, f in enumerate(flops) if f[0] <= budget <= f[-1]]
    at = {i: np.interp(np.log(budget), np.log(flops[i]), loss[i]) for i in there}
    sizes = sorted({params[i] for i in there})
    if len(sizes) < 3:
      continue
    best = min(at, key=lambda i: at[i])
    if sizes[0] < params[best] < sizes[-1]:
      found.append((budget, params[best], at[best]))
  if len(found) < 2:
    raise ValueError(f"{len(found)} budgets have a best size between others: two are needed")
  return _frontier(found)


def kaplan(flops: np.ndarray | float) -> tuple:
  """(N, D) of least loss by Kaplan et al. 2020, arXiv:2001.08361, sec. 6.1: N = 1.3e9 C^0.73.

  C in PF-days; N without embeddings, and D is C / (6 N). Chinchilla's sizes grow as C^0.5.
  """
  flops = np.asarray(flops, float)
  params = 1.3e9 * (flops / (1e15 * 86400)) ** 0.73
  return params, flops / (FLOPS * params)


def _checked(*arrays) -> list[np.ndarray]:
  found = [np.asarray(x, float) for x in arrays]
  sizes = {x.shape for x in found}
  if len(sizes) > 1 or found[0].ndim != 1 or len(found[0]) < 5:
    raise ValueError(f"params, tokens and loss must be five runs or more each, got {sizes}")
  if not all(np.isfinite(x).all() and (x > 0).all() for x in found):
    raise ValueError("params, tokens and loss must be finite and above 0")
  return found


def _frontier(points: Sequence[tuple[float, float, float]]) -> Frontier:
  budgets, best, losses = np.array(sorted(points)).T
  exponent, factor = np.polyfit(np.log(budgets), np.log(best), 1)
  params = PowerLaw(float(np.exp(factor)), float(exponent))
  tokens = PowerLaw(1 / (FLOPS * params.factor), 1 - params.exponent)
  return Frontier(params, tokens, budgets, best, losses)


def _fit(log_n, log_d, log_l, weights, delta: float, start: Law | None) -> Law:
  """The best of several descents; with `start`, of one from there."""
  # Centred: A N^-alpha = exp(a - alpha (log N - mean)), so that a and alpha hardly pull together.
  n, d = log_n - log_n.mean(), log_d - log_d.mean()
  if start is None:
    starts = _starts(n, d, log_l, weights)
  else:
    a = np.log(start.A) - start.alpha * log_n.mean()
    b = np.log(start.B) - start.beta * log_d.mean()
    starts = [np.array([np.log(start.E), a, b, start.alpha, start.beta])]

  def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
    terms = np.stack([np.full_like(n, x[0]), x[1] - x[3] * n, x[2] - x[4] * d])
    top = terms.max(axis=0)
    weight = np.exp(terms - top)
    total = weight.sum(axis=0)
    left = top + np.log(total) - log_l
    small = np.abs(left) <= delta
    value = np.where(small, left**2 / 2, delta * (np.abs(left) - delta / 2))
    slope = weights * np.clip(left, -delta, delta) * (weight / total)
    grad = [*slope.sum(axis=1), -(slope[1] * n).sum(), -(slope[2] * d).sum()]
    # In units of delta^2, or the descent would stop where it starts.
    return float((weights * value).sum()) / delta**2, np.array(grad) / delta**2

  options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-8}
  bounds = [(-10, 5), (-60, 20), (-60, 20), (1e-3, 5), (1e-3, 5)]
  found = [
    optimize.minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    for x in starts
  ]
  e, a, b, alpha, beta = min(found, key=lambda one: one.fun).x
  a, b = a + alpha * log_n.mean(), b + beta * log_d.mean()
  return Law(*(float(x) for x in (np.exp(e), np.exp(a), np.exp(b), alpha, beta)))


def _starts(n: np.ndarray, d: np.ndarray, log_l: np.ndarray, weights: np.ndarray) -> list:
  """The best points of a grid over both exponents, the rest by least squares of relative error."""
  losses, scale = np.exp(log_l), np.sqrt(weights)
  found = []
  for alpha in _EXPONENTS:
    for beta in _EXPONENTS:
      terms = np.stack([np.ones_like(n), np.exp(-alpha * n), np.exp(-beta * d)], axis=1)
      factors, left = optimize.nnls(terms * (scale / losses)[:, None], scale)
      found.append((left, alpha, beta, np.maximum(factors, 1e-3)))
  found.sort(key=lambda one: one[0])
  return [np.array([*np.log(factors), a, b]) for _, a, b, factors in found[:_STARTS]]
