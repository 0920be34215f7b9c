"""Where the time went, and everything that is needed to run the same again."""

import json
from typing import Any

from llm_jax.report.load import Run
from llm_jax.report.markup import (
  DASH,
  Html,
  bar,
  branch,
  details,
  dig,
  el,
  join,
  missing,
  number,
  percent,
  real,
  seconds,
  section,
  table,
)

LEAD = (
  "Wall-clock time of each stage, compilation and evaluation included. The command, the seed and "
  "the versions below are what a second run needs to give the same figures on the same machine."
)

SINGLE_LEAD = (
  "The command, the seed and the versions that a second run needs to give the same figures on the "
  "same machine."
)

COLORS = {
  "prepare": "documents",
  "pretrain": "base",
  "sft": "sft",
  "preferences": "tokens",
  "reward": "reward",
  "dpo": "dpo",
  "ppo": "ppo",
  "evaluate": "bytes",
}


def cost(run: Run) -> Html:
  """Returns the section on time, versions, seed, config and command."""
  if run.single:
    return section("cost", "To run it again", SINGLE_LEAD, _again(run))
  body = [_time(run.summary), el("h3", "To run it again"), _again(run)]
  return section("cost", "Time and provenance", LEAD, *body)


def _time(summary: dict[str, Any]) -> Html:
  found = branch(summary, "time")
  stages = {k: x for k, v in found.items() if k != "total" and (x := number(v)) is not None}
  if not stages:
    return missing("time")
  known = sum(stages.values())
  total = number(found.get("total"))
  # What the stages do not account for is start-up, imports and writing.
  if total is not None and total - known > 0.005 * total:
    stages["between stages"] = total - known
  whole = max(sum(stages.values()), 1e-9)
  parts = []
  for name, spent in stages.items():
    label = name if spent / whole > 0.09 else ""
    style = f"width:{100 * spent / whole:.3f}%;background:var(--{COLORS.get(name, 'muted')})"
    parts.append(el("span", label, style=style, title=f"{name}: {seconds(spent)}"))
  longest = max(stages.values())
  body = []
  for name, spent in stages.items():
    dot = el("i", cls="dot", style=f"background:var(--{COLORS.get(name, 'muted')})")
    gauge = bar(spent / (longest or 1), seconds(spent), COLORS.get(name, "muted"))
    body.append((join((dot, name)), gauge, percent(spent / whole)))
  body.append((el("b", "total"), el("b", seconds(total if total is not None else known)), ""))
  share = table(("Stage", "Time", "Share"), body, cls="times")
  return join((el("div", *parts, cls="stacked"), share))


def _again(run: Run) -> Html:
  summary = run.summary
  command = dig(summary, "command")
  parts = [el("pre", command, cls="command") if command else missing("command")]
  facts = [("seed", dig(summary, "seed")), ("llm_jax", dig(summary, "version"))]
  facts += list(branch(summary, "machine").items()) or [("machine", None)]
  peak = number(dig(summary, "peak_memory_gib"))
  facts.append(("peak memory", f"{real(peak)} GiB" if peak is not None else None))
  packages = sorted(branch(summary, "versions").items())
  lists = [_facts("Run and machine", facts)]
  lists.append(_facts("Versions", packages) if packages else missing("versions"))
  parts.append(el("div", *lists, cls="sides"))
  if run.config is not None:
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    parts.append(details("Configuration (config.json)", el("pre", text), cls="more"))
  else:
    parts.append(missing("config.json"))
  return join(parts)


def _facts(title: str, facts: list[tuple[str, Any]]) -> Html:
  lines = [
    el("div", el("dt", name), el("dd", DASH if value is None else value)) for name, value in facts
  ]
  return el("div", el("h4", title), el("dl", *lines, cls="facts"))
