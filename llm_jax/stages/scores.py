"""Scores of sampled answers for online stages: a reward model's, standardised on the reference."""

import dataclasses
from collections.abc import Callable

import jax

from llm_jax.models import heads
from llm_jax.stages import answers, reward
from llm_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Normal:
  """Mean and spread of raw scores on the reference's answers; scores are given in its units.

  Ziegler et al. 2019 (arXiv:1909.08593, sec. 2.1) fix the same free gain and offset, so that a
  KL coefficient means the same for every reward model.
  """

  mean: float
  std: float

  def rescale(self, params: Params) -> Params:
    """A reward model's parameters whose scores come out in these units (a critic's start)."""
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    head = {"kernel": kernel / self.std, "bias": (bias - self.mean) / self.std}
    return {"decoder": params["decoder"], "head": head}


def reward_model(scorer: heads.Scorer) -> Callable[[Params, Batch], jax.Array]:
  """Returns a jitted (params, rollout LM batch) -> [B] raw scores at the turn ends."""
  apply = reward.scorer_apply(scorer)
  return jax.jit(lambda params, batch: apply(params, batch, jax.random.key(0)).scores)


def standard(
  score: Callable[[Params, Batch], jax.Array], params: Params, batch: Batch, rows: int
) -> Normal:
  """Mean and standard deviation of the scores of reference answers, `rows` of them a call."""
  scores = answers.in_rows(lambda part: score(params, part), batch, rows)
  return Normal(float(scores.mean()), float(max(scores.std(), 1e-6)))
