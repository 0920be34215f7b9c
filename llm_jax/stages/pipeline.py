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

from llm_jax import config, rundir
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


def run(cfg: config.Pipeline, workdir: str) -> dict[str, Any]:
  """Runs all stages and writes `summary.json`; finished stages are not run again."""
  root = pathlib.Path(workdir)
  clock = Clock(root / "time.json")
  for name, stage in connect(cfg, root).items():
    directory = root / name
    rundir.start(stage, str(directory))
    module = importlib.import_module(f"llm_jax.stages.{ORDER[name]}")
    print(f"== {name}", flush=True)
    with clock.measure(name):
      module.run(stage, str(directory))
  result = summary.build(cfg, root, clock)
  temporary = root / "summary.json.tmp"
  temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
  os.replace(temporary, root / "summary.json")
  return result


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
  def measure(self, name: str):
    """Adds the time of the block to `name`, also when it is cut short."""
    begin = time.monotonic()
    try:
      yield
    finally:
      self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
      # Linux counts in KiB; a child's peak counts too, for `prepare` has workers.
      peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
      ]
      self.peak_gib = max(self.peak_gib, sum(peaks) / 2**20)
      self._path.write_text(
        json.dumps({"seconds": self.seconds, "peak_gib": self.peak_gib}, indent=2) + "\n"
      )
