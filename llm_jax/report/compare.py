"""One page that compares runs: what differs in their configs, their figures, and their curves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_jax.errors import UserError
from llm_jax.report.load import Run, load
from llm_jax.report.markup import (
  DASH,
  Html,
  clip,
  count,
  dig,
  el,
  join,
  number,
  percent,
  real,
  rows,
  seconds,
  section,
  table,
)
from llm_jax.report.overlay import COLORS, curves, frontier, groups
from llm_jax.report.page import DRAWING, files, page, write
from llm_jax.stages.glossary import explain

MOST = 2 * len(COLORS)  # Runs: each colour once as a full line and once dashed.
FIELDS = 300  # Rows of the table of differences.
LINKS = (
  ("differences", "Differences"),
  ("figures", "Figures"),
  ("curves", "Curves"),
  ("frontier", "Reward and KL"),
)

# path in summary.json -> (title, which is better, format).
WHOLE: dict[str, tuple[str, str, Callable]] = {
  "pretrain.parameters": ("Parameters", "", count),
  "pretrain.tokens": ("Pretraining tokens", "", count),
  "pretrain.bits_per_byte": ("Bits per byte, held out", "lower", real),
  "pretrain.reduction": ("Bits per byte under the unigram model's", "higher", percent),
  "reward.length_correlation": ("Correlation of score and length", "", real),
  **{
    f"policies.{policy}.{key}": (f"{policy.upper()}: {title}", better, show)
    for policy in ("sft", "dpo", "ppo")
    for key, title, better, show in (
      ("gold", "gold score", "higher", real),
      ("difference", "relevance over that to another question", "higher", real),
      ("end_rate", "answers that end", "higher", percent),
      ("kl", "KL to SFT, nats", "", real),
      ("length", "words per answer", "", real),
    )
  },
  "win_rates.dpo_vs_sft.rate": ("DPO beats SFT", "higher", percent),
  "win_rates.ppo_vs_sft.rate": ("PPO beats SFT", "higher", percent),
  "time.total": ("Total time", "lower", seconds),
  "peak_memory_gib": ("Peak memory, GiB", "lower", real),
}
# metric -> which is better; "": neither.
BETTER = {
  "eval/bits_per_byte": "lower",
  "eval/loss": "lower",
  "loss": "lower",
  "eval/accuracy": "higher",
  "accuracy": "higher",
  "eval/calibration_error": "lower",
  "eval/length_correlation": "",
  "margin": "",
  "eval/rewards/accuracies": "higher",
  "rewards/accuracies": "higher",
  "rewards/margins": "",
  "logps/chosen": "",
  "gold/mean": "higher",
  "eval/score": "higher",
  "objective/scores": "higher",
  "chosen/scores": "higher",
  "objective/kl": "",
  "objective/entropy": "",
  "policy/clipfrac": "",
  "val/explained_variance": "higher",
  "rollout/end_rate": "higher",
  "rollout/length": "",
  "groups/tied": "lower",
  "pairs/tied": "lower",
  "grad_norm": "",
  "skipped": "lower",
  "time/tokens_per_second": "higher",
  "time/data_share": "lower",
}
# What must be the same for two values to be of one unit.
UNITS = {
  "loss": ("loss",),
  "eval/loss": ("loss",),
  "eval/score": ("score", "reward"),
  "objective/scores": ("score", "reward"),
  "chosen/scores": ("score",),
}
SHARES = ("accurac", "rate", "tied", "frac", "share", "skipped", "calibration")


def build(workdirs: Sequence[Path | str], target: Path | str = "comparison.html") -> Path:
  """Writes the page that compares runs, or workdirs of single stages; returns its path.

  Raises:
    UserError: fewer than two runs, one that is named twice or is missing, or a malformed file.
  """
  target = Path(target)
  if not target.parent.is_dir():
    raise UserError(f"--out={target}: {target.parent} is no folder; make it first")
  names(workdirs)  # Complains before anything is read.
  write(target, lambda points: render(workdirs, points))
  return target


def export(workdirs: Sequence[Path | str], directory: Path | str) -> list[Path]:
  """Writes the tables of the comparison as CSV and its charts as SVG; returns their paths.

  Raises:
    UserError: as of `build`, or the directory cannot be written.
  """
  return files(render(workdirs), directory)


def render(workdirs: Sequence[Path | str], points: int = 500) -> str:
  """Returns the page that compares runs."""
  runs = dict(zip(names(workdirs), (load(path, points) for path in workdirs), strict=True))
  overlaid, payload = curves(runs)
  paid = frontier(runs)
  sections = [differences(runs), figures(runs), overlaid, *([paid] if paid else [])]
  links = LINKS if paid else LINKS[:-1]
  return page(f"Comparison of {len(runs)} runs", _keys(runs), links, sections, payload, DRAWING)


def names(workdirs: Sequence[Path | str]) -> list[str]:
  """Returns a short name of each run: that of its folder, with parents where it needs them.

  Raises:
    UserError: fewer than two runs, more than there are colours, or one twice.
  """
  paths = [Path(path).resolve() for path in workdirs]
  if len(paths) < 2:
    raise UserError(f"--runs needs at least two runs to compare, got {len(paths)}")
  if len(paths) > MOST:
    raise UserError(f"--runs compares at most {MOST} runs, got {len(paths)}")
  for i, path in enumerate(paths):
    if path in paths[:i]:
      raise UserError(f"--runs: {workdirs[i]} is named twice; name each run once")
  return [_name(path, paths) for path in paths]


def differences(runs: dict[str, Run]) -> Html:
  """Returns the section on the fields of config.json that are not the same in all runs."""
  flat = {name: flattened(one) for name, one in settings(runs).items()}
  fields = list(dict.fromkeys(field for one in flat.values() for field in one))
  found = [field for field in fields if len({one.get(field, DASH) for one in flat.values()}) > 1]
  lead = "Fields of config.json that are not the same in all runs. "
  lead += f"{count(len(fields) - len(found))} others are the same."
  without = [name for name, run in runs.items() if run.config is None]
  parts = [el("p", f"No config.json: {', '.join(without)}.", cls="missing")] if without else []
  if not found:
    parts.append(el("p", "No field differs."))
    return section("differences", "What differs", lead, *parts)
  body = [
    (el("code", field), *(clip(one.get(field, DASH), 200) for one in flat.values()))
    for field in found[:FIELDS]
  ]
  parts.append(table(("Field", *map(_headed(runs), runs)), body, cls="stack fields"))
  if len(found) > FIELDS:
    parts.append(el("p", f"{len(found) - FIELDS} more fields differ.", cls="note"))
  return section("differences", "What differs", lead, *parts)


def settings(runs: dict[str, Run]) -> dict[str, dict[str, Any]]:
  """Returns the config of each run, so that the same field has the same place in all.

  Beside whole runs, that of a stage alone is put below the stage's name.
  """
  if all(run.single for run in runs.values()):
    return {name: {"stage": run.single} | (run.config or {}) for name, run in runs.items()}
  return {
    name: {run.single: run.config or {}} if run.single else run.config or {}
    for name, run in runs.items()
  }


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
  """Returns "a.b" -> the value as JSON, for every leaf of a config."""
  found = {}
  for name, value in tree.items():
    if isinstance(value, dict) and value:
      found |= flattened(value, f"{prefix}{name}.")
    else:
      found[f"{prefix}{name}"] = value if value and isinstance(value, str) else json.dumps(value)
  return found


def figures(runs: dict[str, Run]) -> Html:
  """Returns the section with the key figures of all runs side by side."""
  lead = (
    "Of evaluations the last value; of training metrics the mean over the last tenth of the "
    "points. The best of a row is marked where one direction is better and the unit is the same; "
    "one run of each kind does not say how much of a difference is chance."
  )
  head = ("Figure", "Better", *map(_headed(runs), runs))
  whole = [
    _row(title, better, [number(dig(run.summary, path)) for run in runs.values()], show)
    for path, (title, better, show) in WHOLE.items()
  ]
  whole.append(_row("Checks that pass", "higher", [_passed(run) for run in runs.values()], count))
  body = [line for line in whole if line]
  parts = [el("h3", "Whole runs"), table(head, body, cls="stack figures")] if body else []
  for title, there in groups(runs)[0].items():
    lines = _group(runs, there)
    parts += [el("h3", title), table(head, lines, cls="stack figures")] if lines else []
  return section("figures", "Key figures", lead, *parts)


def _name(path: Path, paths: Sequence[Path]) -> str:
  parts = path.parts
  for n in range(1, len(parts)):
    if sum(other.parts[-n:] == parts[-n:] for other in paths) == 1:
      return "/".join(parts[-n:])
  return str(path)


def _keys(runs: dict[str, Run]) -> Html:
  """The runs with their colours, for the head of the page."""
  return join((_headed(runs)(name) for name in runs), " ")


def _headed(runs: dict[str, Run]) -> Callable[[str], Html]:
  order = list(runs)

  def headed(name: str) -> Html:
    i = order.index(name)
    dashed = " dashed" if i >= len(COLORS) else ""
    look = f"--swatch:var(--{COLORS[i % len(COLORS)]})"
    return el("span", el("i", cls=f"swatch{dashed}", style=look), name, cls="run")

  return headed


def _group(runs: dict[str, Run], there: dict[str, str]) -> list[tuple]:
  lines = []
  told = [runs[name].settings.get(stage, {}) for name, stage in there.items()]
  for metric, better in BETTER.items():
    values = [_value(run, there.get(name), metric) for name, run in runs.items()]
    apart = [f for f in UNITS.get(metric, ()) if len({str(one.get(f)) for one in told}) > 1]
    why = f"{' and '.join(apart)} differ{'s' * (len(apart) == 1)}" if apart and better else ""
    show = percent if any(word in metric for word in SHARES) else real
    label = el("span", metric, el("small", explain(metric)))
    lines.append(_row(label, "" if why else better, values, show, why))
  last = [
    run.curves[there[name]].times[-1] if name in there else None for name, run in runs.items()
  ]
  lines.append(_row("Time from the first row to the last", "lower", last, seconds))
  return [line for line in lines if line]


def _value(run: Run, stage: str | None, metric: str) -> float | None:
  curves = run.curves.get(stage or "")
  if curves is None:
    return None
  found = [x for x in curves.series.get(metric, []) if x is not None]
  if not found or metric.startswith("eval/"):
    return found[-1] if found else None
  last = found[-max(1, len(found) // 10) :]
  return sum(last) / len(last)


def _row(
  label: Any, better: str, values: Sequence[float | None], show: Callable, why: str = ""
) -> tuple | None:
  """A line of a table of figures; None where no run has the figure."""
  known = [x for x in values if x is not None]
  if not known:
    return None
  best = (min if better == "lower" else max)(known) if better and len({*known}) > 1 else None
  cells = []
  for value in values:
    text = show(value)
    if value is not None and value == best:
      text = el("span", el("b", text, data_value=f"{value:.10g}"), el("small", "best"))
    cells.append(text)
  direction = el("small", f"not comparable: {why}") if why else better
  return (label, direction, *cells)


def _passed(run: Run) -> float | None:
  checks = rows(run.summary, "checks")
  return float(sum(check.get("pass") is True for check in checks)) if checks else None
