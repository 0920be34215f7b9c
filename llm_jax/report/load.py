"""What a finished or half-finished run left behind: summary.json, config.json and the metrics."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from llm_jax.errors import UserError
from llm_jax.report.markup import number, rows

ORDER = ("pretrain", "sft", "reward", "dpo", "ppo")
CLOCK = "time/unix"  # Seconds since 1970; rows of evaluations may lack it.
RESERVED = ("step", CLOCK)


@dataclasses.dataclass
class Curves:
  """The metrics of one stage as columns, at most `points` long.

  Attributes:
    steps: [N] the step of each point (of the last row, where rows were averaged).
    times: [N] seconds since the stage's first row.
    series: name -> [N] values, None where a row lacks the name.
    rows: how many rows the file has.
    unreadable: how many lines were no JSON object, as the last one of a killed run may be.
  """

  steps: list[float]
  times: list[float]
  series: dict[str, list[float | None]]
  rows: int
  unreadable: int


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


def read_curves(path: Path, points: int) -> Curves:
  """Reads a metrics.jsonl. A step that was written twice (a resumed run) keeps its later row."""
  by_step: dict[float, dict[str, Any]] = {}
  unreadable = 0
  for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      step = number(row["step"])
      if step is None:
        raise ValueError("step is no number")
      by_step[step] = by_step.get(step, {}) | row
    except (ValueError, KeyError, TypeError):
      unreadable += 1
  found = [by_step[step] for step in sorted(by_step)]
  clock = _clock(found)
  width = max(1, math.ceil(len(found) / points))
  groups = [found[i : i + width] for i in range(0, len(found), width)]
  names = {name: None for row in found for name in row if name not in RESERVED}
  series = {name: [_mean(group, name) for group in groups] for name in names}
  return Curves(
    steps=[group[-1]["step"] for group in groups],
    times=[clock[min(i + width, len(found)) - 1] for i in range(0, len(found), width)],
    series={name: x for name, x in series.items() if any(v is not None for v in x)},
    rows=len(found),
    unreadable=unreadable,
  )


def _clock(rows: list[dict[str, Any]]) -> list[float]:
  """Seconds since the first row; never backwards, though a machine's clock may be set back."""
  seen = [number(row.get(CLOCK)) for row in rows]
  last = next((now for now in seen if now is not None), 0.0)
  out, elapsed = [], 0.0
  for now in seen:
    if now is not None:
      elapsed, last = elapsed + max(now - last, 0.0), now
    out.append(round(elapsed, 3))
  return out


def _mean(group: list[dict[str, Any]], name: str) -> float | None:
  """The average over the rows that have the name, to six significant digits."""
  found = [x for row in group if (x := number(row.get(name))) is not None]
  return float(f"{sum(found) / len(found):.6g}") if found else None


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
