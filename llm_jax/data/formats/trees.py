"""OpenAssistant's trees of messages, nested or one message a row: paths, and ranked siblings."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.data.formats import fields
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.files import Row as FileRow
from llm_jax.data.formats.schema import (
  EMPTY,
  FEW,
  UNANSWERED,
  UNRANKED,
  Conversation,
  Format,
  Messages,
  Ranking,
  Reason,
)

DELETED = Reason("deleted message", "a message must not be deleted")
REVIEWED = Reason("failed review", "a message must have passed the review")
DETACHED = Reason("cut off from its tree", "the message before it must be in the file")


@dataclasses.dataclass
class _Node:
  """A message in a tree; `parent` and `children` are numbers in the list of nodes."""

  message: dict[str, str]
  id: str
  rank: float | None
  parent: int
  children: list[int] = dataclasses.field(default_factory=list)
  kept: bool = True
  told: bool = False  # Stands in a conversation that has been yielded.

  @property
  def assistant(self) -> bool:
    return self.message["role"] == "assistant"


def gather(
  rows: Iterator[FileRow], bad: Callable[[FileRow, str], None]
) -> Iterator[FileRow | Reason]:
  """Yields trees; those whose messages are rows come last, when all have been read.

  Args:
    rows: of a file.
    bad: gets each row that cannot be read, and why: its message is malformed, has no id, or that of
      another. What it raises is passed on.
  """
  messages: dict[str, tuple[FileRow, dict[str, Any]]] = {}
  for row in rows:
    value = row.value
    if isinstance(value.get("prompt"), dict):
      yield dataclasses.replace(row, value=value["prompt"])
    elif value.get("replies") and value.get("parent_id") is None:
      yield row
    else:
      name = value.get("message_id")
      if not isinstance(name, str) or not name:
        bad(row, f'"message_id" must be a text; it has: {fields.listed(value)}')
        continue
      if name in messages:
        bad(row, f'"message_id" {name[:40]} stands in two rows')
        continue
      replies = value.get("replies") or []
      if not isinstance(replies, list):
        bad(row, f'"replies" must be a list, not {type(replies).__name__}')
        continue
      try:
        _node(value, -1)  # Here, for the error to name the row; trees are read when all are known.
      except ValueError as error:
        bad(row, str(error))
        continue
      messages[name] = row, {**value, "replies": list(replies)}
  yield from _joined(messages, bad)


def _joined(messages, bad) -> Iterator[FileRow | Reason]:
  below: dict[str, list[str]] = {}
  roots, lost = [], 0
  for name, (row, value) in messages.items():
    parent = value.get("parent_id")
    if parent is None:
      roots.append(name)
    elif not isinstance(parent, str):
      lost += 1
      bad(row, f'"parent_id" must be a text or null, not {type(parent).__name__}')
    elif parent in messages:
      messages[parent][1]["replies"].append(value)
      below.setdefault(parent, []).append(name)
  reached = 0
  waiting = list(roots)
  while waiting:
    reached += 1
    waiting += below.get(waiting.pop(), [])
  yield from [DETACHED] * (len(messages) - reached - lost)
  for name in roots:
    row, value = messages[name]
    yield dataclasses.replace(row, value=value)


def _nodes(root: Row) -> tuple[list[_Node], list[Reason]]:
  """Returns the messages of a tree, parents before children and siblings in order, and drops.

  Raises:
    ValueError: if a message is malformed.
  """
  nodes: list[_Node] = []
  lost: list[Reason] = []
  waiting: list[tuple[Any, int, Reason | None]] = [(root, -1, None)]
  while waiting:
    value, parent, reason = waiting.pop()
    if not isinstance(value, dict):
      raise ValueError(f"a reply must be an object, not {type(value).__name__}")
    replies = value.get("replies") or []
    if not isinstance(replies, list):
      raise ValueError(f'"replies" must be a list, not {type(replies).__name__}')
    if reason is None and value.get("deleted") is True:
      reason = DELETED
    if reason is None and value.get("review_result") is False:
      reason = REVIEWED
    number = len(nodes)
    if reason:
      lost.append(reason)
    else:
      nodes.append(_node(value, parent))
      if parent >= 0:
        nodes[parent].children.append(number)
    waiting += [(reply, number, reason) for reply in reversed(replies)]
  return nodes, lost


def _node(value: Row, parent: int) -> _Node:
  message = {"role": value.get("role"), "text": fields.text(value, "text")}
  found = fields.messages([message], "replies")[0][0]
  rank = value.get("rank")
  rank = None if rank is None else fields.number(rank, "rank")
  name = value.get("message_id")
  return _Node(found, name if isinstance(name, str) else "", rank, parent)


def _path(nodes: list[_Node], number: int) -> list[int]:
  path = []
  while number >= 0:
    path.append(number)
    number = nodes[number].parent
  return path[::-1]


def _conversations(root: Row) -> Iterator[Conversation | Reason]:
  """Yields the path to every answer that nobody answered further.

  Paths share their beginnings, so each answer is to be learned in the first of them only: else the
  first answer of a tree of 20 threads would count 20 times.
  """
  nodes, lost = _nodes(root)
  yield from lost
  for node in reversed(nodes):
    goes_on = any(nodes[child].kept for child in node.children)
    node.kept = goes_on or (node.assistant and bool(node.message["content"].strip()))
    if not node.kept:
      yield EMPTY if node.assistant else UNANSWERED
  for number, node in enumerate(nodes):
    if node.kept and not any(nodes[child].kept for child in node.children):
      path = _path(nodes, number)
      fresh = [i for i, k in enumerate(path) if nodes[k].assistant and not nodes[k].told]
      for k in path:
        nodes[k].told = True
      yield Conversation(_said(nodes, path), fields.source(root), tuple(fresh))


def _rankings(root: Row) -> Iterator[Ranking | Reason]:
  """Yields the ranked answers to every prompt that has some."""
  nodes, lost = _nodes(root)
  yield from lost
  for number, node in enumerate(nodes):
    answers = [nodes[k] for k in node.children if nodes[k].assistant]
    if node.assistant or not answers:
      continue
    ranked = [answer for answer in answers if answer.rank is not None]
    if len(answers) < 2:
      yield FEW
      continue
    yield from [UNRANKED] * (len(answers) - len(ranked))
    prompt = _said(nodes, _path(nodes, number))
    texts = tuple(answer.message["content"] for answer in ranked)
    ranks = tuple(answer.rank for answer in ranked if answer.rank is not None)
    yield Ranking(prompt, texts, ranks, group=node.id, source=fields.source(root))


def _said(nodes: list[_Node], path: list[int]) -> Messages:
  return [nodes[k].message for k in path]  # Threads share them: copies would fill a memory.


def _fits(row: Row) -> bool:
  root = row.get("prompt", row)
  return isinstance(root, dict) and fields.has(root, "message_id", "text", "role")


OASST = Format(
  "oasst",
  '{"prompt": {"message_id", "text", "role", "rank", "replies": [...]}}, the message alone, or'
  ' {"message_id", "parent_id", "text", "role", "rank"}, one message a row',
  ("message_id", "parent_id", "text", "role"),
  _fits,
  {"conversations": _conversations, "rankings": _rankings},
  gather,
)
