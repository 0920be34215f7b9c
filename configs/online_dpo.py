"""Online DPO from the SFT model: its own best answer against its worst, by the reward model.

python -m experiments.online_dpo --workdir=runs/online_dpo
Result: objective/scores rises from zero, in standard deviations of the SFT model's answers.
"""

from llm_jax import config


def get_config() -> config.OnlineDpo:
  """Returns the default of `experiments.online_dpo`."""
  cfg = config.OnlineDpo()
  cfg.loss = "logistic(beta=0.1) + 0.2*nll_chosen"  # The second term holds the answers' form.
  cfg.steps = 64
  cfg.batch = 32
  cfg.prompts = 32
  cfg.samples = 4
  cfg.sampling.temperature = 1.0
  cfg.log_every = 4
  cfg.optimizer.lr = 5e-5  # Twice that ended at 5.9 nats of KL, not 1.9 (docs/results.md).
  cfg.optimizer.warmup = 5
  return cfg
