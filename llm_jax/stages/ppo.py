"""PPO with its four roles: policy, frozen reference, reward model, critic."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches, gold
from llm_jax.data.questions import Question
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.generate import Rollout, rollout_to_batch
from llm_jax.losses import objectives, returns
from llm_jax.models import heads
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, labels, runs, scores, training
from llm_jax.stages.online import OnlineFeed
from llm_jax.train import parallel
from llm_jax.types import Apply, Batch, Outputs, Params, TrainState

Score = Callable[[Params, Batch], jax.Array]

_REFERENCE = 256  # Answers of the reference that fix the units of a score.


def run(
  cfg: config.Ppo,
  workdir: str,
  *,
  loss: Callable | None = None,
  score: Score | None = None,
) -> TrainState:
  """Optimises the model of `cfg.init` against the reward model of `cfg.reward`.

  Args:
    cfg: the configuration.
    workdir: where the run goes.
    loss: swaps the policy loss.
    score: swaps the reward: (reward model's params, rollout LM batch) -> [B] raw scores.
  """
  cfg.validate()
  policy_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.policy")
  value_loss = spec.resolve(cfg.value_loss, "llm_jax.losses.policy")
  collect = Collector.load(cfg, parallel.make(cfg.mesh), score)
  model, critic = collect.model, collect.critic
  runs.save_shape(workdir, collect.shape)
  feed = OnlineFeed(
    collect,
    rows=cfg.batch,
    epochs=cfg.epochs,
    seed=cfg.seed,
    carried={"kl_coef": cfg.kl_init},
    max_approxkl=cfg.max_approxkl,
  )
  objective = objectives.actor_critic(
    policy_apply(model, critic),
    policy_loss,
    value_loss,
    value_coef=cfg.value_coef,
    entropy_coef=cfg.entropy_coef,
    temperature=cfg.sampling.temperature,
  )

  def make_params(key: jax.Array) -> Params:
    return {
      "policy": training.initializer(model)(key),
      "critic": training.initializer(critic)(key),
    }

  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=make_params,
    loaded={"policy": collect.reference, "critic": collect.first_critic()},
    feed=feed,
    place=collect.place,
    row_tokens=answers.PROMPT_TOKENS + cfg.sampling.max_new - 1,
  )


def policy_apply(model: Transformer, critic: heads.Critic) -> Apply:
  """Binds policy and critic: hidden states of the one, values of the other."""
  decoder = training.decoder_apply(model)

  def apply(params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    values_BT = critic.apply(
      {"params": params["critic"]}, batch["tokens"], batch["positions"], batch["segments"]
    )
    return decoder(params["policy"], batch, rng)._replace(values=values_BT)

  return apply


@dataclasses.dataclass(frozen=True)
class Collector:
  """One iteration's rollout: sample with the policy, score with the judge, label.

  Attributes:
    cfg: the configuration.
    tokenizer: of all four models.
    questions: training questions to draw from; their true answers are only measured against.
    prompts: their token lists.
    place: where the trained state lives.
    model: the decoder of policy and reference.
    shape: its configuration.
    critic: the critic's module.
    reference: frozen parameters of the reference.
    judge: frozen parameters of the reward model.
    score: (judge, rollout LM batch) -> [B] raw scores.
    normal: the units of a score.
  """

  cfg: config.Ppo
  tokenizer: Tokenizer
  questions: Sequence[Question]
  prompts: Sequence[list[int]]
  place: parallel.Placement
  model: Transformer
  shape: config.Model
  critic: heads.Critic
  reference: Params
  judge: Params
  score: Score
  normal: scores.Normal

  @classmethod
  def load(cls, cfg: config.Ppo, place: parallel.Placement, score: Score | None) -> "Collector":
    """Reads the models that `cfg` names, and fixes the units of a score on the reference's answers.

    Raises:
      UserError: if one of them is missing.
    """
    tokenizer = runs.tokenizer(cfg.prepared)
    size = tokenizer.vocab_size
    start = runs.load(cfg.init, "init", vocab_size=size)
    judge = runs.load(cfg.reward, "reward", reward=True, vocab_size=size)
    questions = runs.asked(cfg.prepared, "train")
    prompts = [answers.prompt_tokens(tokenizer, q.prompt) for q in questions]
    scorer = heads.Scorer.from_config(judge.shape)
    start = start._replace(params=training.placed(place, start.model, start.params))
    judge = judge._replace(params=training.placed(place, scorer, judge.params))
    if score is None:
      model_score = place.under(scores.reward_model(scorer))
      score = lambda params, batch: model_score(params, place.rows(batch))  # noqa: E731
    # As many rows a call as an iteration has: nothing is compiled twice.
    first = answers.draw(
      start.model,
      start.params,
      tokenizer,
      prompts[:_REFERENCE],
      cfg.sampling,
      seed=cfg.seed,
      rows=cfg.rollouts,
      place=place,
    )
    return cls(
      cfg,
      tokenizer,
      questions,
      prompts,
      place,
      start.model,
      start.shape,
      heads.Critic.from_config(judge.shape),
      start.params,
      judge.params,
      score,
      scores.standard(score, judge.params, first.batch, cfg.rollouts),
    )

  def __call__(self, state: TrainState, iteration: int, carried: dict) -> tuple[Batch, dict]:
    """Returns (host batch, metrics); updates `carried["kl_coef"]` when it is adaptive."""
    cfg, params = self.cfg, self.place.unreplicate(state.params)
    chosen_B = self._choose(iteration)
    rollout = jax.device_get(self._sample(params["policy"], chosen_B, iteration))
    batch = jax.device_get(rollout_to_batch(rollout))
    batch |= jax.device_get(self._annotate(params, batch))
    raw_B = self.score(self.judge, batch)
    scores_B = (np.asarray(raw_B) - self.normal.mean) / self.normal.std
    ended_B = rollout.ended.astype(np.float32)
    labelled, metrics = jax.device_get(self._label(batch, scores_B, ended_B, carried["kl_coef"]))
    metrics = {name: float(value) for name, value in metrics.items()}
    metrics |= {
      "kl_coef": carried["kl_coef"],
      "objective/raw_scores": float(np.mean(raw_B)),
      "gold/mean": self._gold(rollout, chosen_B),
    }
    # What sampler and learner disagree on; both are exact here, so this is rounding.
    gap_BT = np.abs(batch["sampler_logps"] - batch["old_logps"]) * batch["mask"]
    metrics["rollout/logp_gap"] = float(gap_BT.max())
    if cfg.kl_target > 0:
      controller = returns.AdaptiveKL(cfg.kl_init, cfg.kl_target, cfg.kl_horizon)
      kl = metrics["objective/kl"]
      carried["kl_coef"] = float(controller.update(carried["kl_coef"], kl, cfg.rollouts))
    return labelled, metrics

  def first_critic(self) -> Params:
    """The critic's start: the reward model (Ouyang et al. 2022, appendix C.4).

    With `critic_head` "zero" only its decoder: read before the end, where it was not trained, a
    reward model takes an answer for a bad one.
    """
    if self.cfg.critic_head == "zero":
      return heads.critic_from_decoder(self.judge["decoder"])
    return self.normal.rescale(self.judge)

  def _choose(self, iteration: int) -> np.ndarray:
    rng = np.random.default_rng([self.cfg.seed, iteration])
    return rng.integers(len(self.prompts), size=self.cfg.rollouts)

  def _gold(self, rollout: Rollout, chosen_B: np.ndarray) -> float:
    """Mean gold score of the rollout: what the reward model stands in for. Never trained on."""
    drawn = answers.texts(self.tokenizer, rollout)
    truths = (self.questions[i].answer for i in chosen_B)
    scored = [
      gold.score(answer.text, truth, answer.ended).total
      for answer, truth in zip(drawn, truths, strict=True)
    ]
    return float(np.mean(scored))

  def _sample(self, policy: Params, chosen_B: np.ndarray, iteration: int) -> Rollout:
    tokens, mask = batches.prompt_batch([self.prompts[i] for i in chosen_B], answers.PROMPT_TOKENS)
    root = jax.random.fold_in(jax.random.key(self.cfg.seed), iteration)
    keys = jax.random.split(root, self.cfg.rollouts)
    return answers.roll(
      self.model, policy, self.tokenizer, tokens, mask, keys, self.cfg.sampling, place=self.place
    )

  @functools.cached_property
  def _label(self):
    return labels.actor_critic(self.cfg)

  @functools.cached_property
  def _annotate(self):
    logps = answers.logps_fn(self.model, self.cfg.sampling.temperature)

    @jax.jit
    def annotate(params: Params, reference: Params, batch: Batch) -> Batch:
      values_BT = self.critic.apply(
        {"params": params["critic"]}, batch["tokens"], batch["positions"], batch["segments"]
      )
      return {
        "old_logps": logps(params["policy"], batch),
        "ref_logps": logps(reference, batch),
        "old_values": values_BT * batch["mask"],
      }

    over = self.place.under(annotate)
    return lambda params, batch: over(params, self.reference, self.place.rows(batch))
