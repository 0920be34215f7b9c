"""Builds preference pairs: true answers against spoilt ones, and an SFT model's best and worst."""

import collections
import json
import os
import pathlib

from llm_jax import config, rundir
from llm_jax.data import preferences
from llm_jax.stages import answers, runs
from llm_jax.train import checkpoint


def run(cfg: config.Preferences, workdir: str) -> dict[str, dict[str, int]]:
  """Writes train.jsonl and validation.jsonl; returns the number of pairs per split and kind.

  Questions of the held-out split are answered by the same model, so that the validation pairs
  hold objects that no stage was trained on.
  """
  out = pathlib.Path(workdir)
  inputs = {"init": checkpoint.fingerprint(cfg.init)}
  if (out / "counts.json").exists():
    done = json.loads((out / "counts.json").read_text())
    if done["inputs"] == inputs:
      return done["pairs"]
  out.mkdir(parents=True, exist_ok=True)
  tokenizer = runs.tokenizer(cfg.prepared)
  policy = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
  counts = {}
  for split, limit in (("train", cfg.questions), ("validation", cfg.validation_questions)):
    questions = runs.asked(cfg.prepared, split)[:limit]
    drawn = answers.draw(
      policy.model,
      policy.params,
      tokenizer,
      [answers.prompt_tokens(tokenizer, q.prompt) for q in questions],
      cfg.sampling,
      seed=cfg.seed,
      samples=cfg.samples,
    )
    easy, others = (cfg.easy, cfg.others) if split == "train" else (1.0, 1)
    pairs = preferences.build(questions, drawn.answers, cfg.seed, easy, others)
    if split == "validation":
      pairs += preferences.plain(questions, drawn.answers)
    temporary = out / f"{split}.jsonl.tmp"
    preferences.write(temporary, pairs)
    os.replace(temporary, out / f"{split}.jsonl")
    counts[split] = dict(collections.Counter(pair.kind for pair in pairs))
  # Written last: its presence says that the pairs are complete.
  rundir.write_json(out / "counts.json", {"inputs": inputs, "pairs": counts})
  return counts
