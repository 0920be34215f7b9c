"""What a finished or half-finished run left behind: summary.json, config.json and the metrics."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.report.markup import branch, rows
from llm_jax.train.curves import Curves, read_curves

ORDER = ("pretrain", "sft", "reward", "dpo", "ppo")  # Of the pipeline.
FAMILIES = {
  "pretrain": config.Pretrain,
  "sft": config.Sft,
  "reward": config.Reward,
  "dpo": config.Dpo,
  "ppo": config.Ppo,
  "grpo": config.Grpo,
  "online_dpo": config.OnlineDpo,
  "rejection": config.Rejection,
}

_APART = 3  # Fields that a config of another version may have more or less.


@dataclasses.dataclass
class Run:
  """Everything that a report is made from.

  Attributes:
    workdir: of the run.
    summary: summary.json, or what other files say in its place.
    config: config.json.
    curves: of each stage.
    only_corpus: a prepared corpus, which has no stages.
    single: the one stage that the folder is the workdir of; "" of a whole run.
    settings: of each stage its part of the config.
    shapes: of each stage its model.json.
  """

  workdir: Path
  summary: dict[str, Any]
  config: dict[str, Any] | None
  curves: dict[str, Curves]
  only_corpus: bool = False
  single: str = ""
  settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  shapes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

  def family(self, stage: str) -> str:
    """Returns which of the kinds of stages one is: by its config, else by its name; "" if none."""
    return kind(self.settings.get(stage, {})) or named(stage)


def load(workdir: Path | str, points: int = 500) -> Run:
  """Reads a run, or the workdir of one stage; stages without metrics are left out.

  Raises:
    UserError: there is nothing to report, or a file is not what its name says.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise UserError(f"{workdir}: no such run; make one with `python -m experiments.pipeline`")
  summary, settings = _object(workdir / "summary.json"), _object(workdir / "config.json")
  if summary is None and (workdir / "metrics.jsonl").is_file():
    return _stage(workdir, settings, points)
  folders = {path.parent.name: path for path in workdir.glob("*/metrics.jsonl")}
  read = {name: read_curves(folders[name], points) for name in sorted(folders, key=_rank)}
  curves = {name: stage for name, stage in read.items() if stage.series}
  manifest = _object(workdir / "manifest.json")
  if summary is None and not curves and manifest:
    steps = (_object(workdir / "timing.json") or {}).get("steps", {})
    funnel = [row | {"seconds": steps.get(row.get("step"))} for row in rows(manifest, "funnel")]
    found = {"seed": manifest.get("seed"), "data": manifest | {"funnel": funnel}}
    return Run(workdir, found, settings, curves, only_corpus=True)
  if summary is None and not curves:
    raise UserError(f"{workdir}: neither summary.json nor <stage>/metrics.jsonl; run a stage first")
  run = Run(workdir, summary or {}, settings, curves)
  for stage in curves:
    own = _object(workdir / stage / "config.json")
    run.settings[stage] = branch(settings, stage) if own is None else own
    run.shapes[stage] = _object(workdir / stage / "model.json") or {}
  return run


def kind(settings: dict[str, Any]) -> str:
  """Returns the kind of stage that a config is of, by the names of its fields; "" if of none."""
  apart = {
    name: len(settings.keys() ^ {field.name for field in dataclasses.fields(stage)})
    for name, stage in FAMILIES.items()
  }
  nearest = min(apart, key=lambda name: apart[name])
  return nearest if apart[nearest] <= _APART else ""


def named(stage: str) -> str:
  """Returns the kind of stage that a folder's name begins with ("dpo" of "dpo_2"); "" if none."""
  fits = [
    name
    for name in FAMILIES
    if stage.startswith(name) and not stage[len(name) : len(name) + 1].isalpha()
  ]
  return max(fits, key=len, default="")


def _stage(workdir: Path, settings: dict[str, Any] | None, points: int) -> Run:
  """The workdir of one stage as a run of that stage alone."""
  curves = read_curves(workdir / "metrics.jsonl", points)
  if not curves.series:
    raise UserError(f"{workdir}/metrics.jsonl has no readable row yet; let the stage run on")
  name = workdir.resolve().name
  stage = kind(settings or {}) or named(name) or name
  launch = next(iter(reversed(_launches(workdir / "info.json"))), {})
  summary: dict[str, Any] = {
    "version": branch(launch, "versions").get("llm_jax"),
    "versions": branch(launch, "versions"),
    "seed": (settings or {}).get("seed"),
  }
  words = launch.get("command")
  if isinstance(words, list) and words:
    words = [f"python -m experiments.{Path(str(words[0])).stem}", *map(str, words[1:])]
    summary["command"] = " ".join([words[0], *map(shlex.quote, words[1:])])
  run = Run(workdir, summary, settings, {stage: curves}, single=stage)
  run.settings[stage] = settings or {}
  run.shapes[stage] = _object(workdir / "model.json") or {}
  return run


def _launches(path: Path) -> list[dict[str, Any]]:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return []  # It only says how the stage was launched.
  return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _rank(stage: str) -> tuple[int, str]:
  order = list(FAMILIES)
  return (order.index(stage) if stage in FAMILIES else len(order), stage)


def _object(path: Path) -> dict[str, Any] | None:
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}); repair or delete it") from error
  if not isinstance(found, dict):
    raise UserError(f"{path}: expected a JSON object, found a {type(found).__name__}")
  return found
