"""What the models say: next-token candidates, and answers of all policies side by side."""

from typing import Any

from llm_jax.report.load import Run
from llm_jax.report.markup import (
  NAMES,
  POLICIES,
  Html,
  bar,
  clip,
  count,
  el,
  join,
  minus,
  missing,
  number,
  percent,
  policy,
  rows,
  section,
)

ANSWERS = 60  # Questions shown.
PREDICTIONS = 24  # Contexts shown.
TEXT = 1500  # Characters of an answer.

NEXT_LEAD = (
  "The pretrained model reads a held-out passage and spreads its belief over the next token. Look "
  "whether the candidates are at least of the right kind, and how often the truth (marked ✓) is "
  "among them. A dot · stands for a space, ⏎ for a line break."
)

ANSWERS_LEAD = (
  "Held-out questions in the order of the run's file, the true answer, and what each policy says. "
  "The chip is the gold score: agreement with the true answer by a fixed rule, not the "
  "learned reward. The base model continues text rather than answers; SFT should answer and stop."
)


def next_token(run: Run) -> Html:
  """Returns the table of next-token predictions."""
  found = rows(run.summary, "next_token")
  body = [_prediction(row) for row in found[:PREDICTIONS]]
  content = el("div", *body, cls="predictions") if body else missing("next_token")
  return section("next-token", "What the base model expects next", NEXT_LEAD, content)


def _visible(text: Any) -> str:
  """Shows the white space at the ends of a token, which otherwise nobody sees."""
  text = "" if text is None else str(text)
  text = text.replace("\n", "⏎").replace("\t", "⇥")
  core = text.strip(" ")
  if not core:
    return "·" * len(text) or "(empty)"
  left = len(text) - len(text.lstrip(" "))
  return "·" * left + core + "·" * (len(text) - left - len(core))


def _candidates(row: dict[str, Any]) -> list[tuple[str, float]]:
  found = row.get("candidates")
  pairs = []
  for pair in found if isinstance(found, list) else []:
    if isinstance(pair, list | tuple) and len(pair) == 2 and number(pair[1]) is not None:
      pairs.append((str(pair[0]), float(pair[1])))
  return pairs


def _prediction(row: dict[str, Any]) -> Html:
  truth = "" if row.get("truth") is None else str(row.get("truth"))
  context = "" if row.get("context") is None else str(row.get("context"))
  pairs = _candidates(row)
  hits = [i for i, (text, _) in enumerate(pairs) if text == truth]
  # A decoder may strip the space before a token, so the second look ignores it.
  hits = hits or [
    i for i, (t, _) in enumerate(pairs) if truth.strip() and t.strip() == truth.strip()
  ]
  lines = []
  for i, (text, p) in enumerate(pairs):
    right = i in hits[:1]
    token = el("code", _visible(text), cls="token")
    mark = el("span", "✓" if right else "", cls="tick-mark")
    gauge = bar(p, percent(p), "good" if right else "base")
    lines.append(el("li", mark, token, gauge, cls="truth" if right else None))
  if not hits:
    note = ("not among the candidates", el("code", _visible(truth), cls="token"))
    lines.append(
      el("li", el("span", "✓", cls="tick-mark"), note[1], el("span", note[0]), cls="miss")
    )
  head = ("…" if len(context) > 280 else "") + context[-280:]
  return el("div", el("pre", head, el("mark", _visible(truth))), el("ol", *lines), cls="prediction")


def answers(run: Run) -> Html:
  """Returns the viewer of answers: all are in the page, the script shows one at a time."""
  found = rows(run.summary, "answers")
  if not found:
    return section("answers", "Answers side by side", ANSWERS_LEAD, missing("answers"))
  shown = found[:ANSWERS]
  cards = [_card(i, row, len(shown)) for i, row in enumerate(shown)]
  note = ""
  if len(found) > len(shown):
    note = el("p", f"The first {len(shown)} of {count(len(found))} questions.", cls="note")
  body = (_buttons(shown), el("div", *cards, cls="cards"), note)
  return section("answers", "Answers side by side", ANSWERS_LEAD, *body)


def _gold(row: dict[str, Any], name: str) -> float | None:
  gold = row.get("gold")
  return number(gold.get(name)) if isinstance(gold, dict) else None


def _tags(row: dict[str, Any]) -> list[str]:
  """The filters that a question falls under."""
  sft = _gold(row, "sft")
  tags = []
  for name in ("dpo", "ppo"):
    other = _gold(row, name)
    if sft is not None and other is not None and other != sft:
      tags.append(f"{name}-{'up' if other > sft else 'down'}")
  return tags


def _buttons(shown: list[dict[str, Any]]) -> Html:
  names = {
    "": "all",
    "dpo-up": "DPO better than SFT",
    "dpo-down": "DPO worse",
    "ppo-up": "PPO better than SFT",
    "ppo-down": "PPO worse",
  }
  buttons = []
  for tag, name in names.items():
    n = sum(not tag or tag in _tags(row) for row in shown)
    if n:
      label = join((name, " ", el("small", n)))
      buttons.append(
        el("button", label, type="button", data_filter=tag, aria_pressed=str(not tag).lower())
      )
  step = el(
    "span",
    el("button", "←", type="button", id="previous", aria_label="Previous question"),
    el("output", id="position"),
    el("button", "→", type="button", id="next", aria_label="Next question"),
    el("button", "show all", type="button", id="show-all", aria_pressed="false"),
    cls="choice",
  )
  return el("div", el("span", *buttons, cls="choice"), step, cls="controls script-only")


def _card(index: int, row: dict[str, Any], n: int) -> Html:
  columns = []
  for name in POLICIES:
    if row.get(name) is None:
      continue
    chip = _chip(_gold(row, name))
    text = str(row.get(name))
    said = (
      el("p", clip(text, TEXT), cls="said") if text.strip() else el("p", "(empty)", cls="missing")
    )
    columns.append(el("div", el("h4", policy(name), chip), said, cls="answer"))
  absent = [NAMES[name] for name in POLICIES if row.get(name) is None]
  thing = el("code", row.get("object")) if row.get("object") is not None else ""
  return el(
    "article",
    el("p", el("span", f"{index + 1} / {n}"), thing, cls="source"),
    el("p", clip(row.get("question"), TEXT), cls="question"),
    el("p", el("b", "True answer "), clip(row.get("truth"), TEXT), cls="true-answer"),
    el("div", *columns, cls="answers-grid"),
    el("p", f"Not recorded: {', '.join(absent)}.", cls="missing") if absent else "",
    cls="card",
    data_tags=" ".join(_tags(row)),
  )


def _chip(gold: float | None) -> Html:
  if gold is None:
    return el("span", "no score", cls="chip")
  # The shade follows the score where it lies in [0, 1]; the number is what counts.
  strength = f"--strength:{100 * min(max(gold, 0.0), 1.0):.0f}%"
  return el("span", f"gold {minus(f'{gold:.2f}')}", cls="chip", style=strength)
