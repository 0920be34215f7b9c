"""What the recipes share: their variants, an optimizer as most have it, and the cut to a trial."""

from llm_jax import config
from llm_jax.errors import UserError, nearest

HELD_OUT = 0.005  # Of the prompts, so that there is something to see: most papers hold out none.


def check(name: str, variant: str) -> None:
  """Checks the name of a variant.

  Raises:
    UserError: if there is none.
  """
  if variant not in ("", "tiny"):
    raise UserError(
      f'configs/recipes/{name}.py has no variant "{variant}"{nearest(variant, ["tiny"])}'
    )


def adamw(lr: float, schedule: str, warmup: int = 0, **fields) -> config.Optimizer:
  """Returns AdamW with PyTorch's moments and no decay, gradients clipped to a norm of 1."""
  given = {"beta1": 0.9, "beta2": 0.999, "clip": 1.0, "weight_decay": 0.0} | fields
  return config.Optimizer(lr=lr, schedule=schedule, warmup=warmup, **given)


def tiny(cfg: config.Recipe) -> None:
  """Cuts every stage to a few updates of a few short rows, at a rate for a small model.

  Chain, losses and conventions stay.
  """
  for stage in cfg.stages().values():
    if isinstance(stage, config.Stage):
      stage.steps = stage.batch = 8
      stage.length = 256
      stage.log_every, stage.eval_every, stage.checkpoint_every = 2, 8, 8
      # Published rates and their schedules are for billions of parameters and thousands of updates.
      stage.optimizer = config.Optimizer(
        name=stage.optimizer.name, lr=1e-3, schedule="constant", warmup=2
      )
    if isinstance(stage, config.Sft | config.Reward | config.Dpo):
      stage.validation = 0.1
    if isinstance(stage, config.Ppo):
      stage.rollouts, stage.ptx_batch = 16, 8
    if isinstance(stage, config.Rejection):
      stage.rounds, stage.questions, stage.samples, stage.ended_only = 2, 16, 4, False
    if isinstance(stage, config.Rlaif):
      stage.questions, stage.length, stage.drawn, stage.ended_only = 16, 256, 2, False
      stage.judge.length, stage.judge.rows = 256, 8
    if isinstance(stage, config.Rejection | config.Rlaif):
      stage.prompts = 8
    if isinstance(stage, config.Rejection | config.Rlaif | config.Ppo):
      stage.sampling.max_new = 16
    if isinstance(stage, config.Rejection | config.Ppo):
      stage.prompt_length = 128
