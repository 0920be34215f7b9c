"""Stages that learn from answers of the model itself."""

import dataclasses
from dataclasses import field

from llm_jax.config.data import check_lost
from llm_jax.config.model import Lora
from llm_jax.config.training import Sampling, Stage
from llm_jax.errors import UserError, nearest


@dataclasses.dataclass
class Drawing(Stage):
  """What stages have in common that draw answers from the model that they train."""

  init: str = "runs/quickstart/sft"
  data: tuple[str, ...] = ()  # Files of conversations to ask from; (): the prepared questions.
  eval_data: tuple[str, ...] = ()  # Their answers are scored every eval_every steps; (): none.
  eval_questions: int = 256  # Of eval_data.
  max_lost: float = 0.0  # Rows that may be unreadable: so many, or a share of all; 0: none.
  prompt_length: int = 64  # Tokens; a longer prompt loses its oldest.
  sampling: Sampling = field(default_factory=Sampling)

  def validate(self) -> None:
    """Checks what every stage checks, and what is asked.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    super().validate()
    self._check_least(1, "prompt_length", "eval_questions")
    check_lost(self.max_lost)

  def _check_least(self, least: int, *names: str) -> None:
    for name in names:
      value = getattr(self, name)
      if not value >= least:
        wanted = "at least 1" if least else "0 or more"
        raise UserError(f"config.{name} must be {wanted}, got {value}")

  def _check_known(self, name: str, *values: str) -> None:
    value = getattr(self, name)
    if value not in values:
      raise UserError(f'config.{name}="{value}" is unknown{nearest(value, values)}')


@dataclasses.dataclass
class Online(Drawing):
  """What PPO and GRPO have in common: how often they learn, what answers that stop short get.

  A score is a function's name, or a sum (stages/rewards.py).
  """

  epochs: int = 1
  entropy_coef: float = 0.0
  missing_end: str = "subtract"  # Or "replace": an answer that does not end has -penalty for score.
  missing_end_penalty: float = 0.0
  max_approxkl: float = 0.0  # Early stop of an iteration's remaining updates; 0: never.

  def validate(self) -> None:
    """Checks what other stages check that draw answers, and that nothing cuts their distribution.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    self._check_least(1, "epochs")
    self._check_least(0, "missing_end_penalty", "max_approxkl")
    self._check_known("missing_end", "subtract", "replace")
    if self.sampling.temperature <= 0 or self.sampling.top_k or self.sampling.top_p < 1:
      raise UserError(
        "config.sampling must have a temperature above 0, top_k=0 and top_p=1: the policy learns "
        "from the whole distribution, so answers must be drawn from it"
      )


@dataclasses.dataclass
class Ppo(Online):
  """PPO with a policy, a frozen reference, a reward and a critic.

  With an adapter (`lora.rank`) the reference is the policy without it, and the critic and the
  reward model are one decoder with and without another: four roles in the memory of two models.
  """

  loss: str = "ppo_clip(clip=0.2)"
  value_loss: str = "value_clip(clip=0.2)"
  reward: str = "runs/quickstart/reward"  # A reward model: the score and the critic's start; "".
  score: str = ""  # What answers are worth; "": what `reward` says.
  rollouts: int = 64  # Answers per iteration.
  # Or "sampler": log-probs as they were drawn, and a shared critic's values: one forward less.
  old_logps: str = "learner"
  # The critic's decoder begins as that of "reward" or of the "policy"; "shared": it is the policy.
  critic: str = "reward"
  critic_head: str = "zero"  # Or "reward": the critic starts as the whole reward model.
  lora: Lora = field(default_factory=Lora)
  gamma: float = 1.0
  lam: float = 0.95
  value_coef: float = 0.1
  kl_estimator: str = "k1"  # In the reward; k1 is the unbiased one.
  kl_init: float = 0.05  # Of the KL to `init` in the reward.
  kl_target: float = 0.0  # Nats per answer; 0: a fixed coefficient.
  kl_horizon: float = 10_000.0  # Answers.
  kl_clamp: float = 0.0  # Bounds each token's KL in the reward; 0: no bound.
  kl_coef: float = 0.0  # Of the KL to `init` in the loss, beside that in the reward.
  kl_coef_estimator: str = "k2"  # Of that KL; k2 has the gradient of the reverse KL.
  score_clip: float = 0.0  # Bounds scores to +-; 0: no bound.
  whiten_scores: bool = False  # Over an iteration's answers (Llama 2).
  whiten_rewards: bool = False  # Over its tokens, the KL's part included; the mean stays.
  whiten_advantages: bool = True
  ptx_coef: float = (
    0.0  # Of the pretraining loss on documents of `prepared` (InstructGPT); 0: none.
  )
  ptx_batch: int = 16  # Rows of `length` tokens of them, per update.
  missing_end_penalty: float = 1.0
  max_approxkl: float = 0.05

  def validate(self) -> None:
    """Checks what other online stages check, and that the roles fit together.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    if self.rollouts % self.batch:
      raise UserError(
        f"config.rollouts={self.rollouts} must be a multiple of config.batch={self.batch}"
      )
    for name in ("kl_estimator", "kl_coef_estimator"):
      self._check_known(name, "k1", "k2", "k3", "abs")
    self._check_known("old_logps", "learner", "sampler")
    self._check_known("critic", "reward", "policy", "shared")
    self._check_known("critic_head", "zero", "reward")
    self._check_least(0, "kl_init", "kl_target", "kl_clamp", "kl_coef", "score_clip", "ptx_coef")
    if self.critic_head == "reward" and self.critic != "reward":
      raise UserError(
        f"config.critic_head=reward is read from the reward model's states, and config.critic="
        f"{self.critic} has others: set config.critic_head=zero"
      )
    if not self.reward and (not self.score or self.critic == "reward"):
      raise UserError(
        'config.reward="" is no reward model: set config.score, and config.critic to policy or '
        "shared"
      )
    if self.ptx_coef and (self.ptx_batch < 1 or self.ptx_batch % self.accum):
      raise UserError(
        f"config.ptx_batch={self.ptx_batch} must be a multiple of config.accum={self.accum}"
      )


@dataclasses.dataclass
class Grpo(Online):
  """GRPO and its relatives: several answers to a prompt, each measured against the others.

  An algorithm is a triple: `score` says what an answer is worth, `advantage` what that is beside
  other answers, `loss` how the policy learns from it (docs/posttraining.md has the usual triples).
  """

  score: str = "reward_model(run='runs/quickstart/reward')"
  advantage: str = "group_advantage()"  # Of losses/returns.py, or one's own.
  loss: str = "ppo_clip(clip=0.2)"
  prompts: int = 16  # Of an iteration.
  samples: int = 8  # Answers to each of them.
  aggregate: str = "token"  # token | sequence | constant: see objectives.policy.
  kl_coef: float = 0.0  # Of the KL to `init` in the loss.
  kl_estimator: str = "k3"  # Of that KL; k2 has the gradient of the reverse KL.
  reward_kl: float = 0.0  # Of that KL in the reward, as k1.
  drop_ties: bool = False  # Groups whose scores are all the same are left out of the loss (DAPO).

  @property
  def rollouts(self) -> int:
    """Answers of an iteration."""
    return self.prompts * self.samples

  def validate(self) -> None:
    """Checks what other online stages check, and that answers divide into minibatches.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    self._check_least(1, "prompts", "samples")
    self._check_least(0, "kl_coef", "reward_kl")
    self._check_known("aggregate", "token", "sequence", "constant")
    self._check_known("kl_estimator", "k1", "k2", "k3")
    if self.rollouts % self.batch:
      raise UserError(
        f"config.prompts={self.prompts} times config.samples={self.samples} must be a multiple of "
        f"config.batch={self.batch}"
      )
