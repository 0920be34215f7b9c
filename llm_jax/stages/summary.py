"""summary.json: every figure of a pipeline, collected from its stages, and the checks on them."""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
from collections.abc import Callable
from typing import Any

import jax

import llm_jax
from llm_jax import config
from llm_jax.models.transformer import count_parameters
from llm_jax.stages import evaluate, pretrain, runs

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece")


# What a figure of a policy means, for readers of the report.
DEFINITIONS = {
  "gold": "mean of relevance and form",
  "relevance": "character n-gram F1 with the true answer, mean over n = 1 to 6",
  "relevance_shuffled": "the same, with another question's answer: what style alone is worth",
  "difference": "relevance minus shuffled relevance: what is about the question",
  "form": "mean of: ends by itself, full sentence, no repeated word pair, length near the truth's",
  "end_rate": "answers that stop by themselves",
  "reward": "raw score of the reward model that PPO was trained on",
  "kl": "log pi/pi_sft (k1) summed over an answer's tokens, at the sampling temperature, in nats",
  "length": "words",
}


def build(cfg: config.Pipeline, root: pathlib.Path, clock) -> dict[str, Any]:
  """Collects the figures of a finished pipeline in `root`."""
  manifest = json.loads((root / "prepare" / "manifest.json").read_text())
  steps = json.loads((root / "prepare" / "timing.json").read_text())["steps"]
  judged = json.loads((root / "evaluate" / "evaluate.json").read_text())
  seconds = {name: round(value, 1) for name, value in clock.seconds.items()}
  figures = {
    "version": llm_jax.__version__,
    "seed": cfg.seed,
    "command": _command(root),
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "machine": {
      "cores": len(os.sched_getaffinity(0)),
      "python": platform.python_version(),
      "jax": jax.__version__,
      "device": jax.devices()[0].device_kind,
    },
    "time": seconds | {"total": round(sum(seconds.values()), 1)},
    "peak_memory_gib": round(clock.peak_gib, 2),
    "data": {
      "funnel": [row | {"seconds": steps.get(row["step"])} for row in manifest["funnel"]],
      "drop_samples": manifest["drop_samples"],
      "before_after": manifest["before_after"],
      "tokenizer": manifest["tokenizer"],
      "splits": manifest["splits"],
      "statistics": manifest["statistics"],
      "duplicates": manifest.get("duplicates", []),
      "questions": manifest.get("questions", {}),
    },
    "pretrain": _pretrain(cfg, root),
    "definitions": DEFINITIONS,
    "kl_estimator": "k1",
  } | judged
  figures["checks"] = [check(figures) for check in CHECKS]
  return figures


def _pretrain(cfg: config.Pipeline, root: pathlib.Path) -> dict[str, float]:
  base = runs.load(str(root / "pretrain"), "run")
  unigram = pretrain.unigram_bits_per_byte(str(root / "prepare"), base.shape.vocab_size)
  measured = evaluate.bits_per_byte(root)
  return {
    "parameters": count_parameters(base.params),
    "tokens": pretrain.tokens_seen(
      dataclasses.replace(cfg.pretrain, prepared=str(root / "prepare"), seed=cfg.seed)
    ),
    "bits_per_byte": measured,
    "unigram_bits_per_byte": unigram,
    "reduction": 1 - measured / unigram,
  }


def _command(root: pathlib.Path) -> str:
  """The command of the launch that ended the run."""
  launches = json.loads((root / "info.json").read_text()) if (root / "info.json").exists() else []
  words = launches[-1]["command"][1:] if launches else []
  return " ".join(["python -m experiments.pipeline", *map(shlex.quote, words)])


def _check(
  name: str, target: str, value: Callable[[dict], float], holds: Callable[[float], bool]
) -> Callable[[dict], dict]:
  def check(figures: dict) -> dict:
    try:
      x = value(figures)
    except (KeyError, ZeroDivisionError):
      x = math.nan
    # What could not be measured did not hold, and JSON knows no NaN.
    known = math.isfinite(x)
    return {
      "name": name,
      "target": target,
      "value": x if known else None,
      "pass": known and bool(holds(x)),
    }

  return check


def _gain(policy: str, field: str, over: str = "sft") -> Callable[[dict], float]:
  return lambda s: s["policies"][policy][field] - s["policies"][over][field]


def _accuracy(kind: str, table: str = "accuracy") -> Callable[[dict], float]:
  return lambda s: s["reward"][table][kind]


# What a sound run shows, with the figure's name as a reader would say it.
CHECKS = (
  _check(
    "bits per byte under the unigram model's",
    ">= 40 %",
    lambda s: s["pretrain"]["reduction"],
    lambda x: x >= 0.40,
  ),
  _check(
    "SFT answers that end by themselves",
    ">= 97 %",
    lambda s: s["policies"]["sft"]["end_rate"],
    lambda x: x >= 0.97,
  ),
  _check(
    "SFT relevance over the base model's best prompt",
    ">= 0.02",
    _gain("sft", "relevance", "base"),
    lambda x: x >= 0.02,
  ),
  _check(
    "SFT relevance, matched minus shuffled",
    ">= 0.03",
    lambda s: s["policies"]["sft"]["difference"],
    lambda x: x >= 0.03,
  ),
  _check("reward model on cut-off answers", ">= 90 %", _accuracy("cut_off"), lambda x: x >= 0.9),
  _check(
    "reward model on repetitive answers", ">= 90 %", _accuracy("repetitive"), lambda x: x >= 0.9
  ),
  _check("reward model on SFT samples", ">= 60 %", _accuracy("sft_sample"), lambda x: x >= 0.6),
  _check(
    "reward model on another object's answer",
    "> 51 %",
    _accuracy("other_object"),
    lambda x: x > 0.51,
  ),
  _check(
    "shuffled labels, another object's answer",
    "44 to 56 %",
    _accuracy("other_object", "shuffled"),
    lambda x: 0.44 <= x <= 0.56,
  ),
  _check(
    "shuffled labels, SFT samples",
    "44 to 56 %",
    _accuracy("sft_sample", "shuffled"),
    lambda x: 0.44 <= x <= 0.56,
  ),
  _check(
    "DPO gold win rate against SFT",
    ">= 58 %",
    lambda s: s["win_rates"]["dpo_vs_sft"]["rate"],
    lambda x: x >= 0.58,
  ),
  _check(
    "DPO sequence KL to SFT, nats", "<= 3", lambda s: s["policies"]["dpo"]["kl"], lambda x: x <= 3
  ),
  _check("DPO control not below SFT's", ">= 0", _gain("dpo", "difference"), lambda x: x >= 0),
  _check(
    "PPO reward over SFT's, standard deviations",
    ">= 0.5",
    lambda s: _gain("ppo", "reward")(s) / s["policies"]["sft"]["reward_std"],
    lambda x: x >= 0.5,
  ),
  _check(
    "PPO sequence KL to SFT, nats", "<= 5", lambda s: s["policies"]["ppo"]["kl"], lambda x: x <= 5
  ),
  _check("PPO gold over SFT's", "> 0", _gain("ppo", "gold"), lambda x: x > 0),
  _check("PPO control not below SFT's", ">= 0", _gain("ppo", "difference"), lambda x: x >= 0),
  _check(
    "null: SFT against SFT",
    "45 to 55 %",
    lambda s: s["win_rates"]["sft_vs_sft"]["rate"],
    lambda x: 0.45 <= x <= 0.55,
  ),
)
