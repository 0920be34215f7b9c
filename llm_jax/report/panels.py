"""Which metrics of a stage are drawn together, and what to look at in them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from llm_jax.report.load import Run
from llm_jax.report.markup import dig, number
from llm_jax.train.curves import Curves

SPIKE = 6.0  # Standard deviations above what came before, as OLMo's stability monitor has it.
# Points that a spike is measured by, at most and at least: in more, a falling loss looks spread.
WINDOW, LEAST = 32, 16

ESTIMATORS = {
  "k1": "k1: the log-ratio of policy to SFT model on sampled tokens, summed over the answer; "
  "unbiased, so a small batch may come out below zero",
  "k2": "k2: half the squared log-ratio of policy to SFT model on each token, summed over the "
  "answer; never negative, biased",
  "k3": "k3: exp(−k1) − 1 + k1 on each token, summed over the answer; unbiased and never negative",
  "abs": "abs: the absolute log-ratio of policy to SFT model on each token, summed over the answer",
}

_ON_TOKENS = {
  "k1": "the log-ratio",
  "k2": "half the squared log-ratio",
  "k3": "exp(−k1) − 1 + k1",
  "abs": "the absolute log-ratio",
}


@dataclasses.dataclass
class Panel:
  """One chart: metric names of a stage (and their eval/ twins), reference lines, a unit.

  Attributes:
    title: of the chart.
    metrics: name -> (label, colour); the colour "stage" is the stage's own.
    unit: "real" or "percent".
    hint: beside the title.
    lines: (label, value) of reference lines.
    zero: the axis starts at zero.
    exact: never smoothed, for it is a schedule and no measurement.
    marked: spikes and skipped updates are marked.
  """

  title: str
  metrics: dict[str, tuple[str, str]]
  unit: str = "real"
  hint: str = ""
  lines: tuple[tuple[str, float], ...] = ()
  zero: bool = False
  exact: bool = False
  marked: bool = False

  def look(self) -> dict[str, Any]:
    """What the page's script is told of a chart whatever its series are."""
    return {
      "title": self.title,
      "hint": self.hint,
      "unit": self.unit,
      "zero": self.zero,
      "exact": self.exact,
      "lines": [{"label": label, "value": value} for label, value in self.lines],
    }


def panels(run: Run, stage: str) -> tuple[list[Panel], list[Panel]]:
  """The charts of a stage, most telling first, and those that open on demand."""
  family = run.family(stage)
  first = _OWN[family](run, stage) if family else []
  # The mechanics are shown once in full; later stages repeat them on demand.
  if family in ("", "pretrain") or run.single:
    return first + _common(run, stage), _clockwork()
  return first, _common(run, stage) + _clockwork()


def marks(curves: Curves, panel: Panel) -> list[tuple[int, str]]:
  """(Point, what happened) of a chart: skipped updates, and values far above those before."""
  if not panel.marked:
    return []
  skipped = curves.series.get("skipped", [])
  found = {i: "skipped" for i, share in enumerate(skipped) if share}
  for name in panel.metrics:
    found = {i: "spike" for i in spikes(curves.series.get(name, []))} | found
  return sorted(found.items())


def spikes(values: list[float | None]) -> list[int]:
  """Points that lie SPIKE standard deviations above the mean of up to WINDOW before them."""
  before: list[float] = []
  found = []
  for i, value in enumerate(values):
    if value is None:
      continue
    if len(before) >= LEAST:
      mean = sum(before) / len(before)
      spread = math.sqrt(sum((x - mean) ** 2 for x in before) / len(before))
      if value > mean + SPIKE * max(spread, 1e-6 * abs(mean)):
        found.append(i)
        continue  # A spike is no part of what is usual.
    before = [*before, value][-WINDOW:]
  return found


def estimator(run: Run) -> str | None:
  """Returns the KL estimator of the policies' figures, if the run says so."""
  name = dig(run.summary, "kl_estimator")
  return name if name in ESTIMATORS else None


def estimator_note(run: Run) -> str:
  """Returns the sentence that says which KL estimator the numbers are made with."""
  name = estimator(run)
  if name:
    return ESTIMATORS[name]
  # objective/kl has one estimator only (stages/labels.py).
  drawn = any("objective/kl" in curves.series for curves in run.curves.values())
  return ESTIMATORS["k1"] if drawn else "the run does not say which estimator"


def penalty_note(run: Run, stage: str) -> str:
  """Returns the sentences on the KL of an online stage: as it is drawn, and as it is trained with.

  The second is only said where the config tells.
  """
  if "objective/kl" not in run.curves[stage].series:
    return ""
  settings, said = run.settings.get(stage, {}), [f"The KL is drawn as {ESTIMATORS['k1']}."]
  kinds = {"kl_estimator": ("reward", "kl_init"), "kl_coef_estimator": ("loss", "kl_coef")}
  if run.family(stage) == "grpo":
    kinds = {"kl_estimator": ("loss", "kl_coef")}
  for field, (place, weight) in kinds.items():
    name = settings.get(field)
    if name in ESTIMATORS and settings.get(weight) != 0:
      said.append(f"In the {place} it is {_ON_TOKENS[name]} ({name}) of each token.")
  return " ".join(said)


def _pretrain(run: Run, stage: str) -> list[Panel]:
  unigram = number(dig(run.summary, "pretrain.unigram_bits_per_byte"))
  nats = _nats_per_bit(run.curves[stage])
  bits = (("unigram", unigram),) if unigram is not None else ()
  loss = (("unigram", unigram * nats),) if unigram is not None and nats else ()
  return [
    _loss("nats per token", loss),
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


def _loss(hint: str = "", lines: tuple[tuple[str, float], ...] = ()) -> Panel:
  return Panel("Loss", {"loss": ("train", "stage")}, hint=hint, lines=lines, marked=True)


def _below(run: Run, stage: str, prefix: str) -> dict[str, tuple[str, str]]:
  """The metrics of a family of names, each with a colour."""
  hues = ("stage", "dpo", "sft", "base", "ppo", "tokens", "documents", "reward")
  names = [name for name in run.curves[stage].series if name.startswith(prefix)]
  return {
    name: (name.removeprefix(prefix).replace("_", " "), hues[i % len(hues)])
    for i, name in enumerate(names)
  }


def _sft(run: Run, stage: str) -> list[Panel]:
  sources = _below(run, stage, "eval/loss/")
  return [
    _loss("nats per answer token"),
    Panel("Loss by source", sources, hint="held out, nats per answer token"),
  ]


def _reward(run: Run, stage: str) -> list[Panel]:
  chance, kinds = (("chance", 0.5),), _below(run, stage, "eval/accuracy/")
  scores = {"chosen_score": ("chosen", "stage"), "rejected_score": ("rejected", "muted")}
  length = (("no preference", 0.0),)
  return [
    _loss(),
    Panel("Accuracy", {"accuracy": ("train", "stage")}, "percent", lines=chance),
    Panel("Accuracy by kind", kinds, "percent", "of the rejected answer, held out", chance),
    Panel("Margin", {"margin": ("train", "stage")}, hint="score of chosen − rejected"),
    Panel("Scores", scores, hint="raw; only differences matter"),
    Panel("Calibration error", {"eval/calibration_error": ("held out", "ink")}, "percent",
          "expected, 0 is honest", zero=True),
    Panel("Length and margin", {"eval/length_correlation": ("held out", "ink")},
          hint="correlation; near 1, length wins", lines=length),
  ]  # fmt: skip


def _dpo(run: Run, stage: str) -> list[Panel]:
  loss = str(run.settings.get(stage, {}).get("loss") or "")
  indifferent = (("indifferent, ln 2", math.log(2)),) if loss.startswith("logistic(") else ()
  sides = ("chosen", "rejected")
  rewards, logps = (
    {f"{name}/{side}": (side, "stage" if side == "chosen" else "muted") for side in sides}
    for name in ("rewards", "logps")
  )
  return [
    _loss(lines=indifferent if "+" not in loss else ()),
    Panel("Implicit rewards", rewards, hint="log-ratio to the reference, nats"),
    Panel("Reward margin", {"rewards/margins": ("train", "stage")}, hint="chosen − rejected"),
    Panel("Reward accuracy", {"rewards/accuracies": ("train", "stage")}, "percent",
          lines=(("chance", 0.5),)),
    Panel("Log-probabilities", logps, hint="nats per answer; both may fall"),
    Panel("KL baseline", {"kl": ("train", "stage")}, hint="of KTO, nats"),
  ]  # fmt: skip


def _score(run: Run, stage: str) -> list[Panel]:
  """What every online method has: scores, their price, and what they stand for."""
  target = number(run.settings.get(stage, {}).get("kl_target"))
  lines = (("target", target),) if target else ()
  series = run.curves[stage].series
  entropy = "objective/entropy" if "objective/entropy" in series else "policy/entropy"
  return [
    Panel("Score", {"objective/scores": ("rollouts", "stage")}, hint="mean over rollouts"),
    Panel("Held-out score", {"eval/score": ("greedy answers", "ink")}),
    Panel("KL to SFT", {"objective/kl": ("policy", "stage")}, "real", "nats per answer, k1", lines),
    Panel("Gold score", {"gold/mean": ("rollouts", "stage")}, hint="measured, not optimised"),
    Panel("Score − β·KL", {"objective/rlhf_reward": ("objective", "stage"),
                           "objective/non_score_reward": ("penalty only", "muted")}),
    Panel("Raw score", {"objective/raw_scores": ("reward model", "stage")},
          hint="as the reward model gives it"),
    Panel("Entropy", {entropy: ("policy", "stage")},
          hint="nats per answer" if entropy == "objective/entropy" else "nats per token"),
  ]  # fmt: skip


def _answers() -> list[Panel]:
  return [
    Panel("Answers that end", {"rollout/end_rate": ("rollouts", "stage")}, "percent"),
    Panel("Answer length", {"rollout/length": ("rollouts", "stage")}, hint="tokens"),
  ]


def _updates() -> list[Panel]:
  """How far the updates of a policy go."""
  one = (("as when drawn", 1.0),)
  return [
    Panel("Clip fraction", {"policy/clipfrac": ("policy", "stage"),
                            "val/clipfrac": ("critic", "muted")}, "percent"),
    Panel("Step size", {"policy/approxkl": ("approx. KL to old policy", "stage")},
          hint="nats per token, k2"),
    Panel("Probability ratio", {"val/ratio": ("to the policy that drew", "stage")}, lines=one),
    Panel("Policy loss", {"loss/policy": ("policy", "stage")}),
  ]  # fmt: skip


def _ppo(run: Run, stage: str) -> list[Panel]:
  zero = (("no better than the mean", 0.0),)
  return [
    *_score(run, stage),
    *_updates(),
    Panel("Value loss", {"loss/value": ("critic", "stage"),
                         "val/error": ("squared error", "muted")}),
    Panel("Explained variance", {"val/explained_variance": ("critic", "stage")}, lines=zero,
          hint="1 is a perfect critic"),
    *_answers(),
    Panel("KL coefficient", {"kl_coef": ("β", "stage")}, exact=True),
  ]  # fmt: skip


def _grpo(run: Run, stage: str) -> list[Panel]:
  tied = Panel("Tied groups", {"groups/tied": ("prompts", "stage")}, "percent",
               "nothing is learned from these", zero=True)  # fmt: skip
  kl = Panel("KL in the loss", {"loss/kl": ("policy", "stage")}, hint="nats per token")
  return [*_score(run, stage), tied, *_updates(), kl, *_answers()]


def _online_dpo(run: Run, stage: str) -> list[Panel]:
  gap = Panel("Score gap", {"objective/score_gap": ("best − worst", "stage")}, zero=True)
  tied = Panel("Tied prompts", {"pairs/tied": ("prompts", "stage")}, "percent", zero=True)
  return [*_score(run, stage), gap, tied, *_dpo(run, stage), *_answers()]


def _rejection(run: Run, stage: str) -> list[Panel]:
  scores = {"chosen/scores": ("chosen", "stage"), "objective/scores": ("all", "muted")}
  lengths = {"chosen/length": ("chosen", "stage"), "rollout/length": ("all", "muted")}
  return [
    _loss("nats per token of the chosen answers"),
    Panel("Scores by round", scores),
    Panel("Length by round", lengths, hint="tokens"),
    Panel("Prompts with a choice", {"chosen/prompts": ("prompts", "stage")}, "percent"),
    Panel("Answers that end", {"rollout/end_rate": ("rollouts", "stage")}, "percent"),
  ]


_OWN: dict[str, Callable[[Run, str], list[Panel]]] = {
  "pretrain": _pretrain,
  "sft": _sft,
  "reward": _reward,
  "dpo": _dpo,
  "ppo": _ppo,
  "grpo": _grpo,
  "online_dpo": _online_dpo,
  "rejection": _rejection,
}


def _common(run: Run, stage: str) -> list[Panel]:
  clip = number(dig(run.settings.get(stage), "optimizer.clip"))
  norms = [x for x in run.curves[stage].series.get("grad_norm", []) if x is not None]
  hint, lines = "", ()
  if clip and norms:
    share = sum(x > clip for x in norms) / len(norms)
    hint = f"clipped in {100 * share:.0f} % of the points"
    lines = (("clip", clip),) if max(norms) > clip / 2 else ()
  return [
    Panel("Learning rate", {"lr": ("lr", "stage")}, exact=True),
    Panel("Gradient norm", {"grad_norm": ("before clipping", "stage")}, hint=hint, lines=lines,
          zero=True, marked=True),
    Panel("Parameter norm", {"param_norm": ("all trained", "stage")}),
    Panel("Throughput", {"time/tokens_per_second": ("tokens/s", "stage")}, zero=True),
    Panel("Skipped updates", {"skipped": ("share", "stage")}, "percent", zero=True, exact=True),
  ]  # fmt: skip


def _clockwork() -> list[Panel]:
  return [
    Panel("Step", {"time/step": ("step", "stage")}, hint="seconds each", zero=True),
    Panel("Waiting for data", {"time/data_share": ("share", "stage")}, "percent", zero=True),
    Panel("Evaluation", {"time/eval": ("evaluation", "stage")}, hint="seconds each", zero=True),
    Panel("Memory", {"memory/host": ("host", "stage"), "memory/device": ("device", "sft"),
                     "memory/device_peak": ("device, peak", "dpo")}, hint="GiB", zero=True),
    Panel("Recompilations", {"time/recompilations": ("so far", "stage")}, exact=True, zero=True),
  ]  # fmt: skip
