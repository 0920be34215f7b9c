"""The first screen: what the run made, and whether it passed its own checks."""

from typing import Any

from llm_jax.report.load import Run
from llm_jax.report.markup import (
  DASH,
  GAP,
  Html,
  branch,
  count,
  dig,
  el,
  join,
  minus,
  missing,
  number,
  percent,
  real,
  rows,
  seconds,
  section,
  size,
  table,
)


def headline(run: Run) -> Html:
  """Returns the strip of key figures and the table of checks."""
  checks = rows(run.summary, "checks")
  verdict = _verdict(checks)
  lead = join(
    (
      "The path of a run: raw pages to documents, documents to a language model, the "
      "language model to one that answers, and answers that were improved with preferences. ",
      verdict,
    )
  )
  tiles = [_tile(*tile) for tile in _tiles(run.summary)]
  body = [el("dl", *tiles, cls="tiles"), el("h3", "Checks")]
  body.append(_checks(checks) if checks else missing("checks"))
  return section("headline", "The run in figures", lead, *body)


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
  """(name, value, remark) of each key figure."""
  first = next(iter(rows(summary, "data.funnel")), {})
  device = dig(summary, "machine.device")
  reduction = number(dig(summary, "pretrain.reduction"))
  bpb = number(dig(summary, "pretrain.bits_per_byte"))
  unigram = dig(summary, "pretrain.unigram_bits_per_byte")
  return [
    ("Documents", count(_total(summary, "documents")), f"of {count(first.get('documents'))} read"),
    ("Tokens", count(_total(summary, "tokens")), f"from {size(_total(summary, 'bytes'))} of text"),
    ("Parameters", count(dig(summary, "pretrain.parameters")), _trained_on(summary)),
    (
      "Bits per byte",
      real(bpb),
      f"unigram {real(unigram)}"
      + (minus(f", {-100 * reduction:+.0f}{GAP}%") if reduction is not None else ""),
    ),
    (
      "SFT answers that end",
      percent(dig(summary, "policies.sft.end_rate")),
      _base(summary, "end_rate"),
    ),
    _reward_tile(summary),
    ("DPO beats SFT", *_win(summary, "dpo_vs_sft")),
    ("PPO beats SFT", *_win(summary, "ppo_vs_sft")),
    ("Total time", seconds(dig(summary, "time.total")), str(device) if device else ""),
    ("Peak memory", _gib(dig(summary, "peak_memory_gib")), _cores(summary)),
  ]


def _tile(name: str, value: str, remark: str) -> Html:
  cls = "empty" if value == DASH else None
  remark = "not recorded" if value == DASH else remark
  return el("div", el("dt", name), el("dd", value, cls=cls), el("dd", remark, cls="remark"))


def _total(summary: dict[str, Any], key: str) -> float | None:
  """The sum over the splits."""
  parts = [number(dig(part, key)) for part in branch(summary, "data.splits").values()]
  known = [x for x in parts if x is not None]
  return sum(known) if known else None


def _trained_on(summary: dict[str, Any]) -> str:
  tokens = dig(summary, "pretrain.tokens")
  return f"trained on {count(tokens)} tokens" if number(tokens) is not None else ""


def _base(summary: dict[str, Any], name: str) -> str:
  value = number(dig(summary, f"policies.base.{name}"))
  return f"base {percent(value)}" if value is not None else ""


def _reward_tile(summary: dict[str, Any]) -> tuple[str, str, str]:
  """The mean over kinds of rejected answers, and that of the control."""
  means = []
  for path in ("reward.accuracy", "reward.shuffled"):
    values = [x for v in branch(summary, path).values() if (x := number(v)) is not None]
    means.append(sum(values) / len(values) if values else None)
  control = f"control {percent(means[1])}" if means[1] is not None else "mean over kinds"
  return "Reward model accuracy", percent(means[0]), control


def _win(summary: dict[str, Any], name: str) -> tuple[str, str]:
  rate, se = (number(dig(summary, f"win_rates.{name}.{key}")) for key in ("rate", "se"))
  n = number(dig(summary, f"win_rates.{name}.n"))
  remark = f"± {percent(se)}" if se is not None else ""
  return percent(rate), f"{remark}{f', {count(n)} answers' if n is not None else ''}".lstrip(", ")


def _gib(value: Any) -> str:
  return f"{real(value)} GiB" if number(value) is not None else DASH


def _cores(summary: dict[str, Any]) -> str:
  cores = number(dig(summary, "machine.cores"))
  return f"{cores:.0f} CPU cores" if cores is not None else ""


def _passed(check: dict[str, Any]) -> bool | None:
  passed = check.get("pass")
  return passed if isinstance(passed, bool) else None


def _verdict(checks: list[dict[str, Any]]) -> Html:
  if not checks:
    return el("b", "The run recorded no checks.")
  good = sum(_passed(check) is True for check in checks)
  if good == len(checks):
    return el("b", f"All {good} checks pass.")
  bad = [str(check.get("name")) for check in checks if _passed(check) is not True]
  return el("b", f"{good} of {len(checks)} checks pass; look at: {', '.join(bad)}.")


def _checks(checks: list[dict[str, Any]]) -> Html:
  marks = {True: ("✓ pass", "good"), False: ("✗ fail", "bad"), None: ("not judged", "muted")}
  body = []
  for check in checks:
    text, cls = marks[_passed(check)]
    body.append(
      (check.get("name"), _value(check.get("value")), _value(check.get("target")),
       el("span", text, cls=f"verdict {cls}"))
    )  # fmt: skip
  return table(("Check", "Value", "Target", "Result"), body, cls="stack checks")


def _value(value: Any) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if number(value) is None:
    return DASH if value is None else str(value).replace(">=", "≥").replace("<=", "≤")
  if isinstance(value, int):
    return count(value)
  text = real(value, 4)
  return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
