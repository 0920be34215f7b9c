"""Preference pairs with a known reason: what is wrong with the rejected answer.

Kinds: `other_object` (the true answer of another question), `cut_off` (the true answer stops in
the middle), `repetitive` (a part of the true answer is said again and again), and `sft_sample` (two
of a model's own answers to the question, the one of the higher gold score is chosen).

Pairs of samples are balanced by length: a question has one whose chosen answer is the longer, and
one whose chosen answer is the shorter one. Better samples tend to be longer, and a reward model
would learn just that, and PPO exploit it (Singhal et al. 2023, arXiv:2310.03716).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from llm_jax.data import gold
from llm_jax.data.formats.files import bad_row, read_rows
from llm_jax.data.questions import Question

KINDS = ("other_object", "cut_off", "repetitive", "sft_sample")


@dataclasses.dataclass(frozen=True)
class Answer:
  """A text, and whether its author ended it."""

  text: str
  ended: bool = True


@dataclasses.dataclass(frozen=True)
class Pair:
  """One comparison.

  Attributes:
    prompt: the question as the model sees it.
    chosen: the better answer.
    rejected: the worse answer.
    kind: one of KINDS, or a source's own word.
    gold_chosen: gold score of `chosen`.
    gold_rejected: gold score of `rejected`.
  """

  prompt: str
  chosen: Answer
  rejected: Answer
  kind: str
  gold_chosen: float
  gold_rejected: float


def build(
  questions: Sequence[Question],
  samples: Sequence[Sequence[Answer]],
  seed: int,
  easy: float = 1.0,
  others: int = 1,
) -> list[Pair]:
  """Returns pairs of each kind for every question that has them, in a seeded order.

  Args:
    questions: with true answers.
    samples: a model's own answers to each question; there may be no pair of them.
    seed: of the cuts, the repeats and the order.
    easy: the fraction of questions that get a `cut_off` and a `repetitive` pair. A model learns
      these from a few, and more of them only take the place of pairs that teach it something.
    others: `other_object` pairs of a question, each with another wrong answer. They are the hard
      kind, the only one that is about content alone, and cost no samples.
  """
  rng = np.random.default_rng(seed)
  truths = [q.answer for q in questions]
  wrong = [gold.shuffled(truths, seed, k + 1) for k in range(others)]
  pairs = []
  for i, (question, drawn) in enumerate(zip(questions, samples, strict=True)):
    truth = question.answer
    spoilt = [("other_object", Answer(answers[i])) for answers in wrong]
    if rng.random() < easy:
      spoilt.append(("cut_off", Answer(_cut(truth, rng))))
      spoilt.append(("repetitive", Answer(_repeat(truth, rng))))
    for kind, rejected in spoilt:
      pairs.append(_pair(question, Answer(truth), rejected, kind))
    for longer in (True, False):
      best = _widest(drawn, truth, longer)
      if best:
        pairs.append(_pair(question, *best, "sft_sample"))
  pairs = [pair for pair in pairs if pair.gold_chosen > pair.gold_rejected]
  return [pairs[i] for i in rng.permutation(len(pairs))]


def plain(questions: Sequence[Question], samples: Sequence[Sequence[Answer]]) -> list[Pair]:
  """A pair of the first two samples of every question, of kind `any_samples`, where they differ.

  Nothing was chosen about them: the plainest measure of a reward model on a policy's answers.
  """
  pairs = []
  for question, drawn in zip(questions, samples, strict=True):
    first = drawn[:2]
    scores = [gold.score(a.text, question.answer, a.ended).total for a in first]
    if len(first) == 2 and scores[0] != scores[1]:
      chosen, rejected = first if scores[0] > scores[1] else first[::-1]
      pairs.append(_pair(question, chosen, rejected, "any_samples"))
  return pairs


def write(path: str | pathlib.Path, pairs: Iterable[Pair]) -> None:
  """Writes one JSON object a line."""
  with open(path, "w", encoding="utf-8") as f:
    for pair in pairs:
      f.write(json.dumps(dataclasses.asdict(pair), ensure_ascii=False) + "\n")


def read(path: str | pathlib.Path) -> list[Pair]:
  """Reads what `write` wrote.

  Raises:
    UserError: naming the first bad line.
  """
  pairs = []
  for row in read_rows(path):
    value = dict(row.value)
    try:
      answers = {k: Answer(**value.pop(k)) for k in ("chosen", "rejected")}
      pairs.append(Pair(**value, **answers))
    except (TypeError, KeyError) as e:
      raise bad_row(path, row.number, f"not a preference pair ({e})") from e
  return pairs


def _pair(question: Question, chosen: Answer, rejected: Answer, kind: str) -> Pair:
  scores = [gold.score(a.text, question.answer, a.ended).total for a in (chosen, rejected)]
  return Pair(question.prompt, chosen, rejected, kind, *scores)


def _widest(drawn: Sequence[Answer], truth: str, longer: bool) -> tuple[Answer, Answer] | None:
  """The two samples of the widest gold gap whose better one is the `longer` one, or as long."""
  scored = [(gold.score(a.text, truth, a.ended).total, len(a.text.split()), a) for a in drawn]
  sign = 1 if longer else -1
  pairs = [
    (better - worse, chosen, rejected)
    for better, more, chosen in scored
    for worse, less, rejected in scored
    if better > worse and sign * more >= sign * less
  ]
  return max(pairs, key=lambda pair: pair[0])[1:] if pairs else None


def _cut(text: str, rng: np.random.Generator) -> str:
  """The first 30 to 80 % of the words."""
  words = text.split()
  return " ".join(words[: max(1, int(len(words) * rng.uniform(0.3, 0.8)))])


def _repeat(text: str, rng: np.random.Generator) -> str:
  """The text up to some word, then its last few words two or three times more."""
  words = text.split()
  end = int(rng.integers(min(3, len(words)), len(words) + 1))
  phrase = words[max(0, end - int(rng.integers(2, 5))) : end]
  return " ".join(words[:end] + phrase * int(rng.integers(2, 4)))
