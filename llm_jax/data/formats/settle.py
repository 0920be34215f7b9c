"""What of an item can be learned from: the one place where content, not form, is judged."""

import dataclasses
from collections.abc import Iterator

from llm_jax.data.formats.schema import (
  EMPTY,
  FEW,
  NO_PROMPT,
  NOTHING,
  SAME,
  SILENT,
  SURROGATE,
  TIE,
  UNANSWERED,
  Conversation,
  Item,
  Labelled,
  Messages,
  Preference,
  Ranking,
  Reason,
)


def settled(item: Item) -> Iterator[Item | Reason]:
  """Yields an item as it can be learned from, and reasons for what is not.

  Raises:
    ValueError: if a prompt ends with the assistant's message, or a probability is none.
  """
  texts = [m["content"] for m in _messages(item)] + list(_answers(item))
  if not all(map(_encodes, texts)):
    yield SURROGATE
  elif isinstance(item, Conversation):
    yield from _settled_conversation(item)
  elif not item.prompt:
    yield NO_PROMPT
  elif item.prompt[-1]["role"] == "assistant":
    raise ValueError('"prompt" must not end with the assistant\'s message')
  elif isinstance(item, Ranking):
    yield from _settled_ranking(item)
  elif not all(text.strip() for text in _answers(item)):
    yield EMPTY
  elif isinstance(item, Preference):
    yield _settled_preference(item)
  else:
    yield item


def _settled_conversation(item: Conversation) -> Iterator[Item | Reason]:
  said = [m["role"] == "assistant" for m in item.messages]
  spoken = [s and bool(m["content"].strip()) for s, m in zip(said, item.messages, strict=True)]
  if not any(spoken):
    yield EMPTY if any(said) else SILENT
    return
  end = len(spoken) - spoken[::-1].index(True)
  if end < len(spoken):
    yield EMPTY if said[-1] else UNANSWERED
  learned = tuple(i for i in item.learned() if i < end and spoken[i])
  if not learned:
    yield NOTHING
    return
  whole = len(learned) == sum(said[:end])
  yield dataclasses.replace(item, messages=item.messages[:end], learn=None if whole else learned)


def _settled_preference(item: Preference) -> Item | Reason:
  if not 0 <= item.probability <= 1:
    raise ValueError(f'"probability" must lie between 0 and 1, not {item.probability:g}')
  if item.chosen == item.rejected:
    return SAME
  if item.probability == 0.5:
    return TIE
  if item.probability > 0.5:
    return item
  return dataclasses.replace(
    item, chosen=item.rejected, rejected=item.chosen, probability=1 - item.probability
  )


def _settled_ranking(item: Ranking) -> Iterator[Item | Reason]:
  kept = [i for i, text in enumerate(item.answers) if text.strip()]
  yield from [EMPTY] * (len(item.answers) - len(kept))
  if len(kept) < 2:
    yield FEW
    return
  answers, ranks = (tuple(values[i] for i in kept) for values in (item.answers, item.ranks))
  ratings = tuple(item.ratings[i] for i in kept) if item.ratings else None
  yield dataclasses.replace(item, answers=answers, ranks=ranks, ratings=ratings)


def _messages(item: Item) -> Messages:
  return item.messages if isinstance(item, Conversation) else item.prompt


def _answers(item: Item) -> tuple[str, ...]:
  if isinstance(item, Preference):
    return item.chosen, item.rejected
  if isinstance(item, Ranking):
    return item.answers
  return (item.answer,) if isinstance(item, Labelled) else ()


def _encodes(text: str) -> bool:
  """Tells whether a text is Unicode; JSON can spell halves of surrogate pairs, which are none."""
  if text.isascii():
    return True
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True
