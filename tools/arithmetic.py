"""SFT on a few sums in words, then GRPO on a score that checks answers, for several seeds.

python -m tools.arithmetic --out=runs/arithmetic --seeds=0,1,2
Prints the share of held-out questions that greedy answers get right, of every run and its
controls. What is finished is not run again; the settings are those of configs/arithmetic.py.
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from configs import arithmetic as settings
from llm_jax import config, rundir
from llm_jax.errors import UserError
from llm_jax.stages import grpo, pipeline, prompts
from llm_jax.train import parallel
from tools import make_arithmetic

# Directory of a run -> module of its stage.
ORDER = {
  "prepare": "prepare",
  "pretrain": "pretrain",
  "sft": "sft",
  "grpo": "grpo",
  "grpo_constant": "grpo",
  "sft_more": "sft",
}
ROWS = {
  "sft": "SFT",
  "grpo": "SFT, then GRPO",
  "lift": "points by which GRPO lifts it",
  "grpo_constant": "SFT, then GRPO with the same score for every answer",
  "sft_more": "SFT, then as many updates of SFT on the same answers",
  "frequent": "the most frequent answer",
}


def main(argv: list[str] | None = None) -> int:
  """Runs what is missing, one seed after the other, then prints a Markdown table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/arithmetic"))
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--answers", type=float, help="share of the questions that SFT learns from")
  options = parser.parse_args(argv)
  try:
    found = {}
    for seed in _seeds(options.seeds):
      root = options.out / f"seed{seed}"
      found[seed] = run(root, seed, stages(root, seed, options.answers))
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  print(table(found))
  return 0


def stages(root: pathlib.Path, seed: int, answers: float | None = None) -> dict[str, Any]:
  """Returns the configuration of each run below `root`.

  Args:
    root: directory of the chain.
    seed: of every run.
    answers: share of the training questions whose answers SFT sees; None: as configured.

  Raises:
    UserError: if there is no such share.
  """
  if answers is not None and not 0 < answers <= 1:
    raise UserError(f"--answers must be above 0 and at most 1, got {answers}")
  made = {
    name: dataclasses.replace(settings.get_config(name, str(root)), seed=seed) for name in ORDER
  }
  if answers is not None:
    for name in ("sft", "sft_more"):
      made[name].data = (f"{root}/data/train.jsonl={answers}",)
  return made


def run(
  root: pathlib.Path,
  seed: int,
  cfgs: Mapping[str, Any],
  data: tuple[str, ...] = (),
) -> dict[str, float]:
  """Runs the chain of one seed, or goes on with it, and returns its figures.

  Args:
    root: gets data/, a directory for each run, time.json and figures.json.
    seed: of the data and of every run.
    cfgs: of every run, as `stages` has them.
    data: more words for tools.make_arithmetic.

  Returns:
    Shares of right answers to held-out questions by the keys of ROWS ("lift": in points), and
    "seconds" of all runs.

  Raises:
    UserError: if a run refuses its configuration, or `root` holds runs of another one.
  """
  path, clock = root / "figures.json", pipeline.Clock(root / "time.json")
  if not (root / "data" / "corpus.jsonl").exists():  # Written last.
    make_arithmetic.write([f"--out={root / 'data'}", f"--seed={seed}", *data])
  finished = path.exists()
  for name, cfg in cfgs.items():
    with rundir.launch(cfg, str(root / name)):  # Finished or not, it must be of this configuration.
      if finished:
        continue
      module = importlib.import_module(f"llm_jax.stages.{ORDER[name]}")
      print(f"== seed {seed}: {name}", flush=True)
      with clock.measure(name):
        module.run(cfg, str(root / name))
  if not finished:
    rundir.write_json(path, _figures(root, cfgs["grpo"]))
  return json.loads(path.read_text()) | {"seconds": sum(clock.seconds.values())}


def table(found: Mapping[int, Mapping[str, float]]) -> str:
  """One row a figure: every seed's, and the mean."""
  lines = [f"| held-out accuracy | {' | '.join(f'seed {seed}' for seed in found)} | mean |"]
  lines.append("|---|" + "--:|" * (len(found) + 1))
  for key, title in (*ROWS.items(), ("seconds", "seconds in all")):
    values = [figures[key] for figures in found.values()]
    shape = {"lift": "+.1f", "seconds": ".0f"}.get(key, ".3f")
    cells = " | ".join(format(value, shape) for value in [*values, statistics.fmean(values)])
    lines.append(f"| {title} | {cells} |")
  return "\n".join(lines)


def _figures(root: pathlib.Path, cfg: config.Grpo) -> dict[str, float]:
  train, held_out = (prompts.load(files, cfg.prepared) for files in (cfg.data, cfg.eval_data))
  found = {}
  for name in ("sft", "grpo", "grpo_constant", "sft_more"):
    asking = dataclasses.replace(cfg, init=str(root / name), score="exact")
    collect = grpo.Collector.load(asking, str(root), parallel.make(cfg.mesh), None)
    measured = collect.actor.measure(collect.reference, held_out, cfg.prompts)
    found[name] = measured["score"]
  guess = Counter(row.truth for row in train).most_common(1)[0][0]
  found["frequent"] = statistics.fmean(row.truth == guess for row in held_out)
  return found | {"lift": 100 * (found["grpo"] - found["sft"])}


def _seeds(text: str) -> list[int]:
  words = text.split(",")
  if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
    raise UserError(f"--seeds={text} must be different numbers, such as 0,1,2")
  return [int(word) for word in words]


if __name__ == "__main__":
  sys.exit(main())
