"""What a finished or half-finished run left behind: summary.json, config.json and the metrics."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from llm_jax.errors import UserError
from llm_jax.report.markup import rows
from llm_jax.train.curves import Curves, read_curves

ORDER = ("pretrain", "sft", "reward", "dpo", "ppo")


@dataclasses.dataclass
class Run:
  """Everything that a report is made from."""

  workdir: Path
  summary: dict[str, Any]
  config: dict[str, Any] | None
  curves: dict[str, Curves]
  only_corpus: bool = False  # A prepared corpus: there are no stages.


def load(workdir: Path | str, points: int = 500) -> Run:
  """Reads a run; stages without metrics are left out.

  Raises:
    UserError: there is nothing to report, or a file is not what its name says.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise UserError(f"{workdir}: no such run; make one with `python -m experiments.pipeline`")
  summary = _object(workdir / "summary.json")
  curves = {}
  for path in sorted(workdir.glob("*/metrics.jsonl"), key=lambda p: _rank(p.parent.name)):
    stage = read_curves(path, points)
    if stage.series:
      curves[path.parent.name] = stage
  manifest = _object(workdir / "manifest.json")
  if summary is None and not curves and manifest:
    steps = (_object(workdir / "timing.json") or {}).get("steps", {})
    funnel = [row | {"seconds": steps.get(row.get("step"))} for row in rows(manifest, "funnel")]
    found = {"seed": manifest.get("seed"), "data": manifest | {"funnel": funnel}}
    return Run(workdir, found, _object(workdir / "config.json"), curves, only_corpus=True)
  if summary is None and not curves:
    raise UserError(f"{workdir}: neither summary.json nor <stage>/metrics.jsonl; run a stage first")
  return Run(workdir, summary or {}, _object(workdir / "config.json"), curves)


def _rank(stage: str) -> tuple[int, str]:
  return (ORDER.index(stage) if stage in ORDER else len(ORDER), stage)


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
