"""A loss of one's own: DPO that stops pushing a pair once it is ranked by a wide enough margin.

python -m experiments.custom_loss --workdir=runs/custom_loss
(from the fine-tuned model and the preferences that `make quickstart` wrote)
"""

from configs import dpo
from experiments import _launch
from llm_jax import config


def get_config() -> config.Dpo:
  """Returns the published DPO, under the name of the loss below."""
  cfg = dpo.get_config()
  cfg.loss = "capped"
  return cfg


def capped(chosen, rejected, beta: float = 0.1, cap: float = 2.0):
  """-log sigmoid(min(beta * (chosen - rejected), cap)); log-ratios [B] in nats -> [B] float32."""
  import jax  # Not above: `--help` should answer at once.

  return -jax.nn.log_sigmoid(jax.numpy.minimum(beta * (chosen - rejected), cap))


if __name__ == "__main__":
  # In a script of one's own: llm_jax.stages.dpo.run(cfg, workdir, loss=capped).
  _launch.main("dpo", config=__file__, swap={"loss": capped})
