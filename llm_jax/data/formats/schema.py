"""What every format is read into: conversations, preferences, labelled answers, rankings.

A prompt is a list of messages as `llm_jax.data.chat` takes them, the last of which is not the
assistant's; an answer is the text that the assistant says next. Texts are never interpreted: what
looks like a control token in a file is text, and chat.py encodes it as text.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

KINDS = ("conversations", "preferences", "labels", "rankings")

Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages to learn from, the last of which is an assistant's.

  Attributes:
    messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first.
    source: the row's own data set or category; "": it names none.
    learn: numbers of the assistant's messages that are to be learned; None: all of them.
  """

  messages: Messages
  source: str = ""
  learn: tuple[int, ...] | None = None

  def learned(self) -> tuple[int, ...]:
    """Returns the numbers of the messages that are to be learned."""
    if self.learn is not None:
      return self.learn
    return tuple(i for i, m in enumerate(self.messages) if m["role"] == "assistant")


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two answers to one prompt.

  Attributes:
    prompt: messages.
    chosen: the better answer.
    rejected: the worse answer.
    margin: rating of the better minus that of the worse, in the file's own unit; 0: not rated.
    probability: that the chosen answer is the better one, in (0.5, 1]: a soft label.
    group: pairs of one K-way prompt have one in common; "": a pair of its own.
    source: as in `Conversation`.
  """

  prompt: Messages
  chosen: str
  rejected: str
  margin: float = 0.0
  probability: float = 1.0
  group: str | int = ""
  source: str = ""


@dataclasses.dataclass(frozen=True)
class Labelled:
  """One answer, and whether it is wanted.

  Attributes:
    prompt: messages.
    answer: the answer.
    desirable: KTO's label, or a reward of 1.
    source: as in `Conversation`.
  """

  prompt: Messages
  answer: str
  desirable: bool
  source: str = ""


@dataclasses.dataclass(frozen=True)
class Ranking:
  """K answers to one prompt, in an order.

  Attributes:
    prompt: messages.
    answers: K texts.
    ranks: K numbers, lower is better, equal is a tie.
    ratings: K numbers, higher is better, in the file's own unit; None: there are only ranks.
    group: as in `Preference`.
    source: as in `Conversation`.
  """

  prompt: Messages
  answers: tuple[str, ...]
  ranks: tuple[float, ...]
  ratings: tuple[float, ...] | None = None
  group: str | int = ""
  source: str = ""

  def pairs(self) -> list[Preference]:
    """Returns all pairs that are no tie and whose answers differ, best answers first.

    Up to K (K - 1) / 2 of them share a group: InstructGPT (arXiv:2203.02155, section 3.5) trains
    on them as one batch element, for pairs of one prompt that are shuffled apart overfit. The
    margin is the difference of the two ratings, 0 where there are none.
    """
    return [out for out in self.compared() if isinstance(out, Preference)]

  def compared(self) -> Iterator["Preference | Reason"]:
    """Yields the pairs, and of each two answers that give none the reason."""
    order = sorted(range(len(self.ranks)), key=self.ranks.__getitem__)
    for place, i in enumerate(order):
      for j in order[place + 1 :]:
        if self.ranks[i] == self.ranks[j]:
          yield TIE
        elif self.answers[i] == self.answers[j]:
          yield SAME
        else:
          margin = self.ratings[i] - self.ratings[j] if self.ratings else 0.0
          yield Preference(
            self.prompt, self.answers[i], self.answers[j], margin, 1.0, self.group, self.source
          )


Item = Conversation | Preference | Labelled | Ranking


class Reason(NamedTuple):
  """Why something cannot be learned from.

  Attributes:
    name: short, as `Table.drops` has it.
    rule: what is asked for, as a strict reader says it.
  """

  name: str
  rule: str


class Dropped(Exception):
  """Nothing of this row can be learned from.

  Attributes:
    reason: why.
  """

  def __init__(self, reason: Reason):
    super().__init__(reason.rule)
    self.reason = reason


EMPTY = Reason("empty answer", "the assistant's last message is empty")
SAME = Reason("same answers", '"chosen" and "rejected" are the same answer')
TIE = Reason("tie", "both answers are equally good")
SILENT = Reason("no assistant turn", "the last message must be the assistant's")
UNANSWERED = Reason("unanswered end", "the last message must be the assistant's")
NO_PROMPT = Reason("no prompt", "there is nothing before the answer")
NOTHING = Reason("nothing to learn", "no message of the assistant is to be learned")
DIVERGED = Reason("differ too early", "the answers must differ in the last message only")
FEW = Reason("fewer than two answers", "there must be two answers to compare")
UNRANKED = Reason("unranked answer", "every answer must have a rank")
SURROGATE = Reason("broken Unicode", "a text holds half of a surrogate pair")
NOT_TEXT = Reason("not text", "a message must be text only")


@dataclasses.dataclass(frozen=True)
class Table:
  """What a file holds.

  Attributes:
    items: of one kind, in the order of the file.
    kind: one of `KINDS`.
    format: the name of the format that was found.
    rows: how many rows were read. A row may hold several items, as a tree of messages does.
    drops: what cannot be learned from, by reason: items, or parts of them that were cut off.
    lost: rows that cannot be read, by the kind of reason; they are among `rows`.
  """

  items: list[Any]
  kind: str
  format: str
  rows: int
  drops: dict[str, int]
  lost: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Format:
  """One way to write such data.

  Attributes:
    name: of the format.
    looks: how a row looks, in a few words.
    keys: those by which the nearest format of an odd row is found.
    fits: tells of a row whether it is of this format; the first format that fits a file is taken.
    reads: for each kind that the format gives, what makes items of a row. It raises `ValueError`
      for a row that is malformed, and yields or raises (`Dropped`) reasons for what is dropped.
    gather: makes trees of rows that lie scattered; None: each row stands for itself.
  """

  name: str
  looks: str
  keys: tuple[str, ...]
  fits: Callable[[Mapping[str, Any]], bool]
  reads: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Item | Reason]]]
  gather: Callable[..., Iterator[Any]] | None = None

  @property
  def kinds(self) -> tuple[str, ...]:
    """Returns the kinds that can be had, those that are worked out from others included."""
    return tuple(kind for kind in KINDS if self.origin(kind))

  def origin(self, kind: str) -> str:
    """Returns the kind that is read where `kind` is asked for; "" if it cannot be had.

    A ranking gives preferences. A preference gives labels, as in the paper on KTO
    (arXiv:2402.01306, section 5): its chosen answer is desirable, the other is not.
    """
    if kind in self.reads:
      return kind
    from_others = {"preferences": "rankings", "labels": "preferences"}.get(kind, "")
    return from_others if from_others in self.reads else ""
