"""DPO from the SFT model; --config.loss='ipo(beta=0.2)' and the like swap the loss.

python -m experiments.dpo --workdir=runs/dpo
Result: the margin of held-out pairs grows from zero.
"""

from llm_jax import config


def get_config() -> config.Dpo:
  """Returns the default of `experiments.dpo`."""
  cfg = config.Dpo()
  cfg.loss = "logistic(beta=0.1) + 0.5*nll_chosen"
  # Both answers are the model's own, so the margin is about content; against true answers it would
  # be about style, and the log-ratios would run away from what the model can say. The second term
  # (Pang et al. 2024, arXiv:2404.19733) keeps the answers' form: without it fewer of them end.
  cfg.kinds = "sft_sample"
  cfg.steps = 160
  cfg.batch = 32
  cfg.length = 72
  cfg.eval_every = 160
  cfg.optimizer.lr = 2e-4
  cfg.optimizer.warmup = 10
  return cfg
