"""What the reward cost: KL against reward, and the learned reward against the gold score."""

from llm_jax.report.figures import SHAPES, Axes, Point, figure, line, points, span
from llm_jax.report.load import Run
from llm_jax.report.markup import (
  NAMES,
  Html,
  dig,
  el,
  join,
  missing,
  number,
  real,
  section,
)
from llm_jax.report.training import summary_of_kl

LEAD = (
  "PPO buys reward with distance from the SFT model. The line is the path of PPO in training, "
  "smoothed, from light to strong; marks are where each policy ended on held-out questions, with "
  "standard errors. Against KL, up and to the left is better (the base model, which does not "
  "answer, is left out). If the learned reward climbs and the gold score does not follow, the "
  "policy has found a weakness of the reward model. "
)
SINGLE_LEAD = (
  "What the score cost in training, smoothed, from light to strong: against KL, up and to the left "
  "is better. If the score climbs and the gold score does not follow, the policy has found a "
  "weakness of what it is scored by. "
)
SMOOTH = 0.8  # Weight of the past in the smoothed path.


def frontier(run: Run) -> Html:
  """Returns the figures of reward, gold score and KL."""
  figures, absent = [], []
  for x, y, title, note in (
    ("kl", "reward", "Learned reward for KL", "What is maximised."),
    ("kl", "gold", "Gold score for KL", "What it is meant to improve."),
    ("reward", "gold", "Gold against learned reward", "Up and to the right is real progress."),
  ):
    drawn = _draw(run, x, y, title, note)
    if drawn is None:
      absent.append(title)
    else:
      figures.append(drawn)
  body = [el("div", *figures, cls="stills three") if figures else ""]
  if absent and not run.single:
    names = "policies.*.{kl,reward,gold}", "ppo/metrics.jsonl: objective/{kl,raw_scores}, gold/mean"
    body += [el("p", f"Not drawn: {'; '.join(absent)}.", cls="note"), missing(*names)]
  lead = join((SINGLE_LEAD if run.single else LEAD, summary_of_kl(run)))
  return section("frontier", "Reward, gold score and KL", lead, *body)


# The raw scores have the unit of policies.*.reward; objective/scores are standardised.
METRICS = {"kl": "objective/kl", "reward": "objective/raw_scores", "gold": "gold/mean"}
AXES = {
  "kl": "KL to SFT, nats per answer",
  "reward": "learned reward, raw score",
  "gold": "gold score",
}


def _metrics(run: Run) -> dict[str, str]:
  # A stage alone has no other policies beside it: its scores need not be in their unit.
  alone = run.single and "objective/raw_scores" not in run.curves[run.single].series
  return METRICS | ({"reward": "objective/scores"} if alone else {})


def _draw(run: Run, x: str, y: str, title: str, note: str) -> Html | None:
  trail = _trail(run, x, y)
  ends = _ends(run, x, y)
  if len(trail) < 2 and not ends:
    return None
  smooth = _smoothed(trail)
  every = [(p.x + i * p.dx, p.y + i * p.dy) for p in ends for i in (-1, 1)] + smooth
  names = AXES | ({"reward": "score"} if _metrics(run) != METRICS else {})
  axes = Axes(span([a for a, _ in every]), span([b for _, b in every]), names[x], names[y])
  marks: list[Html] = []
  last = max(1, len(smooth) - 1)
  for i in range(len(smooth) - 1):
    (x0, y0), (x1, y1) = smooth[i], smooth[i + 1]
    shade = f"color-mix(in srgb, var(--ppo) {30 + 70 * i / last:.0f}%, var(--page))"
    marks.append(line(axes, (x0, x1), (y0, y1), shade))
  if not trail:
    note += " No PPO path was recorded."
  return figure(axes, *marks, points(axes, ends), title=title, note=note)


def _trail(run: Run, x: str, y: str) -> list[tuple[float, float]]:
  """The rows of PPO, or of the stage alone, that have both numbers."""
  curves = run.curves.get(run.single or "ppo")
  if curves is None:
    return []
  columns = (curves.series.get(_metrics(run)[name], []) for name in (x, y))
  return [(a, b) for a, b in zip(*columns, strict=False) if a is not None and b is not None]


def _smoothed(trail: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Exponential averages without the pull towards the first value."""
  out, total, weight = [], (0.0, 0.0), 0.0
  for a, b in trail:
    total = (SMOOTH * total[0] + a, SMOOTH * total[1] + b)
    weight = SMOOTH * weight + 1.0
    out.append((total[0] / weight, total[1] / weight))
  return out if len(out) > 1 else []


def _ends(run: Run, x: str, y: str) -> list[Point]:
  """One mark per policy, with standard errors."""
  marks = []
  for name in ("sft", "dpo", "ppo"):
    values = dig(run.summary, f"policies.{name}")
    a, b = (number(dig(values, key)) for key in (x, y))
    if a is None or b is None:
      continue
    dx, dy = (number(dig(values, f"{key}_se")) or 0.0 for key in (x, y))
    tip = f"{NAMES[name]}: {AXES[x]} {real(a)}, {AXES[y]} {real(b)}"
    marks.append(Point(a, b, NAMES[name], name, SHAPES[name], dx, dy, tip))
  return marks
