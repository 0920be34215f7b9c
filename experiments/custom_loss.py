"""A loss of one's own: DPO that stops pushing a pair once it is ranked by a wide enough margin.

python -m experiments.custom_loss --workdir=runs/custom_loss
(from the fine-tuned model and the preferences that `make quickstart` wrote)
"""

import sys

from absl import app, flags

from llm_jax import config, rundir
from llm_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is written.", required=True)


def capped(chosen, rejected, beta: float = 0.1, cap: float = 2.0):
  """-log sigmoid(min(beta * (chosen - rejected), cap)); log-ratios [B] in nats -> [B] float32."""
  import jax  # Not above: `--help` should answer at once.

  return -jax.nn.log_sigmoid(jax.numpy.minimum(beta * (chosen - rejected), cap))


def main(argv: list[str]) -> int:
  """Runs the DPO stage with the function above in the place of `config.loss`."""
  from llm_jax.stages import dpo

  try:
    cfg = config.Dpo(loss="capped")
    rundir.start(cfg, _WORKDIR.value, {}, argv)
    dpo.run(cfg, _WORKDIR.value, loss=capped)
  except UserError as error:
    print("error:", error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  app.run(main)
