"""The runs whose curves are golden: one of every stage that trains, and one that asks a judge."""

import dataclasses
import pathlib
from types import ModuleType
from typing import Any, NamedTuple

from llm_jax import config
from llm_jax.stages import dpo, grpo, online_dpo, ppo, pretrain, rejection, reward, rlaif, sft
from tools import _toy_world

STEPS = 12
# Of what is drawn a token may come out otherwise on another CPU, once the parameters differ by
# rounding: of these runs the first three iterations are compared, the others are on record.
DRAWN = 6

_LM = ("loss", "grad_norm", "param_norm", "eval/loss")
_PAIRS = ("loss", "grad_norm", "rewards/margins", "rewards/chosen", "logps/chosen")
_ANSWERS = ("objective/scores", "rollout/length", "rollout/end_rate")
_POLICY = (
  "loss", "grad_norm", "loss/policy", "policy/approxkl", "policy/entropy", "objective/kl",
  "objective/entropy", *_ANSWERS,
)  # fmt: skip
_SAMPLING = config.Sampling(max_new=8)


class Run(NamedTuple):
  """A tiny run.

  Attributes:
    stage: the module.
    cfg: its config.
    metrics: what is recorded.
    steps: so many are compared.
    after: the run that it starts from, if it needs one.
  """

  stage: ModuleType
  cfg: Any
  metrics: tuple[str, ...]
  steps: int = STEPS
  after: str = ""


def runs(root: pathlib.Path) -> dict[str, Run]:
  """Returns the runs by name, each after what it starts from; their files are under `root`."""
  return _supervised(root) | _drawing(root)


def begin(root: pathlib.Path) -> None:
  """Writes under `root` what all runs start from."""
  root.mkdir(parents=True, exist_ok=True)
  _toy_world.prepare(root / "prepare")
  _toy_world.write_start(root / "start", root / "prepare")
  _toy_world.write_pairs(root / "pairs.jsonl")
  _toy_world.write_labels(root / "labels.jsonl")


def _supervised(root: pathlib.Path) -> dict[str, Run]:
  start: dict[str, Any] = {"init": f"{root}/start"}
  pairs = start | {"preferences": f"{root}/pairs.jsonl", "validation": 0.2}
  labels = start | {"labels": f"{root}/labels.jsonl", "validation": 0.2, "loss": "kto(beta=0.1)"}
  dropping = dataclasses.replace(_toy_world.SHAPE, dropout=0.1)
  two = config.Model(
    dim=32, layers=1, encoder_layers=1, heads=2, position="relative", qk_norm=False, tied=False
  )
  answering: dict[str, Any] = {"init": f"{root}/t5", "length": 32, "input_length": 48}
  return {
    "pretrain": Run(
      pretrain,
      _tiny(config.Pretrain, root, model=dropping, accum=2),
      (*_LM, "eval/bits_per_byte"),
    ),
    "t5": Run(pretrain, _tiny(config.Pretrain, root, model=two, length=48), _LM),
    "t5_sft": Run(sft, _tiny(config.Sft, root, **answering), _LM, after="t5"),
    "sft": Run(sft, _tiny(config.Sft, root, **start), _LM),
    "sft_lora": Run(
      sft, _tiny(config.Sft, root, lora=config.Lora(rank=2, alpha=4.0), **start), _LM
    ),
    "reward": Run(
      reward,
      _tiny(config.Reward, root, **pairs),
      ("loss", "grad_norm", "margin", "chosen_score", "eval/margin"),
    ),
    "dpo": Run(dpo, _tiny(config.Dpo, root, **pairs), (*_PAIRS, "eval/rewards/margins")),
    "kto": Run(
      dpo,
      _tiny(config.Dpo, root, **labels),
      ("loss", "grad_norm", "kl", "rewards/chosen", "rewards/rejected", "eval/loss"),
    ),
  }


def _drawing(root: pathlib.Path) -> dict[str, Run]:
  """Runs that learn from answers of their own, or have them judged."""
  start: dict[str, Any] = {"init": f"{root}/start"}
  asking = start | {"prompt_length": 48, "sampling": _SAMPLING}
  scored = asking | {"score": "gold", "samples": 4}
  # The divergence's coefficient follows a target; an update that goes far ends no iteration.
  kl: dict[str, Any] = {"kl_target": 0.5, "kl_horizon": 100.0, "max_approxkl": 0.0}
  return {
    "ppo": Run(
      ppo,
      _tiny(config.Ppo, root, reward=f"{root}/reward", rollouts=16, **asking, **kl),
      (*_POLICY, "loss/value", "val/explained_variance", "kl_coef", "gold/mean"),
      DRAWN,
      "reward",
    ),
    "grpo": Run(
      grpo,
      _tiny(config.Grpo, root, prompts=4, kl_coef=0.05, **scored),
      (*_POLICY, "loss/kl"),
      DRAWN,
    ),
    "rejection": Run(
      rejection,
      _tiny(
        config.Rejection, root, prompts=8, questions=16, rounds=2, ended_only=False, **scored
      ),
      ("loss", "grad_norm", "chosen/scores", "chosen/length", "best_of/2/score", *_ANSWERS),
      DRAWN,
    ),
    "online_dpo": Run(
      online_dpo,
      _tiny(config.OnlineDpo, root, prompts=8, batch=4, **scored),
      (*_PAIRS, "objective/score_gap", "objective/kl", "pairs/tied", *_ANSWERS),
      DRAWN,
    ),
    "rlaif": Run(
      rlaif,
      config.Rlaif(
        prepared=f"{root}/prepare", questions=12, prompts=12, drawn=2, length=64,
        sampling=_SAMPLING, mesh=config.Mesh(data=1),
        judge=config.Judge(run=start["init"], length=256, rows=16), init=start["init"],
      ),
      ("written", "ties", "same_or_empty", "order_changed", "letter_a", "probability"),
      1,
    ),
  }  # fmt: skip


def _tiny(make: type, root: pathlib.Path, **fields: Any) -> Any:
  """A stage's config: a few steps on one device, each with a row of metrics."""
  usual: dict[str, Any] = {"prepared": f"{root}/prepare", "steps": STEPS, "batch": 8, "length": 96}
  usual |= {"log_every": 1, "eval_every": STEPS, "checkpoint_every": STEPS}
  usual |= {"optimizer": config.Optimizer(lr=5e-3, warmup=2, weight_decay=0.1)}
  return make(**(usual | {"mesh": config.Mesh(data=1)} | fields))
