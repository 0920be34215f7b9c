"""Sums in words: SFT on the answers of a few, then GRPO on a score that checks them; by stage.

python -m tools.arithmetic --out=runs/arithmetic --seeds=0,1,2
python -m experiments.grpo --workdir=runs/arithmetic/seed0/grpo --config=configs/arithmetic.py:grpo
Result: GRPO answers at least 20 of 100 held-out questions more than SFT does; its two controls,
grpo_constant and sft_more, do not.
"""

from llm_jax import config
from llm_jax.errors import UserError, nearest

ROOT = "runs/arithmetic/seed0"


def get_config(stage: str = "grpo", root: str = ROOT) -> config.Prepare | config.Stage:
  """Returns the configuration of a stage: prepare, pretrain, sft, grpo, or a control's.

  Args:
    stage: its name.
    root: directory that has data/ (tools/make_arithmetic) and the stages' own.
  """
  makers = {
    "prepare": _prepare,
    "pretrain": _pretrain,
    "sft": _sft,
    "grpo": _grpo,
    "grpo_constant": _grpo_constant,
    "sft_more": _sft_more,
  }
  if stage not in makers:
    raise UserError(f'configs/arithmetic.py has no variant "{stage}"{nearest(stage, makers)}')
  return makers[stage](root)


def _prepare(root: str) -> config.Prepare:
  cfg = config.Prepare(source=f"{root}/data/corpus.jsonl", recipe=("whitespace",))
  cfg.vocab_size = 448  # 256 bytes, the words, and what they are merged from.
  cfg.workers = 1
  return cfg


def _pretrain(root: str) -> config.Pretrain:
  cfg = config.Pretrain(prepared=f"{root}/prepare", steps=150, batch=16, length=64)
  cfg.model.dim, cfg.model.layers = 64, 2
  cfg.log_every, cfg.eval_every, cfg.checkpoint_every = 25, 150, 150
  cfg.optimizer.name, cfg.optimizer.lr = "muon", 4e-3
  return cfg


def _sft(root: str) -> config.Sft:
  cfg = config.Sft(prepared=f"{root}/prepare", init=f"{root}/pretrain")
  # Of 40 % of the questions it sees the answers, and not for long enough to be good at others.
  cfg.data = (f"{root}/data/train.jsonl=0.4",)
  cfg.validation_data = (f"{root}/data/validation.jsonl",)
  cfg.steps, cfg.batch, cfg.length = 120, 16, 64
  cfg.log_every, cfg.eval_every, cfg.checkpoint_every = 20, 120, 120
  cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.warmup = "muon", 2e-3, 10
  return cfg


def _sft_more(root: str) -> config.Sft:
  cfg = _sft(root)
  cfg.init, cfg.steps = f"{root}/sft", _grpo(root).steps
  cfg.eval_every = cfg.checkpoint_every = cfg.steps
  return cfg


def _grpo(root: str) -> config.Grpo:
  cfg = config.Grpo(prepared=f"{root}/prepare", init=f"{root}/sft", score="exact")
  cfg.data = (f"{root}/data/train.jsonl",)  # All questions; what is right only the score knows.
  cfg.eval_data = (f"{root}/data/validation.jsonl",)
  cfg.prompts, cfg.samples, cfg.batch = 32, 8, 256
  cfg.prompt_length, cfg.sampling.max_new, cfg.sampling.temperature = 16, 4, 1.0
  cfg.steps, cfg.log_every, cfg.eval_every, cfg.checkpoint_every = 360, 10, 40, 360
  cfg.optimizer.lr, cfg.optimizer.warmup = 1e-3, 5
  return cfg


def _grpo_constant(root: str) -> config.Grpo:
  cfg = _grpo(root)
  cfg.score = "constant"  # All groups tie, so no update changes anything: a few show it.
  cfg.steps = 40
  return cfg
