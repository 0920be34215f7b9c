"""A made-up run with the shape of a real one. Its numbers are test data and mean nothing."""

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest

from llm_jax import config

PYDOC = (
  "itertools.chain(*iterables) returns a chain object whose .__next__() method returns elements "
  "from the first iterable until it is exhausted, then elements from the next iterable."
)
QUESTIONS = [
  ("itertools.chain", "What does itertools.chain do?", PYDOC),
  ("shutil.which", "What is shutil.which for?", "Given a command, mode, and a PATH string, return "
   "the path which conforms to the given mode on the PATH, or None if there is no such file."),
  ("math.hypot", "What does math.hypot return?", "Multidimensional Euclidean distance from the "
   "origin to a point."),
  ("os.path.join", "Explain os.path.join.", "Join two or more pathname components, inserting '/' "
   "as needed."),
]  # fmt: skip


def summary() -> dict:
  """A complete summary.json."""
  rng = random.Random(0)
  return {
    "version": "0.1.0",
    "seed": 0,
    "command": "python -m experiments.pipeline --config=configs/quickstart.py "
    "--workdir=runs/quickstart",
    "versions": {"jax": "0.10.2", "flax": "0.12.1", "optax": "0.2.8", "orbax-checkpoint": "0.12.0",
                 "numpy": "2.4.1", "grain": "0.2.16", "sentencepiece": "0.2.1"},
    "machine": {"cores": 2, "python": "3.11.2", "jax": "0.10.2", "device": "cpu"},
    "time": {"prepare": 41.2, "pretrain": 243.0, "sft": 61.5, "preferences": 18.9, "reward": 44.1,
             "dpo": 52.3, "ppo": 148.7, "evaluate": 33.6, "total": 655.4},
    "peak_memory_gib": 2.31,
    "data": _data(),
    "pretrain": {"parameters": 1_378_944, "tokens": 4_915_200, "bits_per_byte": 1.402,
                 "unigram_bits_per_byte": 2.418, "reduction": 0.42},
    "next_token": _next_token(),
    "answers": _answers(rng),
    "policies": _policies(),
    "win_rates": {"sft_vs_sft": {"rate": 0.503, "se": 0.018, "n": 256},
                  "dpo_vs_sft": {"rate": 0.641, "se": 0.024, "n": 256},
                  "ppo_vs_sft": {"rate": 0.588, "se": 0.025, "n": 256}},
    "reward": _reward(),
    "checks": [
      {"name": "bits per byte beat the unigram model by", "value": 0.42, "target": ">= 0.30",
       "pass": True},
      {"name": "SFT answers that end", "value": 0.962, "target": ">= 0.90", "pass": True},
      {"name": "reward accuracy, worst kind", "value": 0.713, "target": ">= 0.60", "pass": True},
      {"name": "shuffled-label control, distance from chance", "value": 0.021,
       "target": "<= 0.05", "pass": True},
      {"name": "PPO raises the gold score", "value": 0.004, "target": "> 2 se", "pass": False},
    ],
  }  # fmt: skip


def _data() -> dict:
  funnel = [
    ("read", 15210, 41.9e6, None, 3.1, {}),
    ("extract", 14988, 21.4e6, None, 14.8, {"empty page": 222}),
    ("filters", 12841, 19.8e6, None, 5.2,
     {"too short": 1411, "symbol lines": 498, "repeated lines": 187, "not English": 51}),
    ("exact duplicates", 12120, 18.9e6, None, 0.9, {"same text": 721}),
    ("near duplicates", 11492, 17.2e6, None, 9.7, {"Jaccard >= 0.8": 628}),
    ("tokenise", 11492, 17.2e6, 5_120_344, 7.5, {}),
  ]  # fmt: skip
  keys = ("step", "documents", "bytes", "tokens", "seconds", "dropped")
  return {
    "funnel": [dict(zip(keys, row, strict=True)) | {"edited": {}} for row in funnel[:-1]]
    + [dict(zip(keys, funnel[-1], strict=True)) | {"edited": {"paragraphs": 16_252}}],
    "drop_samples": [
      {"id": "pydoc:xml.etree", "step": "filters", "reason": "too short",
       "sample": "xml.etree - package\n\nPACKAGE CONTENTS"},
      {"id": "pydoc:opcode#tables", "step": "filters", "reason": "symbol lines",
       "sample": "0x00 | NOP | -- | --\n0x01 | POP_TOP | -1 | --"},
      {"id": "pydoc:posixpath.join", "step": "exact duplicates", "reason": "same text",
       "url": "https://docs.invalid/posixpath.html", "kept": "37004b416cb0", "score": 1.0,
       "sample": "join(a, *p)\n    Join two or more pathname components, inserting '/' as needed."},
    ],
    "before_after": [
      {"url": "pydoc:itertools", "before": "<html><head><title>Python: built-in module itertools"
       "</title></head>\n<body>\n<table class=\"heading\"><tr><td>&nbsp;<br><strong>itertools"
       "</strong></td><td><a href=\".\">index</a></td></tr></table>\n<p>Functional tools for "
       "creating and using iterators.</p>" * 3, "after": "itertools\n\nFunctional tools for "
       "creating and using iterators.\n\nInfinite iterators:\ncount(start=0, step=1) --> start, "
       "start+step, start+2*step, ..."},
    ],
    "tokenizer": {"vocab_size": 4096, "bytes_per_token": 3.36},
    "splits": {"train": {"documents": 10921, "bytes": 16.3e6, "tokens": 4_861_902},
               "validation": {"documents": 571, "bytes": 0.87e6, "tokens": 258_442}},
    "duplicates": [{
      "step": "duplicates(threshold=0.8)", "clusters": 31, "documents": 70,
      "sizes": [{"members": 2, "clusters": 29}, {"members": 4, "clusters": 2}],
      "largest": [{"cluster": "posixpath", "members": 5, "dropped": [
        {"id": "ntpath", "kept": "posixpath", "score": 0.93, "reason": "near duplicate",
         "sample": "Common operations on <Posix> pathnames."}]}],
    }],
    "statistics": {
      "lengths": [{"words": 1, "documents": 4}, {"words": 64, "documents": 6021}],
      "languages": [{"language": "en", "documents": 198}, {"language": "la", "documents": 2}],
      "sources": [{"source": "pydocs.warc.gz", "documents": 11492, "bytes": 17.2e6}],
      "other_sources": 3,
      "grams": {"1": [{"phrase": "the", "times": 100_000}],
                "3": [{"phrase": "the name of", "times": 912}]},
    },
  }  # fmt: skip


def _next_token() -> list:
  return [
    {"context": "Return a new sorted list from the items in", "truth": " iterable",
     "candidates": [[" the", 0.41], [" iterable", 0.22], [" a", 0.13], [" this", 0.06]]},
    {"context": "If the optional argument is given, it must be", "truth": " a",
     "candidates": [[" a", 0.36], [" an", 0.17], [" the", 0.09], [" callable", 0.04]]},
    {"context": "class OrderedDict(dict)\n |  Dictionary that remembers insertion",
     "truth": " order", "candidates": [[" of", 0.19], ["\n", 0.11], [" into", 0.08]]},
    {"context": "Raises ValueError if the value is not", "truth": " present",
     "candidates": [[" present", 0.52], [" found", 0.12], [" a", 0.07], [" in", 0.05]]},
  ]  # fmt: skip


def _answers(rng: random.Random) -> list:
  out = []
  for i in range(12):
    name, question, truth = QUESTIONS[i % len(QUESTIONS)]
    gold = {"base": 0.03 + 0.04 * rng.random(), "sft": 0.2 + 0.3 * rng.random(),
            "dpo": 0.3 + 0.35 * rng.random(), "ppo": 0.25 + 0.35 * rng.random()}  # fmt: skip
    out.append({
      "object": name, "question": question, "truth": truth,
      "base": f"{question}\n |  Return self<value.\n |\n |  __ne__(self, value, /)\n | " * 2,
      "sft": "Return an iterator over the elements of the iterable until it is exhausted.",
      "dpo": truth[:90] + " of the given object.",
      "ppo": truth[:70] + ".",
      "gold": {k: round(v, 3) for k, v in gold.items()},
    })  # fmt: skip
  return out


def _policies() -> dict:
  keys = (
    "end_rate",
    "relevance",
    "relevance_shuffled",
    "difference",
    "form",
    "gold",
    "reward",
    "kl",
    "length",
  )
  table = {
    "base": (0.031, 0.112, 0.094, 0.018, 0.18, 0.041, -2.61, 38.2, 47.1),
    "sft": (0.962, 0.318, 0.121, 0.197, 0.83, 0.262, 0.02, 0.0, 17.4),
    "dpo": (0.941, 0.371, 0.118, 0.253, 0.86, 0.331, 1.12, 7.9, 19.8),
    "ppo": (0.988, 0.349, 0.120, 0.229, 0.88, 0.304, 1.47, 5.2, 16.1),
  }
  errors = (0.006, 0.009, 0.006, 0.01, 0.008, 0.008, 0.05, 0.21, 0.3)
  return {
    name: dict(zip(keys, row, strict=True))
    | {f"{k}_se": e for k, e in zip(keys, errors, strict=True)}
    for name, row in table.items()
  }


def _reward() -> dict:
  bins = [(0.05 + 0.1 * i, 140 - 9 * abs(2 * i - 9)) for i in range(10)]
  edges = [-5 + 0.5 * i for i in range(21)]
  bell = lambda m: [round(400 * math.exp(-((e + 0.25 - m) ** 2) / 2.4)) for e in edges[:-1]]  # noqa: E731
  return {
    "accuracy": {"other_object": 0.912, "cut_off": 0.871, "repetitive": 0.984, "sft_sample": 0.713},
    "shuffled": {"other_object": 0.489, "cut_off": 0.521, "repetitive": 0.508, "sft_sample": 0.494},
    "calibration": [
      {"predicted": p, "observed": round(min(1.0, max(0.0, 0.5 + 0.85 * (p - 0.5))), 3), "n": n}
      for p, n in bins
    ],
    "histogram": {"edges": edges, "chosen": bell(1.3), "rejected": bell(-1.4)},
    "margins": {"edges": edges, "margin": bell(0.8)},
    "length_correlation": 0.18,
  }


def metrics(stage: str, steps: int = 60) -> list[dict]:
  """Rows of one stage's metrics.jsonl."""
  rng = random.Random(stage)
  rows = []
  for i in range(steps):
    f, noise = (i + 1) / steps, rng.gauss(0, 1)
    row = {"step": 10 * (i + 1), "time/unix": 1.7e9 + 2.0 * i,
           "lr": 1e-3 * min(1, 10 * f, 3.3 * (1 - f) + 0.01),
           "grad_norm": 0.6 + 1.5 * math.exp(-9 * f) + 0.06 * abs(noise),
           "time/step": 0.2, "time/data_share": 0.02 + 0.001 * abs(noise),
           "time/tokens_per_second": 20500 + 500 * noise}  # fmt: skip
    row |= ROWS[stage](f, noise, i)
    rows.append(row)
  return rows


def _pretrain(f: float, noise: float, i: int) -> dict:
  loss = 3.2 + 4.6 * math.exp(-6 * f) + 0.06 * noise
  row = {"loss": loss, "nll": loss - 0.01}
  if i % 8 == 7:
    held = 3.27 + 4.6 * math.exp(-6 * f)
    row |= {"eval/loss": held, "eval/bits_per_byte": held / math.log(2) / 3.36}
  return row


def _sft(f: float, noise: float, i: int) -> dict:
  row = {"loss": 1.9 + 1.8 * math.exp(-5 * f) + 0.08 * noise}
  return row | ({"eval/loss": 2.05 + 1.7 * math.exp(-5 * f)} if i % 8 == 7 else {})


KINDS = ("other_object", "cut_off", "repetitive", "sft_sample")


def _rm(f: float, noise: float, i: int) -> dict:
  row = {"loss": 0.69 - 0.35 * f + 0.03 * noise, "accuracy": min(1, 0.52 + 0.35 * f + 0.03 * noise),
         "margin": 2.6 * f + 0.1 * noise}  # fmt: skip
  return row | (
    {f"eval/accuracy/{k}": 0.5 + 0.3 * f for k in KINDS} | {"eval/loss": 0.7 - 0.33 * f}
    if i % 8 == 7
    else {}
  )


def _dpo(f: float, noise: float, i: int) -> dict:
  chosen, rejected = -0.4 * f + 0.03 * noise, -2.2 * f + 0.05 * noise
  row = {"loss": math.log(2) - 0.3 * f + 0.02 * noise, "rewards/chosen": chosen,
         "rewards/rejected": rejected, "rewards/margins": chosen - rejected,
         "rewards/accuracies": min(1, 0.5 + 0.38 * f + 0.04 * noise),
         "logps/chosen": -52 - 4 * f + noise, "logps/rejected": -61 - 22 * f + noise}  # fmt: skip
  return row | ({"eval/rewards/accuracies": 0.5 + 0.33 * f} if i % 8 == 7 else {})


def _ppo(f: float, noise: float, i: int) -> dict:
  kl, score = 5.2 * f**0.8 + 0.25 * noise, 1.5 * (1 - math.exp(-3 * f)) + 0.1 * noise
  row = {"objective/kl": kl, "objective/scores": score, "objective/raw_scores": 0.02 + score,
         "objective/rlhf_reward": score - 0.05 * kl,
         "objective/non_score_reward": -0.05 * kl, "objective/entropy": 28 - 9 * f + 0.5 * noise,
         "policy/approxkl": 0.004 + 0.001 * abs(noise), "policy/clipfrac": 0.03 + 0.01 * abs(noise),
         "val/explained_variance": 0.75 - 1.1 * math.exp(-6 * f) + 0.04 * noise,
         "val/clipfrac": 0.02 + 0.01 * abs(noise), "rollout/end_rate": min(1, 0.95 + 0.04 * f),
         "rollout/length": 17.5 - 1.5 * f + 0.3 * noise, "kl_coef": 0.05,
         "loss/policy": -0.02 + 0.004 * noise, "loss/value": 0.3 - 0.2 * f}  # fmt: skip
  return row | ({"gold/mean": 0.26 + 0.05 * f - 0.012 * f * f} if i % 4 == 3 else {})


ROWS = {"pretrain": _pretrain, "sft": _sft, "reward": _rm, "dpo": _dpo, "ppo": _ppo}


def write_run(workdir: Path, steps: int = 60, seed: int = 0) -> Path:
  """Writes a complete run."""
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "summary.json").write_text(json.dumps(summary()))
  settings = {"seed": seed, "dpo": {"loss": "logistic(beta=0.1)"}, "ppo": {"kl_estimator": "k1"}}
  (workdir / "config.json").write_text(json.dumps(settings))
  for stage in ROWS:
    (workdir / stage).mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in metrics(stage, steps))
    (workdir / stage / "metrics.jsonl").write_text(lines)
  return workdir


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
  """A complete run in a folder of its own."""
  return write_run(tmp_path / "quickstart")


@pytest.fixture
def second(tmp_path: Path) -> Path:
  """Another run of the same name, shorter, in another folder."""
  return write_run(tmp_path / "other" / "quickstart", steps=40, seed=1)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
  """The workdir of PPO that ran alone, with a config of this version."""
  alone = tmp_path / "my_run"
  alone.mkdir()
  rows = "".join(json.dumps(row) + "\n" for row in metrics("ppo"))
  (alone / "metrics.jsonl").write_text(rows)
  cfg = config.Ppo(steps=600, kl_estimator="k3", seed=5)
  (alone / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
  launch = {"command": ["/somewhere/experiments/ppo.py", "--workdir=a b"], "versions": {"jax": "1"}}
  (alone / "info.json").write_text(json.dumps([launch]))
  return alone
