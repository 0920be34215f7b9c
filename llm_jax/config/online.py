"""Online stages without a critic."""

import dataclasses
from dataclasses import field

from llm_jax.config.training import Sampling, Stage
from llm_jax.errors import UserError, nearest


@dataclasses.dataclass
class Grpo(Stage):
  """GRPO and its relatives: several answers to a prompt, each measured against the others.

  An algorithm is a triple: `score` says what an answer is worth, `advantage` what that is beside
  other answers, `loss` how the policy learns from it (docs/posttraining.md has the usual triples).
  """

  score: str = "reward_model(run='runs/quickstart/reward')"  # Or a sum (stages/rewards.py).
  advantage: str = "group_advantage()"  # Of losses/returns.py, or one's own.
  loss: str = "ppo_clip(clip=0.2)"
  init: str = "runs/quickstart/sft"
  data: tuple[str, ...] = ()  # Files of conversations to ask from; (): the prepared questions.
  eval_data: tuple[str, ...] = ()  # Their answers are scored every eval_every steps; (): none.
  eval_questions: int = 256  # Of eval_data.
  prompt_length: int = 64  # Tokens; a longer prompt loses its oldest.
  prompts: int = 16  # Of an iteration.
  samples: int = 8  # Answers to each of them.
  sampling: Sampling = field(default_factory=Sampling)
  epochs: int = 1
  aggregate: str = "token"  # token | sequence | constant: see objectives.policy.
  kl_coef: float = 0.0  # Of the KL to `init` in the loss.
  kl_estimator: str = "k3"  # Of that KL; k2 has the gradient of the reverse KL.
  reward_kl: float = 0.0  # Of that KL in the reward, as k1.
  entropy_coef: float = 0.0
  missing_end: str = "subtract"  # Or "replace": an answer that does not end has -penalty for score.
  missing_end_penalty: float = 0.0
  drop_ties: bool = False  # Groups whose scores are all the same are left out of the loss (DAPO).
  max_approxkl: float = 0.0  # Early stop of an iteration's remaining updates; 0: never.

  @property
  def rollouts(self) -> int:
    """Answers of an iteration."""
    return self.prompts * self.samples

  def validate(self) -> None:
    """Checks what the other stages check, and that answers divide into minibatches.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    for name in ("prompts", "samples", "epochs", "prompt_length", "eval_questions"):
      if getattr(self, name) < 1:
        raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")
    if self.rollouts % self.batch:
      raise UserError(
        f"config.prompts={self.prompts} times config.samples={self.samples} must be a multiple of "
        f"config.batch={self.batch}"
      )
    known = {
      "aggregate": ("token", "sequence", "constant"),
      "kl_estimator": ("k1", "k2", "k3"),
      "missing_end": ("subtract", "replace"),
    }
    for name, values in known.items():
      value = getattr(self, name)
      if value not in values:
        raise UserError(f'config.{name}="{value}" is unknown{nearest(value, values)}')
    for name in ("kl_coef", "reward_kl", "missing_end_penalty", "max_approxkl"):
      if not getattr(self, name) >= 0:
        raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")
    if self.sampling.temperature <= 0 or self.sampling.top_k or self.sampling.top_p < 1:
      raise UserError(
        "config.sampling must have a temperature above 0, top_k=0 and top_p=1: the policy learns "
        "from the whole distribution, so answers must be drawn from it"
      )
