"""Several sources in fixed proportions of tokens, none of them repeated more than its cap.

A plan is arithmetic on sizes alone, so it can be read before anything runs; `mixed` carries it out.
"""

import dataclasses
from collections.abc import Mapping

import grain

from llm_jax.data import packing
from llm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Share:
  """One source's part of a mixture.

  Attributes:
    weight: fraction of the mixture's tokens that was asked for.
    share: fraction that it gets.
    tokens: tokens that it gives.
    epochs: passes over the source, tokens / its size.
    capped: whether its cap took effect.
  """

  weight: float
  share: float
  tokens: float
  epochs: float
  capped: bool


def plan(
  sizes: Mapping[str, int],
  weights: Mapping[str, float],
  tokens: float,
  max_epochs: float | Mapping[str, float] = 4.0,
) -> dict[str, Share]:
  """Divides `tokens` among sources by weight; what caps leave over goes to the others, by weight.

  Four epochs are about as good as fresh data (arXiv:2305.16264), hence the default cap.

  Args:
    sizes: tokens of each source.
    weights: relative weight of each source, > 0; they need not add up to 1.
    tokens: wanted in all.
    max_epochs: cap on the passes over each source, or over all of them.

  Returns:
    A Share of each source, in the order of `weights`; tokens add up to `tokens`.

  Raises:
    UserError: for a weight without a source or the reverse, a weight <= 0, an empty source, or if
      all caps together give fewer tokens than wanted.
  """
  _check(sizes, weights, tokens)
  caps = {
    name: size * (max_epochs[name] if isinstance(max_epochs, Mapping) else max_epochs)
    for name, size in sizes.items()
  }
  if sum(caps.values()) < tokens:
    raise UserError(
      f"{tokens:.0f} tokens are wanted, but all sources at their epoch caps give "
      f"{sum(caps.values()):.0f}: raise max_epochs, add data, or train on fewer tokens"
    )
  total = sum(weights.values())
  given: dict[str, float] = {}
  while True:
    # Sources at their cap are settled; the rest share what remains, which may cap more of them.
    open_ = {name: weight for name, weight in weights.items() if name not in given}
    left = tokens - sum(given.values())
    parts = {name: left * weight / sum(open_.values()) for name, weight in open_.items()}
    over = {name: caps[name] for name, part in parts.items() if part > caps[name]}
    if not over:
      break
    given |= over
  return {
    name: Share(
      weight=weight / total,
      share=(given | parts)[name] / tokens,
      tokens=(given | parts)[name],
      epochs=(given | parts)[name] / sizes[name],
      capped=name in given,
    )
    for name, weight in weights.items()
  }


def mixed(
  sources: Mapping[str, packing.Chunks], shares: Mapping[str, Share], seed: int = 0
) -> grain.MapDataset:
  """Returns the endless mixture of `sources`, for `packing.pack`.

  Grain's mix counts items, a plan counts tokens: a source of long items gets fewer of them. Every
  source has its own order in each of its epochs. The caps hold as long as no more than the plan's
  tokens are read.

  Args:
    sources: what `shares` were planned for; a size is `Chunks.predictions`.
    shares: from `plan`.
    seed: of the orders.

  Raises:
    ValueError: if the names differ.
  """
  if set(sources) != set(shares):
    raise ValueError(f"sources {sorted(sources)} and shares {sorted(shares)} must match")
  datasets, weights = [], []
  for i, (name, share) in enumerate(shares.items()):
    source = sources[name]
    # Sources of one size would else be read in one and the same order.
    datasets.append(packing.shuffled(source, seed * len(shares) + i, epochs=-1))
    weights.append(share.share * len(source) / source.predictions)
  return grain.MapDataset.mix(datasets, weights)


def table(shares: Mapping[str, Share]) -> str:
  """Returns the plan as lines for people: share of tokens, tokens, effective epochs."""
  width = max(len("source"), *map(len, shares))
  lines = [f"{'source':<{width}}  asked %  gets %        tokens  epochs"]
  for name, s in shares.items():
    lines.append(
      f"{name:<{width}}  {100 * s.weight:7.2f} {100 * s.share:7.2f} {s.tokens:13,.0f} "
      f"{s.epochs:7.2f}{'  (capped)' if s.capped else ''}"
    )
  return "\n".join(lines)


def _check(sizes: Mapping[str, int], weights: Mapping[str, float], tokens: float) -> None:
  if set(sizes) != set(weights) or not weights:
    raise UserError(
      f"every source needs a weight: there are sources {sorted(sizes)}, weights {sorted(weights)}"
    )
  for name in weights:
    if not weights[name] > 0:
      raise UserError(f"the weight of source {name!r} must be above 0, got {weights[name]}")
    if not sizes[name] > 0:
      raise UserError(f"source {name!r} is empty: remove it from the mixture")
  if not tokens > 0:
    raise UserError(f"a mixture needs tokens to divide, got {tokens}")
