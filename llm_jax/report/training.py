"""Training dynamics: the charts of every stage, as boxes and as the data that a script draws."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from llm_jax import config
from llm_jax.report.load import ORDER, Run
from llm_jax.report.markup import Html, count, details, el, join, missing, prose, section, slug
from llm_jax.report.panels import Panel, estimator_note, marks, panels, penalty_note
from llm_jax.scaling import flops
from llm_jax.stages.glossary import explain
from llm_jax.train.curves import Curves

OTHERS = 40  # Panels of metrics without a place of their own, per stage.

LEAD = (
  "Every stage of the run, on its own clock. Faint lines are the logged values, strong lines are "
  "smoothed (the slider sets how much; a curve of under 30 points stays as it is); dots are "
  "evaluations on held-out data. Move over a chart to read values, drag to zoom, double-click to "
  "zoom out. A chart's title says what its metrics mean when it is pointed at, or has the focus. "
  "▼ marks updates that were skipped, and points more than six standard deviations above those "
  "before."
)

STAGES = {
  "pretrain": (
    "Pretraining",
    "Training and validation loss should fall together and stay close; a gap is memorising. A "
    "dashed line is the best that a model without context can do (token frequencies alone).",
  ),
  "sft": (
    "Supervised fine-tuning",
    "Only the tokens of the answer count, the end of the turn among them. Validation loss that "
    "turns up while training loss falls means too many epochs.",
  ),
  "reward": (
    "Reward model",
    "Accuracy is the share of pairs whose better answer gets the higher score; a coin scores 50 %. "
    "A margin that grows without end while accuracy stands still is over-confidence.",
  ),
  "dpo": (
    "Direct preference optimisation",
    "Rewards are log-ratios to the SFT model, in nats. The margin should grow. It is normal that "
    "the log-probability of chosen answers falls too: the loss only asks the rejected ones to fall "
    "further.",
  ),
  "ppo": (
    "Proximal policy optimisation",
    "The score should rise while the KL to the SFT model stays bounded. A clip fraction above "
    "about 20 %, an entropy that collapses or an explained variance below zero is a warning.",
  ),
  "grpo": (
    "Group-relative policy optimisation",
    "Each answer is measured against the others to its prompt. The score should rise while the KL "
    "stays bounded; prompts whose answers all score the same teach nothing.",
  ),
  "online_dpo": (
    "Online DPO",
    "Pairs are the best and the worst of the policy's own answers. The score should rise while the "
    "KL to the SFT model stays bounded; prompts whose answers are all worth the same give no pair.",
  ),
  "rejection": (
    "Rejection sampling",
    "Each round learns from the best of the policy's own answers. The score of all answers should "
    "rise towards that of the chosen ones from round to round.",
  ),
}
COLORS = {"pretrain": "base", "grpo": "ppo", "online_dpo": "dpo", "rejection": "tokens"}
AXES = (("x", "steps"), ("k", "tokens"), ("f", "FLOPs"), ("t", "seconds"))


def training(run: Run) -> tuple[Html, dict[str, Any]]:
  """Returns the section, and the data that the page's script draws."""
  payload: dict[str, Any] = {"stages": {}, "panels": []}
  body = []
  for stage, curves in run.curves.items():
    payload["stages"][stage] = columns(run, stage)
    body.append(_stage(run, stage, curves, payload["panels"]))
  if body:
    body.insert(0, controls(payload["stages"].values()))
  absent = [f"{stage}/metrics.jsonl" for stage in ORDER if stage not in run.curves]
  if absent and not run.single:
    body.append(missing(*absent))
  body.append(el("noscript", el("p", "The charts need JavaScript; they load nothing.")))
  return section("training", "Training dynamics", LEAD, *body), payload


def columns(run: Run, stage: str) -> dict[str, Any]:
  """The columns of a stage as the script reads them.

  "x" are steps and "t" seconds; "k" is tokens and "f" FLOPs per step, where these are known.
  """
  curves = run.curves[stage]
  found = {"x": curves.steps, "t": curves.times, "y": curves.series}
  tokens = curves.step_tokens
  each = flops_per_token(run, stage) if tokens else None
  return (
    found | ({"k": tokens} if tokens else {}) | ({"f": tokens * each} if tokens and each else {})
  )


def flops_per_token(run: Run, stage: str) -> int | None:
  """Model FLOPs of training on a token, forward and backward, in closed form.

  None where they are not those of one decoder that is trained as a whole on rows of one length:
  online methods sample and score besides, and an adapter's backward pass is smaller.
  """
  settings, shape = run.settings.get(stage, {}), run.shapes.get(stage, {})
  length, lora = settings.get("length"), settings.get("lora")
  whole = not (isinstance(lora, dict) and lora.get("rank")) and not settings.get("sync_every")
  if run.family(stage) not in ("pretrain", "sft", "reward", "dpo") or not whole:
    return None
  known = {field.name for field in dataclasses.fields(config.Model)}
  try:
    model = config.Model(**{name: x for name, x in shape.items() if name in known})
    if not shape or model.encoder_layers or not isinstance(length, int):
      return None
    return flops.train_flops_per_token(model, length)
  except (TypeError, ValueError, AttributeError):
    return None  # Of another version, or no model at all: there is no such axis then.


def controls(stages: Iterable[dict[str, Any]]) -> Html:
  """Returns the slider of smoothing, and the buttons of the axes that a stage has."""
  there = {name for stage in stages for name in stage}
  slider = el("input", type="range", min=0, max=95, value=60, id="smooth", aria_label="Smoothing")
  choice = [
    el("button", name, type="button", data_axis=axis, aria_pressed=str(axis == "x").lower())
    for axis, name in AXES
    if axis in there
  ]
  log = el("button", "log", type="button", id="log-x", aria_pressed="false",
           aria_label="Logarithmic axis")  # fmt: skip
  return el(
    "div",
    el("label", "Smoothing ", slider, el("output", "0.60", id="smooth-value")),
    el("span", "Against ", el("span", *choice, log, cls="choice")),
    cls="controls",
  )


def _stage(run: Run, stage: str, curves: Curves, drawn: list[dict[str, Any]]) -> Html:
  family = run.family(stage)
  title, note = STAGES.get(family, (stage, ""))
  if stage != family and family:
    title = f"{title}: {stage}"
  penalty = penalty_note(run, stage)
  note = f"{note} {penalty}" if penalty else note
  color = color_of(family)
  used: set[str] = set()
  first, later = panels(run, stage)
  main = [spec(panel, stage, curves, color, used) for panel in first]
  more = [spec(panel, stage, curves, color, used) for panel in later]
  names = curves.series
  rest = [n for n in names if n not in used and n.removeprefix("eval/") not in {*names} - {n}]
  more += [
    spec(Panel(name, {name: (name, "stage")}), stage, curves, color, used) for name in rest[:OTHERS]
  ]
  main_figures = [place(one, drawn) for one in main if one]
  more_figures = [place(one, drawn) for one in more if one]
  facts = f"{count(curves.rows)} logged rows"
  if curves.rows > len(curves.steps):
    facts += f", each point is the mean of up to {math.ceil(curves.rows / len(curves.steps))}"
  if curves.unreadable:
    facts += f"; unreadable lines left out: {curves.unreadable}"
  head = el("h3", el("i", cls="dot", style=f"background:var(--{color})"), title, el("small", facts))
  parts = [
    head,
    el("p", prose(note), cls="note") if note else "",
    el("div", *main_figures, cls="panels"),
  ]
  if more_figures:
    left = f"; {len(rest) - OTHERS} metrics are left out" if len(rest) > OTHERS else ""
    label = f"More charts ({len(more_figures)}{left})"
    parts.append(details(label, el("div", *more_figures, cls="panels"), cls="more"))
  return el("div", *parts, cls="stage")


def color_of(family: str) -> str:
  """Returns the CSS variable of a kind of stage; others are grey."""
  return COLORS.get(family, family if family else "muted")


def place(one: dict[str, Any], drawn: list[dict[str, Any]]) -> Html:
  """Registers a chart, and returns the box that the script fills."""
  name = f"{slug(one.get('about', one['stage']))}-{slug(one['title'])}"
  alike = sum(other["name"] == name or other["name"].startswith(f"{name}--") for other in drawn)
  one["name"] = f"{name}--{alike + 1}" if alike else name
  drawn.append(one)
  number = len(drawn) - 1
  said = one.pop("said")
  words = [join((el("b", name), f": {text}" if text else "")) for name, text in said]
  title = "\n".join(f"{name}: {text}" if text else name for name, text in said)
  term = el(
    "b", one["title"], cls="term", tabindex=0, title=title, aria_describedby=f"says-{number}"
  )
  return el(
    "figure",
    el("figcaption", term, el("span", one["hint"]) if one["hint"] else ""),
    el("div", *(el("p", line) for line in words), cls="says", role="tooltip", id=f"says-{number}"),
    el("div", cls="legend"),
    el("div", cls="plot"),
    cls="panel",
    data_panel=number,
    data_name=one["name"],
  )


def spec(
  panel: Panel, stage: str, curves: Curves, color: str, used: set[str]
) -> dict[str, Any] | None:
  """Returns what the script needs to draw a panel, or None if no metric of it exists."""
  series, said = [], []
  for name, (label, tint) in panel.metrics.items():
    twins = [(name, label, False)]
    if not name.startswith("eval/"):
      twins.append(
        (f"eval/{name}", "held out" if len(panel.metrics) == 1 else f"{label}, held out", True)
      )
    there = [twin for twin in twins if twin[0] in curves.series]
    for key, text, held in there:
      used.add(key)
      hue = color if tint == "stage" else tint
      dots = held or key.startswith("eval/")
      own = "ink" if held and len(panel.metrics) == 1 else hue
      series.append({"key": key, "label": text, "color": own, "dots": dots})
    if there:
      # A held-out twin means the same: it is explained only where it stands alone.
      said.append((there[0][0], explain(there[0][0])))
  if not series:
    return None
  return panel.look() | {
    "stage": stage,
    "series": series,
    "marks": [{"at": at, "label": what} for at, what in marks(curves, panel)],
    "said": said,
  }


def summary_of_kl(run: Run) -> Html:
  """Returns the note on the KL estimator, for sections that show a KL."""
  return join(("KL is in nats per answer, ", estimator_note(run), "."))
