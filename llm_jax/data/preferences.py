"""Preference pairs with a known reason: what is wrong with the rejected answer.

Kinds: `other_object` (the true answer of another question), `cut_off` (the true answer stops in
the middle), `repetitive` (a part of the true answer is said again and again), and `sft_sample` (of
a model's own answers to the question, the one of the highest gold score is chosen and the one of
the lowest is rejected).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from llm_jax.data import gold
from llm_jax.data.questions import Question
from llm_jax.errors import UserError

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
  questions: Sequence[Question], samples: Sequence[Sequence[Answer]], seed: int
) -> list[Pair]:
  """Returns a pair of each kind for every question, in a seeded order.

  Args:
    questions: with true answers.
    samples: a model's own answers to each question; where all score alike there is no pair.
    seed: of the cuts, the repeats and the order.
  """
  rng = np.random.default_rng(seed)
  others = gold.shuffled([q.answer for q in questions], seed)
  pairs = []
  for question, other, drawn in zip(questions, others, samples, strict=True):
    truth = question.answer
    spoilt = {
      "other_object": Answer(other),
      "cut_off": Answer(_cut(truth, rng)),
      "repetitive": Answer(_repeat(truth, rng)),
    }
    for kind, rejected in spoilt.items():
      pairs.append(_pair(question, Answer(truth), rejected, kind))
    ranked = sorted(drawn, key=lambda a: gold.score(a.text, truth, a.ended).total)
    if ranked:
      pairs.append(_pair(question, ranked[-1], ranked[0], "sft_sample"))
  pairs = [pair for pair in pairs if pair.gold_chosen > pair.gold_rejected]
  return [pairs[i] for i in rng.permutation(len(pairs))]


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
  with open(path, encoding="utf-8") as f:
    for number, line in enumerate(f, 1):
      try:
        row = json.loads(line)
        answers = {k: Answer(**row.pop(k)) for k in ("chosen", "rejected")}
        pairs.append(Pair(**row, **answers))
      except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"{path}:{number}: not a preference pair ({e})") from e
  return pairs


def _pair(question: Question, chosen: Answer, rejected: Answer, kind: str) -> Pair:
  scores = [gold.score(a.text, question.answer, a.ended).total for a in (chosen, rejected)]
  return Pair(question.prompt, chosen, rejected, kind, *scores)


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
