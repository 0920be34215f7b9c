"""A policy at work: prompts are asked, answers drawn and scored. PPO and GRPO share it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from llm_jax import config
from llm_jax.data import batches
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.generate import Rollout, rollout_to_batch
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, prompts, rewards
from llm_jax.train import parallel
from llm_jax.types import Batch, Params

EVALUATION = 1_000_003  # Iterations of training never come so far: evaluation draws by other keys.


@dataclasses.dataclass(frozen=True)
class Actor:
  """What draws answers, and what they are worth.

  Attributes:
    cfg: of the stage.
    tokenizer: of the model.
    asked: prompts to draw from.
    judged: held-out prompts of `cfg.eval_data`; none: there is none.
    place: where the trained state lives.
    model: the decoder.
    scores: what answers are worth.
  """

  cfg: config.Online
  tokenizer: Tokenizer
  asked: Sequence[prompts.Asked]
  judged: Sequence[prompts.Asked]
  place: parallel.Placement
  model: Transformer
  scores: rewards.Scores

  def sample(
    self,
    policy: Params,
    rows: np.ndarray,
    iteration: int,
    *,
    samples: int = 1,
    greedy: bool = False,
    value: Params | None = None,
  ) -> Rollout:
    """Draws `samples` answers to each prompt of `rows`, side by side; host arrays.

    `value` is a head on the policy's states, as `sample` takes it.
    """
    cfg = self.cfg
    tokens, mask = batches.prompt_batch([self.prompts[i] for i in rows], cfg.prompt_length)
    root = jax.random.fold_in(jax.random.key(cfg.seed), iteration)
    keys = jax.random.split(root, len(rows) * samples)
    sampling = dataclasses.replace(cfg.sampling, temperature=0.0) if greedy else cfg.sampling
    rollout = answers.roll(
      self.model, policy, self.tokenizer, tokens, mask, keys, sampling,
      samples=samples, place=self.place, value=value,
    )  # fmt: skip
    return jax.device_get(rollout)

  def score(
    self, rows: np.ndarray, rollout: Rollout, batch: Batch
  ) -> tuple[np.ndarray, dict[str, float]]:
    """Returns [B] scores of a rollout to the prompts of `rows`, and the mean of each term."""
    said = answers.texts(self.tokenizer, rollout)
    asked = [self.asked[i] for i in rows for _ in range(len(said) // len(rows))]
    return self.scores([a.messages for a in asked], said, [a.truth for a in asked], batch)

  def evaluation(self, count: int) -> Callable[[Params], dict[str, float]] | None:
    """Returns parameters as placed -> what `measure` says of `judged`; None: there is nothing."""
    if not self.judged:
      return None
    return lambda params: self.measure(self.place.unreplicate(params), self.judged, count)

  def measure(
    self, policy: Params, judged: Sequence[prompts.Asked], count: int
  ) -> dict[str, float]:
    """The mean scores of the likeliest answers to held-out prompts, `count` of them a call."""
    made = dataclasses.replace(self, asked=judged)
    totals: dict[str, float] = {}
    for first in range(0, len(judged), count):
      # The last call is filled up, so that there is one shape to compile.
      rows = np.minimum(np.arange(first, first + count), len(judged) - 1)
      rollout = made.sample(policy, rows, EVALUATION, greedy=True)
      batch = jax.device_get(rollout_to_batch(rollout))
      kept = min(count, len(judged) - first)
      rollout, batch = jax.tree.map(lambda x, n=kept: x[:n], (rollout, batch))
      scores_B, means = made.score(rows[:kept], rollout, batch)
      for name, mean in (means | {"score": float(scores_B.mean())}).items():
        totals[name] = totals.get(name, 0.0) + mean * kept
    return {name: total / len(judged) for name, total in totals.items()}

  @functools.cached_property
  def prompts(self) -> list[list[int]]:
    """The tokens of each prompt."""
    return prompts.tokens(self.tokenizer, self.asked, self.cfg.prompt_length)


def logp_gap(batch: Batch) -> float:
  """The most by which sampler and learner disagree on a token, in nats; it should be rounding."""
  return float((np.abs(batch["sampler_logps"] - batch["old_logps"]) * batch["mask"]).max())
