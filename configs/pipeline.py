"""Everything, from the documentation of this Python to aligned models and a report.

python -m experiments.pipeline --workdir=runs/quickstart
Result: summary.json and report.html in the workdir.
With --config=configs/pipeline.py:ci a reduced run: a small corpus, a few steps of everything.
"""

from configs import dpo, evaluate, ppo, preferences, prepare, pretrain, reward, sft
from llm_jax import config
from llm_jax.errors import UserError, nearest

VARIANTS = ("", "ci")


def get_config(variant: str = "") -> config.Pipeline:
  """Returns the default of `experiments.pipeline`, or of its CI run for "ci"."""
  if variant not in VARIANTS:
    raise UserError(f'configs/pipeline.py has no variant "{variant}"{nearest(variant, ["ci"])}')
  cfg = config.Pipeline(
    prepare=prepare.get_config(),
    pretrain=pretrain.get_config(),
    sft=sft.get_config(),
    preferences=preferences.get_config(),
    reward=reward.get_config(),
    dpo=dpo.get_config(),
    ppo=ppo.get_config(),
    evaluate=evaluate.get_config(),
  )
  return reduced(cfg) if variant == "ci" else cfg


def reduced(cfg: config.Pipeline) -> config.Pipeline:
  """Cuts every stage to a few steps: all of the code runs, nothing is learnt."""
  cfg.prepare.max_bytes = 1_500_000
  cfg.prepare.vocab_size = 1024
  cfg.pretrain.model.dim = 64
  cfg.pretrain.model.layers = 2
  cfg.preferences.questions = 64
  cfg.preferences.validation_questions = 16
  cfg.preferences.samples = 2
  cfg.ppo.rollouts = 16
  cfg.ppo.sampling.max_new = 16
  cfg.evaluate.questions = 16
  cfg.evaluate.samples = 2
  cfg.evaluate.sampling.max_new = 16
  for stage in (cfg.pretrain, cfg.sft, cfg.reward, cfg.dpo, cfg.ppo):
    stage.steps = 8
    stage.batch = 8
    stage.log_every = 2
    stage.eval_every = 4
    stage.checkpoint_every = 8
    stage.optimizer.warmup = 2
  return cfg
