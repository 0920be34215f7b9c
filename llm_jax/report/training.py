"""Training dynamics: which metrics are drawn together, and what to look at in each stage."""

import dataclasses
import math
from typing import Any

from llm_jax.report.load import ORDER, Run
from llm_jax.report.markup import (
  Html,
  count,
  details,
  dig,
  el,
  join,
  missing,
  number,
  prose,
  section,
)
from llm_jax.train.curves import Curves

OTHERS = 40  # Panels of metrics without a place of their own, per stage.

LEAD = (
  "Every stage of the run, on its own clock. Faint lines are the logged values, strong lines are "
  "smoothed (the slider sets how much; a curve of under 30 points stays as it is); dots are "
  "evaluations on held-out data. Move over a chart to read values, drag to zoom, double-click to "
  "zoom out."
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
}

ESTIMATORS = {
  "k1": "k1: the log-ratio of policy to SFT model on sampled tokens, summed over the answer; "
  "unbiased, so a small batch may come out below zero",
  "k2": "k2: half the squared log-ratio of policy to SFT model on each token, summed over the "
  "answer; never negative, biased",
  "k3": "k3: exp(−k1) − 1 + k1 on each token, summed over the answer; unbiased and never negative",
}


@dataclasses.dataclass
class Panel:
  """One chart: metric names of a stage (and their eval/ twins), reference lines, a unit."""

  title: str
  metrics: dict[str, tuple[str, str]]  # name -> (label, colour); colour "stage" is the stage's.
  unit: str = "real"  # real | percent
  hint: str = ""
  lines: tuple[tuple[str, float], ...] = ()
  zero: bool = False  # The axis starts at zero.
  exact: bool = False  # Never smoothed: a schedule, not a measurement.


def estimator(run: Run) -> str | None:
  """Returns the KL estimator that PPO used, if the run says so."""
  for tree, path in (
    (run.summary, "kl_estimator"),
    (run.config, "ppo.kl_estimator"),
    (run.config, "kl_estimator"),
  ):
    if dig(tree, path) in ESTIMATORS:
      return dig(tree, path)
  return None


def estimator_note(run: Run) -> str:
  """Returns the sentence that says which KL estimator the numbers are made with."""
  name = estimator(run)
  return ESTIMATORS[name] if name else "the run does not say which estimator"


def training(run: Run) -> tuple[Html, dict[str, Any]]:
  """Returns the section, and the data that the page's script draws."""
  payload: dict[str, Any] = {"stages": {}, "panels": []}
  body = [_controls()] if run.curves else []
  for stage, curves in run.curves.items():
    payload["stages"][stage] = {"x": curves.steps, "t": curves.times, "y": curves.series}
    body.append(_stage(run, stage, curves, payload["panels"]))
  absent = [f"{stage}/metrics.jsonl" for stage in ORDER if stage not in run.curves]
  if absent:
    body.append(missing(*absent))
  body.append(el("noscript", el("p", "The charts need JavaScript; they load nothing.")))
  return section("training", "Training dynamics", LEAD, *body), payload


def _controls() -> Html:
  slider = el("input", type="range", min=0, max=95, value=60, id="smooth", aria_label="Smoothing")
  choice = [
    el("button", name, type="button", data_axis=axis, aria_pressed=str(axis == "x").lower())
    for axis, name in (("x", "steps"), ("t", "seconds"))
  ]
  return el(
    "div",
    el("label", "Smoothing ", slider, el("output", "0.60", id="smooth-value")),
    el("span", "Against ", el("span", *choice, cls="choice")),
    cls="controls",
  )


def _stage(run: Run, stage: str, curves: Curves, panels: list[dict[str, Any]]) -> Html:
  family = next((name for name in ORDER if stage == name or stage.startswith(name + "_")), "")
  title, note = STAGES.get(family, (stage, ""))
  if stage != family and family:
    title = f"{title}: {stage}"
  color = {"pretrain": "base", "": "muted"}.get(family, family)
  used: set[str] = set()
  first, later = _panels(run, family, curves)
  main = [_spec(panel, stage, curves, color, used) for panel in first]
  more = [_spec(panel, stage, curves, color, used) for panel in later]
  names = curves.series
  rest = [n for n in names if n not in used and n.removeprefix("eval/") not in {*names} - {n}]
  more += [
    _spec(Panel(name, {name: (name, "stage")}), stage, curves, color, used)
    for name in rest[:OTHERS]
  ]
  main_figures = [_place(spec, panels) for spec in main if spec]
  more_figures = [_place(spec, panels) for spec in more if spec]
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


def _place(spec: dict[str, Any], panels: list[dict[str, Any]]) -> Html:
  """Registers a chart, and returns the box that the script fills."""
  panels.append(spec)
  return el(
    "figure",
    el("figcaption", el("b", spec["title"]), el("span", spec["hint"]) if spec["hint"] else ""),
    el("div", cls="legend"),
    el("div", cls="plot"),
    cls="panel",
    data_panel=len(panels) - 1,
  )


def _spec(
  panel: Panel, stage: str, curves: Curves, color: str, used: set[str]
) -> dict[str, Any] | None:
  """Returns what the script needs to draw a panel, or None if no metric of it exists."""
  series = []
  for name, (label, tint) in panel.metrics.items():
    twins = [(name, label, False)]
    if not name.startswith("eval/"):
      twins.append(
        (f"eval/{name}", "held out" if len(panel.metrics) == 1 else f"{label}, held out", True)
      )
    for key, text, held in twins:
      if key in curves.series:
        used.add(key)
        hue = color if tint == "stage" else tint
        dots = held or key.startswith("eval/")
        own = "ink" if held and len(panel.metrics) == 1 else hue
        series.append({"key": key, "label": text, "color": own, "dots": dots})
  if not series:
    return None
  return {
    "stage": stage,
    "title": panel.title,
    "hint": panel.hint,
    "unit": panel.unit,
    "zero": panel.zero,
    "exact": panel.exact,
    "series": series,
    "lines": [{"label": label, "value": value} for label, value in panel.lines],
  }


def _panels(run: Run, family: str, curves: Curves) -> tuple[list[Panel], list[Panel]]:
  """The charts of a stage, most telling first, and those that open on demand."""
  own = {"pretrain": _pretrain, "sft": _sft, "reward": _reward, "dpo": _dpo, "ppo": _ppo}
  first = own[family](run, curves) if family else []
  # The mechanics are shown once in full; later stages repeat them on demand.
  if family in ("", "pretrain"):
    return first + _common(), _clockwork()
  return first, _common() + _clockwork()


def _pretrain(run: Run, curves: Curves) -> list[Panel]:
  unigram = number(dig(run.summary, "pretrain.unigram_bits_per_byte"))
  nats = _nats_per_bit(curves)
  bits = (("unigram", unigram),) if unigram is not None else ()
  loss = (("unigram", unigram * nats),) if unigram is not None and nats else ()
  return [
    Panel("Loss", {"loss": ("train", "stage")}, hint="nats per token", lines=loss),
    Panel(
      "Bits per byte",
      {"eval/bits_per_byte": ("validation", "ink")},
      hint="comparable across tokenizers",
      lines=bits,
    ),
  ]


def _nats_per_bit(curves: Curves) -> float | None:
  """Nats per token for one bit per byte, from an evaluation that logged both."""
  pairs = zip(
    curves.series.get("eval/loss", []), curves.series.get("eval/bits_per_byte", []), strict=False
  )
  ratios = [nats / bits for nats, bits in pairs if nats and bits]
  return ratios[-1] if ratios else None


def _sft(run: Run, curves: Curves) -> list[Panel]:
  return [Panel("Loss", {"loss": ("train", "stage")}, hint="nats per answer token")]


def _reward(run: Run, curves: Curves) -> list[Panel]:
  chance = (("chance", 0.5),)
  prefix = "eval/accuracy/"
  names = [name for name in curves.series if name.startswith(prefix)]
  hues = ("stage", "dpo", "sft", "base", "ppo")
  kinds = {
    name: (name.removeprefix(prefix).replace("_", " "), hues[i % len(hues)])
    for i, name in enumerate(names)
  }
  return [
    Panel("Loss", {"loss": ("train", "stage")}),
    Panel("Accuracy", {"accuracy": ("train", "stage")}, "percent", lines=chance),
    Panel("Accuracy by kind", kinds, "percent", "of the rejected answer, held out", chance),
    Panel("Margin", {"margin": ("train", "stage")}, hint="score of chosen − rejected"),
  ]


def _dpo(run: Run, curves: Curves) -> list[Panel]:
  loss = str(dig(run.config, "dpo.loss") or "")
  indifferent = (("indifferent, ln 2", math.log(2)),) if loss.startswith("logistic(") else ()
  return [
    Panel("Loss", {"loss": ("train", "stage")}, lines=indifferent if "+" not in loss else ()),
    Panel(
      "Implicit rewards",
      {"rewards/chosen": ("chosen", "stage"), "rewards/rejected": ("rejected", "muted")},
    ),
    Panel("Reward margin", {"rewards/margins": ("train", "stage")}, hint="chosen − rejected"),
    Panel(
      "Reward accuracy",
      {"rewards/accuracies": ("train", "stage")},
      "percent",
      lines=(("chance", 0.5),),
    ),
    Panel(
      "Log-probabilities",
      {"logps/chosen": ("chosen", "stage"), "logps/rejected": ("rejected", "muted")},
      hint="nats per answer; both may fall",
    ),
  ]


def _ppo(run: Run, curves: Curves) -> list[Panel]:
  name = estimator(run) or "estimator unknown"
  target = number(dig(run.config, "ppo.kl_target"))
  kl_lines = (("target", target),) if target else ()
  zero = (("no better than the mean", 0.0),)
  entropy = "objective/entropy" if "objective/entropy" in curves.series else "policy/entropy"
  return [
    Panel("Score", {"objective/scores": ("reward model", "stage")}, hint="mean over rollouts"),
    Panel("KL to SFT", {"objective/kl": ("policy", "stage")}, "real",
          f"nats per answer, {name}", kl_lines),
    Panel("Gold score", {"gold/mean": ("rollouts", "stage")}, hint="measured, not optimised"),
    Panel("Score − β·KL", {"objective/rlhf_reward": ("objective", "stage"),
                           "objective/non_score_reward": ("penalty only", "muted")}),
    Panel("Raw score", {"objective/raw_scores": ("reward model", "stage")},
          hint="as the reward model gives it"),
    Panel("Entropy", {entropy: ("policy", "stage")}, hint="nats"),
    Panel("Clip fraction", {"policy/clipfrac": ("policy", "stage"),
                            "val/clipfrac": ("critic", "muted")}, "percent"),
    Panel("Step size", {"policy/approxkl": ("approx. KL to old policy", "stage")}, hint="nats"),
    Panel("Explained variance", {"val/explained_variance": ("critic", "stage")}, lines=zero,
          hint="1 is a perfect critic"),
    Panel("Answers that end", {"rollout/end_rate": ("rollouts", "stage")}, "percent"),
    Panel("Answer length", {"rollout/length": ("rollouts", "stage")}, hint="tokens"),
    Panel("KL coefficient", {"kl_coef": ("β", "stage")}, exact=True),
  ]  # fmt: skip


def _common() -> list[Panel]:
  return [
    Panel("Learning rate", {"lr": ("lr", "stage")}, exact=True),
    Panel("Gradient norm", {"grad_norm": ("before clipping", "stage")}, zero=True),
    Panel("Throughput", {"time/tokens_per_second": ("tokens/s", "stage")}, zero=True),
  ]


def _clockwork() -> list[Panel]:
  return [
    Panel("Step", {"time/step": ("step", "stage")}, hint="seconds each", zero=True),
    Panel("Waiting for data", {"time/data_share": ("share", "stage")}, "percent", zero=True),
    Panel("Evaluation", {"time/eval": ("evaluation", "stage")}, hint="seconds each", zero=True),
  ]


def summary_of_kl(run: Run) -> Html:
  """Returns the note on the KL estimator, for sections that show a KL."""
  return join(("KL is in nats per answer, ", estimator_note(run), "."))
