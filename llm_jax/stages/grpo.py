"""GRPO, Dr. GRPO, DAPO, RLOO, REINFORCE++, GSPO, CISPO: score, advantage and loss, no critic."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.generate import rollout_to_batch
from llm_jax.losses import objectives
from llm_jax.stages import answers, labels, prompts, rewards, runs, training
from llm_jax.stages.actor import EVALUATION, Actor, logp_gap
from llm_jax.stages.online import OnlineFeed
from llm_jax.train import parallel
from llm_jax.types import Batch, Params, TrainState


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
  collect = Collector.load(cfg, workdir, place, score)
  runs.save_shape(workdir, collect.shape)
  model = collect.actor.model
  objective = objectives.policy(
    training.decoder_apply(model),
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
    make_params=training.initializer(model),
    loaded=collect.reference,
    feed=OnlineFeed(
      collect, rows=cfg.batch, epochs=cfg.epochs, seed=cfg.seed, max_approxkl=cfg.max_approxkl
    ),
    evaluate=collect.actor.evaluation(cfg.prompts),
    place=place,
    row_tokens=cfg.prompt_length + cfg.sampling.max_new - 1,
  )


@dataclasses.dataclass(frozen=True)
class Collector:
  """One iteration's rollout: sample with the policy, score, label.

  Attributes:
    cfg: the configuration.
    actor: draws and scores.
    shape: of the decoder of policy and reference.
    reference: its frozen parameters, as placed.
    label: what puts advantages in the batch.
  """

  cfg: config.Grpo
  actor: Actor
  shape: config.Model
  reference: Params
  label: Callable

  @classmethod
  def load(
    cls, cfg: config.Grpo, workdir: str, place: parallel.Placement, score: Callable | None
  ) -> "Collector":
    """Reads what `cfg` names, and fixes the units of reward models on the reference's answers.

    Raises:
      UserError: if something is missing or does not fit.
    """
    tokenizer = runs.tokenizer(cfg.prepared)
    size = tokenizer.vocab_size
    start = runs.load(cfg.init, "init", vocab_size=size)
    scores = rewards.Scores.load(score or cfg.score, place, size, cfg.prepared)
    asked, judged = prompts.both(cfg, workdir)
    reference = training.placed(place, start.model, start.params)
    actor = Actor(cfg, tokenizer, asked, judged, place, start.model, scores)
    made = cls(cfg, actor, start.shape, reference, labels.group(cfg))
    if scores.models:
      drawn = actor.sample(reference, made._choose(EVALUATION), EVALUATION, samples=cfg.samples)
      scores.fit(jax.device_get(rollout_to_batch(drawn)))
    return made

  def __call__(self, state: TrainState, iteration: int, carried: dict) -> tuple[Batch, dict]:
    """Returns (host batch, metrics)."""
    params = self.actor.place.unreplicate(state.params)
    rows = self._choose(iteration)
    rollout = self.actor.sample(params, rows, iteration, samples=self.cfg.samples)
    batch = jax.device_get(rollout_to_batch(rollout))
    batch |= jax.device_get(self._annotate(params, batch))
    scores_B, means = self.actor.score(rows, rollout, batch)
    ended_B = rollout.ended.astype(np.float32)
    labelled, metrics = jax.device_get(self.label(batch, scores_B, ended_B))
    metrics = {name: float(value) for name, value in metrics.items()} | means
    labelled |= {"documents": np.repeat(rows + 1, self.cfg.samples)}
    return labelled, metrics | {"rollout/logp_gap": logp_gap(batch)}

  def _choose(self, iteration: int) -> np.ndarray:
    """The prompts of an iteration: none twice, unless there are too few."""
    rng = np.random.default_rng([self.cfg.seed, iteration])
    count = len(self.actor.asked)
    return rng.choice(count, self.cfg.prompts, replace=self.cfg.prompts > count)

  @functools.cached_property
  def _annotate(self):
    logps = answers.logps_fn(self.actor.model, self.cfg.sampling.temperature)

    @jax.jit
    def annotate(params: Params, reference: Params, batch: Batch) -> Batch:
      return {"old_logps": logps(params, batch), "ref_logps": logps(reference, batch)}

    over = self.actor.place.under(annotate)
    return lambda params, batch: over(params, self.reference, self.actor.place.rows(batch))
