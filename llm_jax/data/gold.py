"""The gold score of an answer whose true answer is known: relevance and form, each in [0, 1].

    gold = (relevance + form) / 2
    relevance = character n-gram F1 against the true answer, mean over n = 1..6
    form = mean(ends, sentence, fresh, length)

It is a programmatic stand-in for a human label: good enough to rank answers, blind to meaning. Its
control is the relevance to *another* question's answer: style alone raises both alike, so only
`relevance - shuffled relevance` shows that an answer is about its question.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ORDERS = range(1, 7)


@dataclasses.dataclass(frozen=True)
class Gold:
  """The parts of one answer's gold score, each in [0, 1] and higher is better.

  Attributes:
    relevance: character n-gram F1 against the true answer.
    ends: 1 if the model ended the answer by itself.
    sentence: 1 if it starts with a capital, ends with a full stop and has three words or more.
    fresh: fraction of its word pairs that occur for the first time.
    length: shorter / longer word count of the answer and the true one.
  """

  relevance: float
  ends: float
  sentence: float
  fresh: float
  length: float

  @property
  def form(self) -> float:
    """Mean of the four parts that need no understanding of the question."""
    return (self.ends + self.sentence + self.fresh + self.length) / 4

  @property
  def total(self) -> float:
    """Mean of relevance and form."""
    return (self.relevance + self.form) / 2


def score(answer: str, truth: str, ended: bool = True) -> Gold:
  """Scores `answer` against `truth`; `ended` says if the model closed its turn."""
  words, true_words = answer.split(), truth.split()
  pairs = list(zip(words, words[1:], strict=False))
  sentence = len(words) >= 3 and answer.strip()[:1].isupper() and answer.rstrip()[-1:] in ".!?"
  longest = max(len(words), len(true_words))
  return Gold(
    relevance=relevance(answer, truth),
    ends=float(ended),
    sentence=float(sentence),
    fresh=len(set(pairs)) / len(pairs) if pairs else float(bool(words)),
    length=min(len(words), len(true_words)) / longest if longest else 1.0,
  )


def relevance(answer: str, truth: str) -> float:
  """Character n-gram F1 in [0, 1], mean over n = 1..6, spaces and case ignored.

  chrF (Popovic 2015, W15-3049) with beta = 1 and the orders averaged after the F score. Orders
  that the longer of the two texts does not reach are left out.
  """
  a, b = _grams(answer), _grams(truth)
  if not a or not b:
    return 0.0
  orders = itertools.zip_longest(a, b, fillvalue=Counter())
  return sum(_f1(*grams) for grams in orders) / max(len(a), len(b))


def shuffled(truths: Sequence[str], seed: int = 0, step: int = 1) -> list[str]:
  """Returns `truths` with every item moved to another question (a seeded derangement).

  Equal texts count as one answer, so that no question keeps its own. Other steps of one seed give
  a question other answers.

  Raises:
    ValueError: if there are no more than `step` different answers.
  """
  texts = list(dict.fromkeys(truths))
  if len(texts) <= step:
    raise ValueError(f"a shuffled control of step {step} needs at least {step + 1} answers")
  order = np.random.default_rng(seed).permutation(len(texts))
  # Steps along a random cycle: no fixed points, and each answer is used as often as before.
  to = {texts[i]: texts[j] for i, j in zip(order, np.roll(order, step), strict=True)}
  return [to[text] for text in truths]


# Answers to one question come together. More would not be worth it: a profile takes some 17 kB in
# small blocks and under .1 ms, and when thousands come and go malloc can give little back.
@functools.lru_cache(maxsize=256)
def _grams(text: str) -> list[Counter]:
  """The counts of n-grams for each order that the text reaches."""
  text = "".join(text.lower().split())
  reached = (n for n in _ORDERS if n <= len(text))
  return [Counter([text[i : i + n] for i in range(len(text) - n + 1)]) for n in reached]


def _f1(a: Counter, b: Counter) -> float:
  same = sum(min(a[gram], b[gram]) for gram in a.keys() & b.keys())
  return 2 * same / (a.total() + b.total())
