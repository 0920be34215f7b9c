"""A metrics.jsonl as columns that can be drawn, however long the run was."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

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
    step_tokens: places of a step's batch, padding included; None where no row tells.
    begin: when the first row was written, in seconds since 1970; None: no row says.
  """

  steps: list[float]
  times: list[float]
  series: dict[str, list[float | None]]
  rows: int
  unreadable: int
  begin: float | None = None
  step_tokens: float | None = None


def read_curves(path: Path, points: int) -> Curves:
  """Reads a metrics.jsonl into at most `points` points.

  A step that was written twice (a resumed run) keeps its later row.
  """
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
    begin=next((now for row in found if (now := number(row.get(CLOCK))) is not None), None),
    series={name: x for name, x in series.items() if any(v is not None for v in x)},
    rows=len(found),
    unreadable=unreadable,
    step_tokens=_step_tokens(found),
  )


def _step_tokens(rows: list[dict[str, Any]]) -> float | None:
  """Tokens per second times seconds per step: both are of the same clock, so it drops out."""
  pairs = ((number(r.get("time/tokens_per_second")), number(r.get("time/step"))) for r in rows)
  found = sorted(a * b for a, b in pairs if a is not None and b is not None)
  return float(round(found[len(found) // 2])) if found else None


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


def number(value: Any) -> float | None:
  """Returns a finite float, or None for everything that is not one."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return float(value) if math.isfinite(value) else None
  except OverflowError:  # An int beyond every float.
    return None
