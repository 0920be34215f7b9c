"""The policies compared: one table of measurements and the win rates with their null."""

import math
from typing import Any

from llm_jax.report.load import Run
from llm_jax.report.markup import (
  DASH,
  NAMES,
  POLICIES,
  Html,
  branch,
  count,
  dig,
  el,
  hue,
  join,
  minus,
  missing,
  number,
  percent,
  policy,
  prose,
  real,
  section,
  table,
)
from llm_jax.report.training import summary_of_kl

Z95 = 1.959964  # Half width of a normal 95 % interval, in standard errors.

# key -> (title, what it means, unit). A run may bring its own meanings in summary["definitions"].
MEASURES = {
  "end_rate": ("Answers that end", "share that stop by themselves before the limit", "percent"),
  "relevance": ("Relevance, own question", "agreement of the answer with its own question", "real"),
  "relevance_shuffled": (
    "Relevance, another question",
    "control: the same answers against questions of others",
    "real",
  ),
  "difference": (
    "Relevance, difference",
    "own minus another; 0 means ignoring the question",
    "real",
  ),
  "form": ("Form", "how well the answer keeps the form of a true one", "real"),
  "gold": ("Gold score", "agreement with the true answer by a fixed rule", "real"),
  "reward": ("Reward", "score by the learned reward model (the proxy)", "real"),
  "kl": ("KL to SFT", "nats per answer", "real"),
  "length": ("Length", "words per answer", "real"),
}

LEAD = (
  "All policies on the same held-out questions. Read relevance against its control: a policy that "
  "says the same thing to every question scores alike in both rows. A reward that rises while "
  "gold stands still is over-optimisation. "
)

WIN_LEAD = (
  "How often a policy's answer has a higher gold score than SFT's to the same question (ties count "
  "half), with 95 % intervals. The control is SFT against a second draw of itself: its interval "
  "should contain 50 %, and an interval of DPO or PPO that contains 50 % shows no difference."
)


def policies(run: Run) -> Html:
  """Returns the table of measurements and the win rates."""
  measured = branch(run.summary, "policies")
  body = [_measures(run, measured) if measured else missing("policies")]
  body += [el("h3", "Win rates against SFT"), el("p", prose(WIN_LEAD), cls="note"), _win_rates(run)]
  lead = join((LEAD, summary_of_kl(run)))
  return section("policies", "The policies compared", lead, *body)


def _measures(run: Run, measured: dict[str, Any]) -> Html:
  names = [name for name in POLICIES if isinstance(measured.get(name), dict)]
  names += [n for n in measured if n not in POLICIES and isinstance(measured[n], dict)]
  body, absent = [], []
  for key, (title, meaning, unit) in MEASURES.items():
    cells = [_measure(measured[name], key, unit) for name in names]
    if all(cell == DASH for cell in cells):
      absent.append(f"policies.*.{key}")
      continue
    meaning = dig(run.summary, f"definitions.{key}") or meaning
    body.append((join((el("span", title), el("small", meaning))), *cells))
  head = ["Measurement", *(policy(name) for name in names)]
  parts = [_policy_table(head, body)]
  parts.append(el("p", "± is one standard error.", cls="note"))
  if absent:
    parts.append(missing(*absent))
  return join(parts)


def _policy_table(head: list[Any], body: list[tuple]) -> Html:
  top = el("thead", el("tr", *(el("th", name, scope="col") for name in head)))
  lines = [
    el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in body
  ]
  return el("div", el("table", top, el("tbody", *lines), cls="policies"), cls="scroll")


def _measure(values: dict[str, Any], key: str, unit: str) -> Any:
  value, se = number(values.get(key)), number(values.get(f"{key}_se"))
  if value is None:
    return DASH
  show = percent if unit == "percent" else real
  if unit == "real" and se:
    # The value gets as many decimals as its standard error can bear.
    digits = max(0, -math.floor(math.log10(abs(se))))
    text, error = minus(f"{value:.{digits}f}"), f"{se:.{digits}f}"
  elif unit == "real" and abs(value) < 10:
    text, error = minus(f"{value:.3f}"), ""
  else:
    text, error = show(value), show(se) if se is not None else ""
  exact, off = f"{value:.10g}", None if se is None else f"{se:.10g}"
  spread = el("small", f"± {error}", data_error=off) if error else ""
  return join((el("span", text, data_value=exact), spread))


def _win_rates(run: Run) -> Html:
  found = branch(run.summary, "win_rates")
  if not found:
    return missing("win_rates")
  order = ["sft_vs_sft", "dpo_vs_sft", "ppo_vs_sft"]
  names = [n for n in order if n in found] + [n for n in found if n not in order]
  lines = [_interval(name, found[name]) for name in names if isinstance(found[name], dict)]
  scale = [el("span", f"{x} %", style=f"left:{x}%") for x in (0, 25, 50, 75, 100)]
  ruler = el("div", el("span"), el("div", *scale, cls="ruler"), el("span"), cls="interval")
  absent = [f"win_rates.{n}" for n in order if n not in found]
  body = [(_versus(n), *(real(found[n].get(k)) for k in ("rate", "se", "n"))) for n in names
          if isinstance(found[n], dict)]  # fmt: skip
  numbers = table(("Policies", "Win rate", "Standard error", "Answers"), body, cls="numbers")
  chart = el("div", numbers, el("div", *lines, ruler, cls="intervals"), cls="charted")
  return join((chart, missing(*absent) if absent else ""))


def _versus(name: str) -> str:
  who, _, other = name.partition("_vs_")
  return f"{NAMES.get(who, who)} vs {NAMES.get(other, other)}"


def _interval(name: str, win: dict[str, Any]) -> Html:
  rate, se, n = (number(win.get(key)) for key in ("rate", "se", "n"))
  who, _, other = name.partition("_vs_")
  null = who == other
  title = [policy(who), f" vs {NAMES.get(other, other)}"]
  title.append(el("small", "control: two draws of one policy") if null else "")
  if rate is None:
    return el("div", el("span", *title), el("span", DASH), el("span"), cls="interval")
  marks = [el("i", cls="half")]
  if se is not None:
    low, high = max(0.0, rate - Z95 * se), min(1.0, rate + Z95 * se)
    style = f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%;background:var(--{hue(who)})"
    marks.append(el("i", cls="range", style=style))
    text = f"{percent(low, 0)[:-2]}–{percent(high, 0)}"
  else:
    text = "no standard error"
  marks.append(el("i", cls="rate", style=f"left:{100 * rate:.2f}%;background:var(--{hue(who)})"))
  size = f"{count(n)} answers" if n is not None else ""
  value = el("span", el("b", percent(rate)), el("small", f"{text}{', ' if size else ''}{size}"))
  return el("div", el("span", *title), el("div", *marks, cls="rail"), value, cls="interval")
