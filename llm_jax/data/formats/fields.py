"""Fields of a row, checked: texts, numbers, messages of every dialect, and where a row is from."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_jax.data.chat import ROLES
from llm_jax.data.formats.schema import NOT_TEXT, Dropped, Messages, Reason

Row = Mapping[str, Any]

# What a tool returns is told to the assistant, so it stands where a user's message does; a call is
# something that the assistant says.
ROLE = {role: role for role in ROLES} | {
  "developer": "system",
  "human": "user",
  "prompter": "user",
  "gpt": "assistant",
  "chatgpt": "assistant",
  "model": "assistant",
  "agent": "assistant",
  "function_call": "assistant",
  "tool_call": "assistant",
  "observation": "user",
  "tool": "user",
  "tool_response": "user",
  "function": "user",
  "function_response": "user",
  "api": "user",
}
_LEARN = ("weight", "train", "loss")  # OpenAI's fine-tuning files, Axolotl's, ms-swift's.
_SOURCE = (
  "source", "dataset", "category", "subset", "domain", "task", "task_name", "template", "behavior",
  "set", "vertical", "motivation_app",
)  # fmt: skip


def listed(row: Row) -> str:
  """Returns the names of a row's fields, for an error."""
  return ", ".join(sorted(row)) if row else "nothing"


def named(row: Row, names: Iterable[str]) -> str:
  """Returns the first of `names` that a row has; "" if it has none."""
  return next((name for name in names if name in row), "")


def has(row: Row, *names: str) -> bool:
  """Tells whether a row has all of these fields."""
  return all(name in row for name in names)


def needed(row: Row, names: Sequence[str]) -> str:
  """Returns the first of `names` that a row has.

  Raises:
    ValueError: if it has none.
  """
  name = named(row, names)
  if not name:
    raise ValueError(f'"{names[0]}" is missing; it has: {listed(row)}')
  return name


def text(row: Row, *names: str) -> str:
  """Returns the text in the first of `names` that a row has.

  Raises:
    ValueError: if it has none, or no text is there.
  """
  name = needed(row, names)
  return checked(row[name], name)


def optional(row: Row, *names: str) -> str:
  """Returns the text in the first of `names` that a row has; "" if it has none, or null."""
  name = named(row, names)
  return checked(row[name], name) if name and row[name] is not None else ""


def checked(value: Any, name: str) -> str:
  """Returns a value that must be a text.

  Raises:
    ValueError: if it is none.
  """
  if not isinstance(value, str):
    raise ValueError(f"{_shown(name)} must be a text, not {type(value).__name__}")
  return value


def _shown(name: str) -> str:
  """Returns a field's name in quotes: role -> "role", messages"[0] -> "messages"[0]."""
  return f'"{name}' if name.endswith("]") else f'"{name}"'


def number(value: Any, name: str) -> float:
  """Returns a value that must be a finite number.

  Raises:
    ValueError: if it is none.
  """
  if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
    shown = type(value).__name__ if not isinstance(value, float) else f"{value}"
    raise ValueError(f'"{name}" must be a finite number, not {shown}')
  return float(value)


def flag(value: Any, name: str) -> bool:
  """Returns a value that must be true, false, 1 or 0.

  Raises:
    ValueError: if it is none.
  """
  if not is_flag(value):
    raise ValueError(f"{_shown(name)} must be true or false, or 1 or 0, not {value!r:.40}")
  return bool(value)


def is_flag(value: Any) -> bool:
  """Tells whether a value is true, false, 1 or 0."""
  return isinstance(value, bool | int | float) and value in (0, 1)


def source(row: Row, *names: str) -> str:
  """Returns a row's own data set or category: a text under one of `names`, or of the usual ones."""
  values = (row.get(name) for name in (*names, *_SOURCE))
  return next((value for value in values if isinstance(value, str) and value), "")


def user(content: str) -> dict[str, str]:
  """Returns a message of the user."""
  return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
  """Returns a message of the assistant."""
  return {"role": "assistant", "content": content}


def system(content: str) -> Messages:
  """Returns the system's message; nothing for a blank text."""
  return [{"role": "system", "content": content}] if content.strip() else []


def prompt(value: Any, name: str) -> Messages:
  """Returns a prompt that is a text of the user or a list of messages.

  Raises:
    ValueError: if it is neither.
  """
  return messages(value, name)[0] if isinstance(value, list) else [user(checked(value, name))]


def answer(value: Any, name: str, before: Messages) -> str:
  """Returns an answer: a text, a message, or messages: it alone or after the prompt.

  Raises:
    ValueError: if it is none, or stands after something else than `before`.
  """
  if isinstance(value, dict):
    value = [value]
  if not isinstance(value, list):
    return checked(value, name)
  found, _ = messages(value, name)
  if found[-1]["role"] != "assistant" or found[:-1] not in ([], before):
    raise ValueError(f'"{name}" must be the assistant\'s answer, alone or after the prompt')
  return found[-1]["content"]


def messages(value: Any, name: str) -> tuple[Messages, tuple[int, ...] | None]:
  """Returns a list of messages, and the numbers of those to learn, None: all of the assistant's.

  Raises:
    ValueError: if it is none.
    Dropped: if it is empty.
  """
  rule = f'"{name}" must be a list of at least one message'
  if not isinstance(value, list):
    raise ValueError(rule)
  if not value:
    raise Dropped(Reason("no messages", rule))
  found = [_message(message, f'"{name}"[{i}]') for i, message in enumerate(value)]
  learn = [i for i, (m, kept) in enumerate(found) if m["role"] == "assistant" and kept]
  whole = all(kept for _, kept in found)
  return [m for m, _ in found], None if whole else tuple(learn)


def _message(value: Any, where: str) -> tuple[dict[str, str], bool]:
  """Returns a message, and whether it is to be learned if it is the assistant's."""
  name = named(value, ("role", "from")) if isinstance(value, dict) else ""
  said = named(value, ("content", "value", "text")) if name else ""
  calls = _calls(value, where) if name else ""
  if not said and not calls:
    raise ValueError(f'{where} must be an object with "role" and "content", or "from" and "value"')
  role = value[name]
  if not isinstance(role, str) or role not in ROLE:
    raise ValueError(f"{where} has role {role!r}; known: {', '.join(ROLE)}")
  content = "" if calls and value.get(said) is None else _content(value[said], f'{where}."{said}"')
  learn = [flag(value[key], f'{where[1:]}."{key}') for key in _LEARN if value.get(key) is not None]
  both = "\n".join(part for part in (content, calls) if part.strip()) if calls else content
  return {"role": ROLE[role], "content": both}, all(learn)


def _content(value: Any, where: str) -> str:
  """Returns the text of a message that is a text or a list of texts."""
  if isinstance(value, str):
    return value
  if not isinstance(value, list):
    raise ValueError(f"{where} must be a text, not {type(value).__name__}")
  parts = []
  for i, part in enumerate(value):
    if not isinstance(part, dict):
      raise ValueError(f'{where}[{i}] must be an object with "type" and "text"')
    if part.get("type", "text") not in ("text", "input_text", "output_text"):
      raise Dropped(NOT_TEXT)
    parts.append(checked(part.get("text"), f'{where[1:]}[{i}]."text'))
  return "".join(parts)


def _calls(value: Row, where: str) -> str:
  """Returns calls of tools as JSON, one as an object and several as an array; "": there is none."""
  calls = value.get("tool_calls") or []
  calls = calls if isinstance(calls, list) else [calls]
  old = [value["function_call"]] if value.get("function_call") else []
  found = []
  for call in [*calls, *old]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
      raise ValueError(f'{where}."tool_calls" must be objects with "function": "name", "arguments"')
    arguments = function.get("arguments", {})
    found.append({"name": function["name"], "arguments": _parsed(arguments)})
  shown = found[0] if len(found) == 1 else found
  return json.dumps(shown, ensure_ascii=False, default=str) if found else ""


def _parsed(arguments: Any) -> Any:
  """Returns arguments, which OpenAI writes as a text of JSON, as what they are."""
  try:
    return json.loads(arguments) if isinstance(arguments, str) else arguments
  except (ValueError, RecursionError):
    return arguments
