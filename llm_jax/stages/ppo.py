"""PPO with its four roles: policy, frozen reference, reward, critic."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches, gold
from llm_jax.errors import UserError
from llm_jax.generate import Rollout, rollout_to_batch
from llm_jax.losses import objectives, returns, token
from llm_jax.models import heads
from llm_jax.stages import answers, labels, prompts, rewards, runs, training
from llm_jax.stages.actor import Actor, logp_gap
from llm_jax.stages.online import Beside, OnlineFeed
from llm_jax.stages.roles import Roles, policy_of
from llm_jax.train import feeds, parallel
from llm_jax.types import Batch, LossFn, Params, TrainState

_REFERENCE = 256  # Answers of the reference that fix the units of a score.


def run(
  cfg: config.Ppo,
  workdir: str,
  *,
  loss: Callable | None = None,
  score: Callable | None = None,
) -> TrainState:
  """Optimises the model of `cfg.init` for a reward.

  Args:
    cfg: the configuration.
    workdir: where the run goes.
    loss: swaps the policy loss.
    score: swaps the score: (rewards.Answered) -> [B].
  """
  cfg.validate()
  policy_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.policy")
  value_loss = spec.resolve(cfg.value_loss, "llm_jax.losses.policy")
  place = parallel.make(cfg.mesh)
  collect, loaded = load(cfg, place, score, workdir)
  runs.save_shape(workdir, collect.shape)
  feed: feeds.Feed = OnlineFeed(
    collect,
    rows=cfg.batch,
    epochs=cfg.epochs,
    seed=cfg.seed,
    carried={"kl_coef": cfg.kl_init},
    max_approxkl=cfg.max_approxkl,
  )
  tokens = cfg.prompt_length + cfg.sampling.max_new - 1
  if cfg.ptx_coef:
    documents = pathlib.Path(cfg.prepared) / "tokens" / "train"
    packed = batches.pack_documents(documents, cfg.length, cfg.ptx_batch, cfg.seed, numbered=True)
    feed = Beside(feed, feeds.IteratorFeed(packed), "ptx")
    tokens += cfg.ptx_batch * cfg.length // cfg.batch
  roles = collect.roles
  return training.train(
    cfg,
    workdir,
    loss_fn=objective(cfg, roles, policy_loss, value_loss),
    make_params=roles.make_params,
    loaded=loaded,
    feed=feed,
    evaluate=collect.evaluation(),
    place=place,
    row_tokens=tokens,
    adapters=training.Adapters(roles.trained, roles.attach) if cfg.lora.rank else None,
  )


def objective(cfg: config.Ppo, roles: Roles, policy_loss: Callable, value_loss: Callable) -> LossFn:
  """The loss of policy and critic, and of pretraining where that is mixed in."""
  own = objectives.actor_critic(
    roles.apply,
    policy_loss,
    value_loss,
    value_coef=cfg.value_coef,
    entropy_coef=cfg.entropy_coef,
    kl_coef=cfg.kl_coef,
    kl_estimator=cfg.kl_coef_estimator,
    temperature=cfg.sampling.temperature,
  )
  if not cfg.ptx_coef:
    return own
  apply = policy_of(training.decoder_apply(roles.model))
  pretraining = objectives.next_token(apply, token.cross_entropy)
  return objectives.beside(own, pretraining, cfg.ptx_coef, "ptx")


def load(
  cfg: config.Ppo, place: parallel.Placement, score: Callable | None, workdir: str
) -> tuple["Collector", Params]:
  """Reads the models that `cfg` names, and fixes the units of a score on the reference's answers.

  Returns:
    What makes rollouts, and the parameters that training starts from.

  Raises:
    UserError: if one of them is missing or does not fit.
  """
  tokenizer = runs.tokenizer(cfg.prepared)
  size = tokenizer.vocab_size
  start = runs.load(cfg.init, "init", vocab_size=size)
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  judge = runs.load(cfg.reward, "reward", reward=True, vocab_size=size) if cfg.reward else None
  named = score or cfg.score or f"reward_model(run={cfg.reward!r})"
  loaded = {cfg.reward: judge} if judge else {}
  scores = rewards.Scores.load(named, place, size, cfg.prepared, loaded=loaded)
  if cfg.critic_head == "reward" and cfg.reward not in scores.models:
    raise UserError(
      f"config.critic_head=reward needs the units of config.reward={cfg.reward}, which "
      "config.score does not name: set config.critic_head=zero"
    )
  asked, judged = prompts.both(cfg, workdir)
  roles = Roles.of(cfg, start.shape, judge.shape if judge else None)
  # With adapters the policy without its own is the reference.
  reference = None if cfg.lora.rank else training.placed(place, start.model, start.params)
  actor = Actor(cfg, tokenizer, asked, judged, place, start.model, scores)
  if scores.models:
    # As many rows a call as an iteration has: nothing is compiled twice.
    drawn = answers.draw(
      start.model,
      start.params if reference is None else reference,
      tokenizer,
      actor.prompts[:_REFERENCE],
      cfg.sampling,
      seed=cfg.seed,
      rows=cfg.rollouts,
      length=cfg.prompt_length,
      place=place,
    )
    scores.fit(drawn.batch, cfg.rollouts)
  critic = heads.critic_from_decoder(start.params)
  if cfg.critic == "reward":
    critic = _critic(cfg, judge.params, scores)
  collect = Collector(cfg, actor, roles, start.shape, reference)
  return collect, roles.loaded(start.params, critic)


def _critic(cfg: config.Ppo, judge: Params, scores: rewards.Scores) -> Params:
  """The critic's start: the reward model (Ouyang et al. 2022, appendix C.4).

  With `critic_head` "zero" only its decoder: read before the end, where it was not trained, a
  reward model takes an answer for a bad one.
  """
  if cfg.critic_head == "zero":
    return heads.critic_from_decoder(judge["decoder"])
  return scores.normals[cfg.reward].rescale(judge)


@dataclasses.dataclass(frozen=True)
class Collector:
  """One iteration's rollout: sample with the policy, score, label.

  Attributes:
    cfg: the configuration.
    actor: draws and scores.
    roles: the models.
    shape: of the decoder of policy and reference.
    reference: its frozen parameters, as placed; None: the policy's without its adapter.
  """

  cfg: config.Ppo
  actor: Actor
  roles: Roles
  shape: config.Model
  reference: Params | None

  def __call__(self, state: TrainState, iteration: int, carried: dict) -> tuple[Batch, dict]:
    """Returns (host batch, metrics); updates `carried["kl_coef"]` when it is adaptive."""
    cfg, actor = self.cfg, self.actor
    params = actor.place.unreplicate(state.whole)
    chosen_B = self._choose(iteration)
    rollout = actor.sample(params["policy"], chosen_B, iteration, value=self._head(params))
    batch = jax.device_get(rollout_to_batch(rollout))
    batch |= jax.device_get(self._annotate(params, self.reference, actor.place.rows(batch)))
    self._lend(params)
    scores_B, means = actor.score(chosen_B, rollout, batch)
    ended_B = rollout.ended.astype(np.float32)
    labelled, metrics = jax.device_get(self._label(batch, scores_B, ended_B, carried["kl_coef"]))
    metrics = {name: float(value) for name, value in metrics.items()} | means
    metrics |= actor.scores.raw(means) | self._gold(rollout, chosen_B)
    metrics |= {"kl_coef": carried["kl_coef"], "rollout/logp_gap": logp_gap(batch)}
    if cfg.kl_target > 0:
      controller = returns.AdaptiveKL(cfg.kl_init, cfg.kl_target, cfg.kl_horizon)
      kl = metrics["objective/kl"]
      carried["kl_coef"] = float(controller.update(carried["kl_coef"], kl, cfg.rollouts))
    return labelled | {"documents": chosen_B + 1}, metrics

  def evaluation(self) -> Callable[[Params], dict[str, float]] | None:
    """Returns parameters of all roles, as placed -> the scores of held-out prompts' answers."""
    measure = self.actor.evaluation(self.cfg.rollouts)

    def evaluate(params: Params) -> dict[str, float]:
      self._lend(self.actor.place.unreplicate(params))
      return measure(params["policy"])

    return evaluate if measure else None

  def _choose(self, iteration: int) -> np.ndarray:
    rng = np.random.default_rng([self.cfg.seed, iteration])
    return rng.integers(len(self.actor.asked), size=self.cfg.rollouts)

  def _head(self, params: Params) -> Params | None:
    """What the sampler is to work values out with; None: the learner does."""
    wanted = self.cfg.old_logps == "sampler" and not self.cfg.sampling.rows
    return self.roles.read_while_drawn(params) if wanted else None

  def _lend(self, params: Params) -> None:
    """Gives the reward model the frozen decoder that the critic's adapter is on."""
    decoder, judge = self.roles.judge(params), self.actor.scores.models.get(self.cfg.reward)
    if decoder is not None and judge is not None:
      judge.params = {"decoder": decoder, "head": judge.params["head"]}

  def _gold(self, rollout: Rollout, chosen_B: np.ndarray) -> dict[str, float]:
    """Mean gold score of a rollout to prepared questions: what a score stands in for."""
    if self.cfg.data:
      return {}
    drawn = answers.texts(self.actor.tokenizer, rollout)
    truths = (self.actor.asked[i].truth for i in chosen_B)
    scored = [
      gold.score(answer.text, truth, answer.ended).total
      for answer, truth in zip(drawn, truths, strict=True)
    ]
    return {"gold/mean": float(np.mean(scored))}

  @functools.cached_property
  def _label(self):
    return labels.actor_critic(self.cfg)

  @functools.cached_property
  def _annotate(self):
    how = {
      "temperature": self.cfg.sampling.temperature,
      "sampled": self.cfg.old_logps == "sampler",
    }
    return self.actor.place.under(jax.jit(functools.partial(self.roles.annotate, **how)))
