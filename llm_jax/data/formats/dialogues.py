"""Conversations as lists of turns: OpenAI's messages, ShareGPT, LIMA."""

import json
from collections.abc import Iterator
from typing import Any

from llm_jax.data.formats import fields
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.schema import Conversation, Dropped, Format, Messages, Reason

LISTS = ("messages", "conversations", "conversation")
TOOLS = "You can call these tools, each as JSON with its name and arguments:\n"
_LABELS = ("label", "desirable", "kto_tag")


def labelled(row: Row) -> str:
  """Returns the name of the field that says whether an answer is wanted; "" if there is none."""
  return next((name for name in _LABELS if fields.is_flag(row.get(name))), "")


def unlabelled(row: Row) -> None:
  """Refuses rows that say true or false of their answer: the false ones are not to be learned.

  Raises:
    ValueError: for such a row.
  """
  name = labelled(row)
  if name and isinstance(row[name], bool):
    raise ValueError(f'"{name}" says whether the answer is wanted: read labels, format kto')


def turns(row: Row) -> list[Any]:
  """Returns the list of turns; [] if there is none."""
  value = row.get(fields.named(row, LISTS))
  return value if isinstance(value, list) else []


def with_tools(found: Messages, row: Row) -> Messages:
  """Returns messages, the row's system text and its tools in a system message before them.

  What tools there are is part of what an answer depends on, so it is told, as text.
  """
  before = fields.system(fields.optional(row, "system"))
  tools = row.get("tools") or row.get("functions") or ""
  shown = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False, default=str)
  if shown.strip() in ("", "[]", "{}"):
    return before + found
  if not before and found and found[0]["role"] == "system":
    before, found = found[:1], found[1:]
  texts = [m["content"] for m in before] + [TOOLS + shown]
  return fields.system("\n\n".join(texts)) + found


def conversation(row: Row) -> Conversation:
  """Reads a row with a list of turns, or with a prompt and a response.

  Raises:
    ValueError: if it is malformed.
    Dropped: if it holds no turn.
  """
  name = fields.named(row, LISTS)
  if name:
    found, learn = fields.messages(row[name], name)
    whole = with_tools(found, row)
    more = len(whole) - len(found)
    learn = None if learn is None else tuple(i + more for i in learn)
    return Conversation(whole, fields.source(row), learn)
  if fields.has(row, "prompt", "response"):
    before = fields.prompt(row["prompt"], "prompt")
    if before[-1]["role"] == "assistant":
      raise ValueError('"prompt" must not end with the assistant\'s message')
    said = fields.answer(row["response"], "response", before)
    return Conversation([*before, fields.assistant(said)], fields.source(row))
  listed = fields.listed(row)
  raise ValueError(f'needs "messages", or "prompt" and "response"; it has: {listed}')


def is_messages(row: Row) -> bool:
  """Tells whether a row holds messages with roles, or a prompt and a response."""
  if _compares(row):
    return False
  found = turns(row)
  first = found[0] if found else None
  if isinstance(first, dict):
    return "role" in first
  return fields.has(row, "prompt", "response")


def is_sharegpt(row: Row) -> bool:
  """Tells whether a row holds messages from somebody."""
  found = turns(row)
  return bool(found) and isinstance(found[0], dict) and "from" in found[0] and not _compares(row)


def _is_lima(row: Row) -> bool:
  found = turns(row)
  return bool(found) and all(isinstance(text, str) for text in found) and not _compares(row)


def _compares(row: Row) -> bool:
  return fields.has(row, "chosen", "rejected")


def _conversation(row: Row) -> Iterator[Conversation]:
  unlabelled(row)
  yield conversation(row)


def _lima(row: Row) -> Iterator[Conversation]:
  unlabelled(row)
  name = fields.needed(row, ("conversations", "conversation"))
  if not isinstance(row[name], list):
    raise ValueError(f'"{name}" must be a list of texts, not {type(row[name]).__name__}')
  texts = [fields.checked(text, f'{name}"[{i}]') for i, text in enumerate(row[name])]
  if not texts:
    raise Dropped(Reason("no messages", f'"{name}" must be a list of at least one text'))
  roles = (fields.user, fields.assistant)
  found = [roles[i % 2](text) for i, text in enumerate(texts)]
  yield Conversation(fields.system(fields.optional(row, "system")) + found, fields.source(row))


MESSAGES = Format(
  "messages",
  '{"messages": [{"role", "content"}, ...]} or {"prompt", "response"}',
  ("messages", "prompt", "response"),
  is_messages,
  {"conversations": _conversation},
)
SHAREGPT = Format(
  "sharegpt",
  '{"conversations": [{"from": "human" | "gpt" | ..., "value"}, ...], "system", "tools"}',
  ("conversations",),
  is_sharegpt,
  {"conversations": _conversation},
)
LIMA = Format(
  "lima",
  "{\"conversations\": [text, text, ...]}, the user's and the assistant's in turn",
  ("conversations",),
  _is_lima,
  {"conversations": _lima},
)
