"""Everything in order, each stage in its own directory, then one summary of what was measured."""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import time
from typing import Any

from llm_jax import config, rundir, spec
from llm_jax.errors import UserError
from llm_jax.stages import summary

# Stage directory -> module of the stage. `reward_shuffled` is the reward model's control.
ORDER = {
  "prepare": "prepare",
  "pretrain": "pretrain",
  "sft": "sft",
  "preferences": "preferences",
  "reward": "reward",
  "reward_shuffled": "reward",
  "dpo": "dpo",
  "ppo": "ppo",
  "evaluate": "evaluate",
}

# Fields of a stage that the pipeline fills in.
FILLED = ("seed", "prepared", "init", "preferences", "reward", "run")


def run(cfg: config.Pipeline, workdir: str) -> dict[str, Any]:
  """Runs all stages and writes `summary.json`; finished stages are not run again."""
  root = pathlib.Path(workdir)
  check(cfg)
  clock = Clock(root / "time.json")
  for name, stage in connect(cfg, root).items():
    directory = root / name
    module = importlib.import_module(f"llm_jax.stages.{ORDER[name]}")
    print(f"== {name}", flush=True)
    workers = cfg.prepare.workers if name == "prepare" else 0
    with rundir.launch(stage, str(directory)), clock.measure(name, workers):
      module.run(stage, str(directory))
  result = summary.build(cfg, root, clock)
  temporary = root / "summary.json.tmp"
  temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
  os.replace(temporary, root / "summary.json")
  return result


def check(cfg: config.Pipeline) -> None:
  """Finds what a late stage would refuse, before the first one takes its minutes.

  Raises:
    UserError: naming the field.
  """
  if cfg.prepare.source != "pydocs":
    raise UserError(
      f"config.prepare.source={cfg.prepare.source}: the pipeline asks questions, which only the "
      "corpus pydocs has; for other sources run experiments.prepare and experiments.pretrain"
    )
  if cfg.pretrain.eval_every < 1:
    raise UserError("config.pretrain.eval_every must be at least 1: the report needs its figure")
  for name, module, spec_text in (
    ("pretrain.loss", "token", cfg.pretrain.loss),
    ("sft.loss", "token", cfg.sft.loss),
    ("reward.loss", "preference", cfg.reward.loss),
    ("dpo.loss", "preference", cfg.dpo.loss),
    ("ppo.loss", "policy", cfg.ppo.loss),
    ("ppo.value_loss", "policy", cfg.ppo.value_loss),
  ):
    try:
      spec.resolve(spec_text, f"llm_jax.losses.{module}")
    except UserError as error:
      raise UserError(f"config.{name}: {error}") from error
  for name in ORDER:
    stage = getattr(cfg, name.removesuffix("_shuffled"))
    usual = type(stage)()
    for field in FILLED:
      if getattr(stage, field, None) != getattr(usual, field, None):
        raise UserError(
          f"config.{name}.{field} is filled in by the pipeline: use config.seed and --workdir"
        )


def connect(cfg: config.Pipeline, root: pathlib.Path) -> dict[str, Any]:
  """Returns each stage's configuration with the seed and the directories filled in."""
  paths = {
    "prepared": root / "prepare",
    "preferences": root / "preferences",
    "reward": root / "reward",
    "run": root,
  }
  start = {"sft": "pretrain", "preferences": "sft", "reward": "sft", "dpo": "sft", "ppo": "sft"}
  stages = {}
  for name in ORDER:
    field = name.removesuffix("_shuffled")
    stage = dataclasses.replace(getattr(cfg, field), seed=cfg.seed)
    names = {f.name for f in dataclasses.fields(stage)}
    for key, path in paths.items():
      if key in names:
        setattr(stage, key, str(path))
    if field in start:
      stage.init = str(root / start[field])
    stages[name] = stage
  stages["reward_shuffled"].shuffle_labels = True
  return stages


class Clock:
  """Seconds and peak memory by stage, kept in a file so that a resumed pipeline adds up."""

  def __init__(self, path: pathlib.Path):
    """Reads what an earlier attempt left at `path`."""
    self._path = path
    saved = json.loads(path.read_text()) if path.exists() else {}
    self.seconds: dict[str, float] = saved.get("seconds", {})
    self.peak_gib: float = saved.get("peak_gib", 0.0)

  @contextlib.contextmanager
  def measure(self, name: str, workers: int = 0):
    """Adds the time of the block, in which so many `workers` run, also when a signal cuts it."""
    begin, refused = time.monotonic(), False
    try:
      yield
    except UserError:
      refused = True  # Bad input: nothing was done, nothing is recorded.
      raise
    finally:
      if not refused:
        self._record(name, time.monotonic() - begin, workers)

  def _record(self, name: str, seconds: float, workers: int) -> None:
    self.seconds[name] = self.seconds.get(name, 0.0) + seconds
    # Linux counts in KiB. Of all children the largest is known: that many times is a bound. Other
    # stages have none, but a child is counted with its parent's memory when it is forked.
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if workers else 0
    self.peak_gib = max(self.peak_gib, (mine + workers * child) / 2**20)
    rundir.write_json(self._path, {"seconds": self.seconds, "peak_gib": self.peak_gib})
