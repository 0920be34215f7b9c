"""The pretrained decoder, fine-tuned on questions and their true answers; rates that others used.

python -m experiments.sft --workdir=runs/sft
python -m experiments.sft --workdir=runs/alpaca --config=configs/sft.py:alpaca \\
    --config.init=llama-7b --config.prepared=runs/corpus --config.data='("data/alpaca_data.json",)'
Result: eval/loss falls; answers end with the turn's end token.

alpaca, vicuna, lima, llama2 and flan have the rate, schedule, batch, length and updates of
configs/recipes/, which say where each is from: for the data and the sizes of their papers.
"""

from configs.recipes import alpaca, flan, lima, llama2_chat, vicuna
from llm_jax import config
from llm_jax.errors import UserError, nearest

PUBLISHED = {
  "alpaca": alpaca,
  "vicuna": vicuna,
  "lima": lima,
  "llama2": llama2_chat,
  "flan": flan,
}
VARIANTS = ("", *PUBLISHED)


def get_config(variant: str = "") -> config.Sft:
  """Returns the default of `experiments.sft`, or the SFT of a paper by name."""
  if variant not in VARIANTS:
    raise UserError(f'configs/sft.py has no variant "{variant}"{nearest(variant, VARIANTS[1:])}')
  if variant:
    cfg = PUBLISHED[variant].get_config().sft
    cfg.init, cfg.data = config.Sft().init, ()  # In a recipe they are links to its own parts.
    return cfg
  cfg = config.Sft()
  cfg.steps = 450
  cfg.batch = 16
  cfg.length = 128
  cfg.log_every = 25
  cfg.eval_every = 225
  cfg.checkpoint_every = 225
  cfg.optimizer.name = "muon"
  cfg.optimizer.matmul_precision = "bfloat16"
  cfg.optimizer.lr = 2e-3
  cfg.optimizer.adam_lr = 0.02
  cfg.optimizer.warmup = 10
  return cfg
