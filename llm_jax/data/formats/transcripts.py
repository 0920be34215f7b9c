"""Conversations as one text, as Anthropic's HH has them: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llm_jax.data.formats import fields
from llm_jax.data.formats.schema import DIVERGED, SAME, Messages, Reason

_NAMES = {"user": "Human", "assistant": "Assistant"}
_ROLES = {name: role for role, name in _NAMES.items()}
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def is_transcript(text: Any) -> bool:
  """Tells whether a value is a text that begins with a turn of the human."""
  return isinstance(text, str) and text.lstrip("\n").startswith("Human:")


def parse(text: str, name: str = "transcript") -> Messages:
  """Returns the turns of a transcript.

  A turn's text is all that stands between one space behind its name and the next name; whoever
  writes such a file cannot say "\\n\\nHuman:" inside a turn, and neither can this tell.

  Raises:
    ValueError: if it does not begin with a turn of the human.
  """
  if not is_transcript(text):
    raise ValueError(f'"{name}" must begin with "\\n\\nHuman: "')
  pieces = _TURN.split("\n\n" + text.lstrip("\n"))[1:]
  roles, contents = pieces[::2], pieces[1::2]
  return [
    {"role": _ROLES[role], "content": content}
    for role, content in zip(roles, contents, strict=True)
  ]


def write(messages: Iterable[Mapping[str, str]]) -> str:
  """Returns messages of users and assistants as a transcript."""
  return "".join(f"\n\n{_NAMES[m['role']]}: {m['content']}" for m in messages)


def prompt(value: Any, name: str) -> Messages:
  """Returns a prompt: messages, a text, or a transcript that ends where the assistant speaks.

  Raises:
    ValueError: if it is none of them.
  """
  if is_transcript(value) and value.rstrip().endswith("\n\nAssistant:"):
    return parse(value.rstrip(), name)[:-1]
  return fields.prompt(value, name)


def split(chosen: Messages, rejected: Messages) -> tuple[Messages, str, str] | Reason:
  """Returns (prompt, answer, answer) of two conversations that differ in their last message."""
  if chosen == rejected:
    return SAME
  same = len(chosen) == len(rejected) and chosen[:-1] == rejected[:-1]
  if not same or {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
    return DIVERGED
  return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]
