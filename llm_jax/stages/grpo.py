"""GRPO, Dr. GRPO, DAPO, RLOO, REINFORCE++, GSPO, CISPO: score, advantage and loss, no critic."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.generate import Rollout, rollout_to_batch
from llm_jax.losses import objectives
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, labels, prompts, rewards, runs, training
from llm_jax.stages.online import OnlineFeed
from llm_jax.train import parallel
from llm_jax.types import Batch, Params, TrainState

_EVALUATION = 1_000_003  # Iterations of training never come so far: evaluation draws by other keys.


def run(
  cfg: config.Grpo,
  workdir: str,
  *,
  loss: Callable | None = None,
  score: Callable | None = None,
) -> TrainState:
  """Optimises the model of `cfg.init` for a score, several answers to a prompt at a time.

  Args:
    cfg: the configuration.
    workdir: where the run goes.
    loss: swaps the policy loss.
    score: swaps the score: (rewards.Answered) -> [B].
  """
  cfg.validate()
  policy_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.policy")
  place = parallel.make(cfg.mesh)
  collect = Collector.load(cfg, place, score)
  judged = prompts.load(cfg.eval_data, cfg.prepared)[: cfg.eval_questions] if cfg.eval_data else []
  runs.save_shape(workdir, collect.shape)
  objective = objectives.policy(
    training.decoder_apply(collect.model),
    policy_loss,
    kl_coef=cfg.kl_coef,
    kl_estimator=cfg.kl_estimator,
    entropy_coef=cfg.entropy_coef,
    temperature=cfg.sampling.temperature,
    aggregate=cfg.aggregate,
    length=cfg.sampling.max_new,
  )
  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=training.initializer(collect.model),
    loaded=collect.reference,
    feed=OnlineFeed(
      collect, rows=cfg.batch, epochs=cfg.epochs, seed=cfg.seed, max_approxkl=cfg.max_approxkl
    ),
    evaluate=(lambda params: collect.measure(params, judged)) if judged else None,
    place=place,
    row_tokens=cfg.prompt_length + cfg.sampling.max_new - 1,
  )


@dataclasses.dataclass(frozen=True)
class Collector:
  """One iteration's rollout: sample with the policy, score, label.

  Attributes:
    cfg: the configuration.
    tokenizer: of policy and reference.
    asked: prompts to draw from.
    place: where the trained state lives.
    model: the decoder of policy and reference.
    shape: its configuration.
    reference: its frozen parameters, as placed.
    scores: what answers are worth.
    label: what puts advantages in the batch.
  """

  cfg: config.Grpo
  tokenizer: Tokenizer
  asked: Sequence[prompts.Asked]
  place: parallel.Placement
  model: Transformer
  shape: config.Model
  reference: Params
  scores: rewards.Scores
  label: Callable

  @classmethod
  def load(cls, cfg: config.Grpo, place: parallel.Placement, score: Callable | None) -> "Collector":
    """Reads what `cfg` names, and fixes the units of reward models on the reference's answers.

    Raises:
      UserError: if something is missing or does not fit.
    """
    tokenizer = runs.tokenizer(cfg.prepared)
    size = tokenizer.vocab_size
    start = runs.load(cfg.init, "init", vocab_size=size)
    scores = rewards.Scores.load(score or cfg.score, place, size, cfg.prepared)
    asked = prompts.load(cfg.data, cfg.prepared)
    reference = training.placed(place, start.model, start.params)
    label = labels.group(cfg)
    made = cls(cfg, tokenizer, asked, place, start.model, start.shape, reference, scores, label)
    if scores.models:
      rows = made._choose(_EVALUATION)
      scores.fit(jax.device_get(rollout_to_batch(made._sample(reference, rows, _EVALUATION))))
    return made

  def __call__(self, state: TrainState, iteration: int, carried: dict) -> tuple[Batch, dict]:
    """Returns (host batch, metrics)."""
    params = self.place.unreplicate(state.params)
    rows = self._choose(iteration)
    rollout = jax.device_get(self._sample(params, rows, iteration))
    batch = jax.device_get(rollout_to_batch(rollout))
    batch |= jax.device_get(self._annotate(params, batch))
    scores_B, means = self._score(rows, rollout, batch)
    ended_B = rollout.ended.astype(np.float32)
    labelled, metrics = jax.device_get(self.label(batch, scores_B, ended_B))
    metrics = {name: float(value) for name, value in metrics.items()} | means
    # What sampler and learner disagree on; both are exact here, so this is rounding.
    gap_BT = np.abs(batch["sampler_logps"] - batch["old_logps"]) * batch["mask"]
    metrics["rollout/logp_gap"] = float(gap_BT.max())
    return labelled, metrics

  def measure(self, params: Params, judged: Sequence[prompts.Asked]) -> dict[str, float]:
    """The mean scores of the likeliest answers to held-out prompts."""
    made = dataclasses.replace(self, asked=judged)
    params, count = self.place.unreplicate(params), self.cfg.prompts
    totals: dict[str, float] = {}
    for first in range(0, len(judged), count):
      # The last call is filled up, so that there is one shape to compile.
      rows = np.minimum(np.arange(first, first + count), len(judged) - 1)
      rollout = jax.device_get(made._sample(params, rows, _EVALUATION, greedy=True))
      batch = jax.device_get(rollout_to_batch(rollout))
      kept = min(count, len(judged) - first)
      rollout, batch = jax.tree.map(lambda x, n=kept: x[:n], (rollout, batch))
      scores_B, means = made._score(rows[:kept], rollout, batch)
      for name, mean in (means | {"score": float(scores_B.mean())}).items():
        totals[name] = totals.get(name, 0.0) + mean * kept
    return {name: total / len(judged) for name, total in totals.items()}

  def _choose(self, iteration: int) -> np.ndarray:
    """The prompts of an iteration: none twice, unless there are too few."""
    rng = np.random.default_rng([self.cfg.seed, iteration])
    again = self.cfg.prompts > len(self.asked)
    return rng.choice(len(self.asked), self.cfg.prompts, replace=again)

  def _sample(
    self, policy: Params, rows: np.ndarray, iteration: int, greedy: bool = False
  ) -> Rollout:
    cfg, samples = self.cfg, 1 if greedy else self.cfg.samples
    tokens, mask = batches.prompt_batch([self._prompts[i] for i in rows], cfg.prompt_length)
    root = jax.random.fold_in(jax.random.key(cfg.seed), iteration)
    keys = jax.random.split(root, len(rows) * samples)
    sampling = dataclasses.replace(cfg.sampling, temperature=0.0) if greedy else cfg.sampling
    return answers.roll(
      self.model, policy, self.tokenizer, tokens, mask, keys, sampling,
      samples=samples, place=self.place,
    )  # fmt: skip

  def _score(
    self, rows: np.ndarray, rollout: Rollout, batch: Batch
  ) -> tuple[np.ndarray, dict[str, float]]:
    said = answers.texts(self.tokenizer, rollout)
    asked = [self.asked[i] for i in rows for _ in range(len(said) // len(rows))]
    return self.scores([a.messages for a in asked], said, [a.truth for a in asked], batch)

  @functools.cached_property
  def _prompts(self) -> list[list[int]]:
    return prompts.tokens(self.tokenizer, self.asked, self.cfg.prompt_length)

  @functools.cached_property
  def _annotate(self):
    logps = answers.logps_fn(self.model, self.cfg.sampling.temperature)

    @jax.jit
    def annotate(params: Params, reference: Params, batch: Batch) -> Batch:
      return {"old_logps": logps(params, batch), "ref_logps": logps(reference, batch)}

    over = self.place.under(annotate)
    return lambda params, batch: over(params, self.reference, self.place.rows(batch))
