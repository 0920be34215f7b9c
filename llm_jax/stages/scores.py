"""Scores of answers: a reward model's, raw or in units of the reference's answers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.models import heads
from llm_jax.stages import answers
from llm_jax.types import Apply, Batch, Outputs, Params


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


def scorer_apply(scorer: heads.Scorer) -> Apply:
  """Binds a reward model for objectives on scores: one score a row, read at the turn's end."""

  def apply(params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    return Outputs(scores=scorer.apply({"params": params}, **whole(batch)))

  return apply


def whole(batch: Batch) -> Batch:
  """The rows of an LM batch [B, T] with their last targets as inputs too: [B, T + 1].

  An LM batch's inputs stop one short of its targets, so the token that ends an answer is in none
  of them; a reward model must see it. One segment a row, padded on either side.
  """
  real_BT, said_BT = batch["segments"] > 0, batch["mask"] > 0
  last_BT = jnp.pad(real_BT[:, 1:], ((0, 0), (0, 1))) | (real_BT & said_BT)
  real_BL = jnp.concatenate([real_BT[:, :1], last_BT], 1)
  return {
    "tokens": jnp.concatenate([batch["tokens"][:, :1], batch["targets"]], 1),
    "positions": jnp.maximum(jnp.cumsum(real_BL, 1) - 1, 0),
    "segments": real_BL.astype(jnp.int32),
  }


def reward_model(scorer: heads.Scorer) -> Callable[[Params, Batch], jax.Array]:
  """Returns a jitted (params, rollout LM batch) -> [B] raw scores at the turn ends."""
  apply = scorer_apply(scorer)
  return jax.jit(lambda params, batch: apply(params, batch, jax.random.key(0)).scores)


def standard(score: Callable[[Batch], np.ndarray], batch: Batch, rows: int) -> Normal:
  """Mean and standard deviation of the scores of reference answers, `rows` of them a call."""
  scores = answers.in_rows(score, batch, rows)
  return Normal(float(scores.mean()), float(max(scores.std(), 1e-6)))
