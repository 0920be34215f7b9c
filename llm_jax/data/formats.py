"""Files of conversations, in the shapes that people have, to one schema.

Rows of JSONL (or JSONL.gz) that are understood:
    {"prompt": text, "response": text}
    {"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}
    {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}

The schema: a conversation is a list of messages, as `llm_jax.data.chat` takes it, that ends with an
assistant's; a preference is a prompt (messages) with two answers (texts).
"""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from llm_jax.data.chat import ROLES
from llm_jax.errors import UserError

Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a JSONL file.

  Attributes:
    value: the object.
    line: the very line, with its newline.
    number: of the line, from 1.
  """

  value: dict[str, Any]
  line: str
  number: int


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two answers to one prompt.

  Attributes:
    prompt: messages, the last of which is not the assistant's.
    chosen: the better answer.
    rejected: the worse answer.
  """

  prompt: Messages
  chosen: str
  rejected: str


def read_conversations(path: str | os.PathLike[str]) -> list[Messages]:
  """Reads conversations to learn from, each ending with an assistant's message.

  Raises:
    UserError: if the file is missing or empty; for the first bad row (file, line, reason).
  """
  return _read(path, _conversation)


def read_preferences(path: str | os.PathLike[str]) -> list[Preference]:
  """Reads preference pairs.

  Raises:
    UserError: if the file is missing or empty; for the first bad row (file, line, reason).
  """
  return _read(path, _preference)


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
  """Yields the objects of a .jsonl or .jsonl.gz file; blank lines are passed over.

  Raises:
    UserError: if the file cannot be read; for the first line that is no JSON object.
  """
  opened = gzip.open if str(path).endswith(".gz") else open
  number = 0
  try:
    with opened(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield Row(_object(path, number, line), line.rstrip("\r\n") + "\n", number)
  except UnicodeDecodeError as error:
    raise bad_row(path, number + 1, f"not UTF-8 ({error.reason})") from error
  except (OSError, EOFError, zlib.error) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"cannot read {path} after line {number} ({reason}): check the file") from error


def bad_row(path: str | os.PathLike[str], number: int, reason: str) -> UserError:
  """Returns the error for line `number` of `path`."""
  return UserError(f"{path}, line {number}: {reason}; correct or remove this line")


def _read(path, parse) -> list:
  out = []
  for row in read_rows(path):
    try:
      out.append(parse(row.value))
    except ValueError as error:
      raise bad_row(path, row.number, str(error)) from error
  if not out:
    raise UserError(f"{path} holds no rows: give a file with at least one")
  return out


def _object(path, number: int, line: str) -> dict[str, Any]:
  try:
    value = json.loads(line)
  except ValueError as error:
    raise bad_row(path, number, f"not JSON ({error})") from error
  except RecursionError as error:
    raise bad_row(path, number, "JSON nested too deeply") from error
  if not isinstance(value, dict):
    raise bad_row(path, number, f"a JSON {type(value).__name__} where an object must be")
  return value


def _conversation(row: Mapping[str, Any]) -> Messages:
  if "messages" in row:
    messages = _messages(row["messages"], "messages")
  elif "prompt" in row and "response" in row:
    messages = [*_prompt(row["prompt"]), _said("assistant", row["response"], "response")]
  else:
    raise ValueError(f'needs "messages", or "prompt" and "response"; it has: {_keys(row)}')
  if messages[-1]["role"] != "assistant":
    raise ValueError("the last message must be the assistant's")
  if not messages[-1]["content"].strip():
    raise ValueError("the assistant's last message is empty")
  return messages


def _preference(row: Mapping[str, Any]) -> Preference:
  missing = [name for name in ("prompt", "chosen", "rejected") if name not in row]
  if missing:
    raise ValueError(f'"{missing[0]}" is missing; it has: {_keys(row)}')
  prompt = _prompt(row["prompt"])
  chosen, rejected = (_answer(row[side], side, prompt) for side in ("chosen", "rejected"))
  if chosen == rejected:
    raise ValueError('"chosen" and "rejected" are the same answer')
  return Preference(prompt, chosen, rejected)


def _prompt(value: Any) -> Messages:
  messages = (
    _messages(value, "prompt") if isinstance(value, list) else [_said("user", value, "prompt")]
  )
  if messages[-1]["role"] == "assistant":
    raise ValueError('"prompt" must not end with the assistant\'s message')
  return messages


def _answer(value: Any, side: str, prompt: Messages) -> str:
  if not isinstance(value, list):
    return _said("assistant", value, side)["content"]
  messages = _messages(value, side)
  # Either the answer alone, or the whole conversation again.
  if messages[-1]["role"] != "assistant" or messages[:-1] not in ([], prompt):
    raise ValueError(f'"{side}" must be the assistant\'s answer, alone or after the prompt')
  return messages[-1]["content"]


def _messages(value: Any, name: str) -> Messages:
  if not isinstance(value, list) or not value:
    raise ValueError(f'"{name}" must be a list of at least one message')
  messages = []
  for i, message in enumerate(value):
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
      raise ValueError(f'"{name}"[{i}] must be an object with "role" and "content"')
    if message["role"] not in ROLES:
      raise ValueError(f'"{name}"[{i}] has role {message["role"]!r}; known: {", ".join(ROLES)}')
    messages.append(_said(message["role"], message["content"], f'{name}"[{i}]."content'))
  return messages


def _said(role: str, content: Any, name: str) -> dict[str, str]:
  if not isinstance(content, str):
    raise ValueError(f'"{name}" must be a text, not {type(content).__name__}')
  return {"role": role, "content": content}


def _keys(row: Mapping[str, Any]) -> str:
  return ", ".join(sorted(row)) if row else "nothing"
