"""Scores of sampled answers for online stages: a reward model's, standardised on the reference."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

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
  """Returns a jitted (params, LM batch of whole conversations) -> [B] raw scores."""
  apply = reward.scorer_apply(scorer)
  return jax.jit(lambda params, batch: apply(params, whole(batch), jax.random.key(0)).scores)


def standard(score: Callable[[Params, Batch], jax.Array], params: Params, batch: Batch) -> Normal:
  """Mean and standard deviation of the scores of a batch of reference answers."""
  scores = answers.in_rows(lambda part: score(params, part), batch)
  return Normal(float(scores.mean()), float(max(scores.std(), 1e-6)))


def whole(batch: Batch) -> Batch:
  """An LM batch whose inputs hold the last target too, the turn end that a score is read at.

  A rollout's tokens stop one short of its targets; a reward model reads the answer to its end.
  """
  xp = np if isinstance(batch["tokens"], np.ndarray) else jax.numpy
  last = {
    "tokens": batch["targets"][:, -1:],
    "positions": batch["positions"][:, -1:] + 1,
    "segments": batch["segments"][:, -1:] * (batch["mask"][:, -1:] > 0),
  }
  return {k: xp.concatenate([batch[k], last[k].astype(batch[k].dtype)], 1) for k in last}
