"""A model that is asked, and what its answers are worth: rejection sampling and online DPO."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax import config
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, prompts, rewards, runs, training
from llm_jax.stages.prompts import Asked
from llm_jax.train import parallel
from llm_jax.types import Params

_UNITS = 1_000_003  # What is drawn to fix the units of scores; no iteration comes so far.


class Said(NamedTuple):
  """Answers to Q prompts, n to each.

  Attributes:
    drawn: texts, and arrays of Q * n rows.
    scores: [Q, n] float32.
    means: of each term of the score, as `Scores` names it.
  """

  drawn: answers.Drawn
  scores: np.ndarray
  means: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Asker:
  """What draws answers of a policy and scores them.

  Attributes:
    cfg: of the stage.
    tokenizer: of the policy.
    model: the policy's decoder.
    shape: its configuration.
    place: where parameters live.
    scores: what answers are worth.
    asked: prompts of the stage.
    judged: held-out prompts of `cfg.eval_data`; none: there is none.
  """

  cfg: config.Rejection | config.OnlineDpo
  tokenizer: Tokenizer
  model: Transformer
  shape: config.Model
  place: parallel.Placement
  scores: rewards.Scores
  asked: Sequence[Asked]
  judged: Sequence[Asked]

  @classmethod
  def load(
    cls,
    cfg: config.Rejection | config.OnlineDpo,
    workdir: str,
    place: parallel.Placement,
    score: Callable | None = None,
  ) -> tuple["Asker", Params]:
    """Returns what `cfg` names, and the parameters of `cfg.init`, as placed.

    The units of reward models are fixed on answers of `cfg.init`.

    Raises:
      UserError: if something is missing or does not fit.
    """
    tokenizer = runs.tokenizer(cfg.prepared)
    start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
    made = cls(
      cfg,
      tokenizer,
      start.model,
      start.shape,
      place,
      scores_of(cfg, score or cfg.score, place, tokenizer, "config.score"),
      *prompts.both(cfg, workdir),
    )
    params = training.placed(place, start.model, start.params)
    made.fit(made.scores, params)
    return made, params

  def fit(self, scores: rewards.Scores, params: Params) -> None:
    """Fixes the units of a score's reward models on answers of `params`."""
    if scores.models:
      rows = [self.asked[i] for i in self.choose([_UNITS], self.cfg.prompts)]
      scores.fit(self.draw(params, rows, [_UNITS]).batch)

  def choose(self, seeds: Sequence[int], count: int) -> np.ndarray:
    """The numbers of `count` prompts, drawn by `seeds`: none twice, unless there are too few."""
    rng = np.random.default_rng([self.cfg.seed, *seeds])
    return rng.choice(len(self.asked), count, replace=count > len(self.asked))

  def draw(
    self,
    params: Params,
    asked: Sequence[Asked],
    seeds: Sequence[int],
    *,
    samples: int = 0,
    first: int = 0,
    greedy: bool = False,
  ) -> answers.Drawn:
    """Draws answers, `cfg.samples` to each prompt.

    Args:
      params: of the policy, as placed.
      asked: the prompts.
      seeds: of the draws, with `cfg.seed`.
      samples: in the place of `cfg.samples`.
      first: number of the first prompt among all that have these seeds.
      greedy: the likeliest answer instead, one to a prompt.
    """
    cfg, count = self.cfg, 1 if greedy else samples if samples else self.cfg.samples
    sampling = dataclasses.replace(cfg.sampling, temperature=0.0) if greedy else cfg.sampling
    return answers.draw(
      self.model, params, self.tokenizer,
      prompts.tokens(self.tokenizer, asked, cfg.prompt_length),
      sampling,
      seed=seed_of(cfg.seed, seeds), samples=count, rows=cfg.prompts * count, place=self.place,
      length=cfg.prompt_length, first=first,
    )  # fmt: skip

  def score(
    self, scores: rewards.Scores, asked: Sequence[Asked], drawn: answers.Drawn
  ) -> tuple[np.ndarray, dict[str, float]]:
    """Returns [Q, n] scores of answers, and the mean of each term."""
    said = [answer for several in drawn.answers for answer in several]
    count = len(said) // len(asked)
    rows = [row for row in asked for _ in range(count)]
    found_B, means = scores([r.messages for r in rows], said, [r.truth for r in rows], drawn.batch)
    return found_B.reshape(-1, count), means

  def ask(self, params: Params, asked: Sequence[Asked], seeds: Sequence[int], **how) -> Said:
    """Draws answers and scores them; the arguments are those of `draw`."""
    drawn = self.draw(params, asked, seeds, **how)
    return Said(drawn, *self.score(self.scores, asked, drawn))

  def measure(self, params: Params, judged: Sequence[Asked]) -> dict[str, float]:
    """The mean scores of the likeliest answers to held-out prompts; parameters as trained."""
    params, count = self.place.unreplicate(params), self.cfg.prompts
    totals: dict[str, float] = {}
    for first in range(0, len(judged), count):
      part = judged[first : first + count]
      said = self.ask(params, part, [_UNITS], greedy=True)
      for name, mean in (said.means | {"score": float(said.scores.mean())}).items():
        totals[name] = totals.get(name, 0.0) + mean * len(part)
    return {name: total / len(judged) for name, total in totals.items()}

  def measurer(self) -> Callable[[Params], dict[str, float]] | None:
    """Returns parameters -> the scores of held-out prompts; None if there is none."""
    if not self.judged:
      return None
    return lambda params: self.measure(params, self.judged)


def scores_of(
  cfg: config.Stage,
  text: str | Callable,
  place: parallel.Placement,
  tokenizer: Tokenizer,
  field: str,
) -> rewards.Scores:
  """Returns the score that a field of a stage's config names."""
  return rewards.Scores.load(text, place, tokenizer.vocab_size, cfg.prepared, field)


def seed_of(seed: int, more: Sequence[int]) -> int:
  """Returns one seed of several numbers, below 2^32."""
  return int(np.random.SeedSequence([seed, *more]).generate_state(1)[0])
