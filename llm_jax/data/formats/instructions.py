"""One question, one answer: Alpaca, Dolly, Self-Instruct, FLAN and T0, GSM8K, OpenOrca."""

import re
from collections.abc import Iterator
from typing import Any

from llm_jax.data.formats import fields
from llm_jax.data.formats.dialogues import unlabelled
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.schema import NO_PROMPT, Conversation, Dropped, Format, Messages, Reason

END = "<|endoftext|>"
_OUTPUTS = ("output", "response", "completion", "answer")
_SYSTEM = ("system", "system_prompt")
_INPUTS = ("inputs", "inputs_pretokenized", "prompt")
_TARGETS = ("targets", "targets_pretokenized", "completion")
_FINAL = re.compile(r"####\s*([-+]?[$]?[\d,]*\.?\d+)")


def final_number(text: str) -> str:
  """Returns the number behind the last `####` of an answer of GSM8K; "" if there is none.

  Commas and a dollar sign are left out: "#### 1,080" gives "1080".
  """
  found = _FINAL.findall(text)
  return re.sub("[$,+]", "", found[-1]) if found else ""


def instruction(row: Row, *names: str) -> Messages:
  """Returns what is asked: a system text, earlier turns, and an instruction with its input.

  Args:
    row: with "system" and "history" (pairs of texts), which may be missing; with an "input" or
      "context", which may be missing or empty.
    *names: of the instruction.

  Raises:
    ValueError: if it is malformed.
    Dropped: if nothing is asked.
  """
  asked = fields.text(row, *(names or ("instruction",)))
  found = fields.optional(row, "input", "context")
  parts = [part for part in (asked, found) if part.strip()]
  if not parts:
    raise Dropped(NO_PROMPT)
  before = fields.system(fields.optional(row, *_SYSTEM))
  history = row.get("history") or []
  if not isinstance(history, list):
    raise ValueError(f'"history" must be a list, not {type(history).__name__}')
  for i, pair in enumerate(history):
    if not isinstance(pair, list) or len(pair) != 2:
      raise ValueError(f'"history"[{i}] must be a list of a question and an answer')
    said = [fields.checked(text, f'history"[{i}]') for text in pair]
    before += [fields.user(said[0]), fields.assistant(said[1])]
  # As Alpaca has it, but for its headings: those are the template's (llm_jax/data/templates.py).
  return [*before, fields.user("\n\n".join(parts))]


def alpaca(row: Row) -> Conversation:
  """Reads an instruction with its answer."""
  answer = fields.text(row, *_OUTPUTS)
  return Conversation([*instruction(row), fields.assistant(answer)], fields.source(row))


def question(row: Row) -> Conversation:
  """Reads a question with its answer."""
  answer = fields.text(row, "response", "answer")
  before = fields.system(fields.optional(row, *_SYSTEM))
  asked = fields.user(fields.text(row, "question"))
  return Conversation([*before, asked, fields.assistant(answer)], fields.source(row))


def flan(row: Row) -> Conversation:
  """Reads an input and a target, texts or (of a prompt and a completion) messages.

  A literal <|endoftext|> at the end of a target, and one space before it, are how completions were
  written for GPT-3; both go. Such a marker anywhere else is text.
  """
  name = fields.needed(row, _INPUTS)
  target = fields.needed(row, _TARGETS)
  before = fields.prompt(row[name], name)
  said = fields.answer(row[target], target, before)
  return Conversation([*before, fields.assistant(completion(said))], fields.source(row))


def completion(text: str) -> str:
  """Returns a completion without the space before it and the marker behind it."""
  return text.removesuffix(END).removeprefix(" ")


def is_alpaca(row: Row) -> bool:
  """Tells whether a row is an instruction with an answer."""
  return "instruction" in row and isinstance(row.get(fields.named(row, _OUTPUTS)), str)


def is_flan(row: Row) -> bool:
  """Tells whether a row is an input with a target."""
  return bool(fields.named(row, _INPUTS) and fields.named(row, _TARGETS))


def is_question(row: Row) -> bool:
  """Tells whether a row is a question with an answer."""
  answer = row.get(fields.named(row, ("response", "answer")))
  return isinstance(row.get("question"), str) and isinstance(answer, str)


def _is_gsm8k(row: Row) -> bool:
  return is_question(row) and bool(final_number(str(row.get("answer"))))


def _gsm8k(row: Row) -> Iterator[Conversation]:
  found = question(row)
  if not final_number(found.messages[-1]["content"]):
    raise ValueError('"answer" must end with #### and a number')
  yield found


def _is_tasks(row: Row) -> bool:
  return "instruction" in row and isinstance(row.get("instances"), list)


def _tasks(row: Row) -> Iterator[Conversation | Reason]:
  instances: Any = row.get("instances")
  if not isinstance(instances, list):
    raise ValueError(f'"instances" must be a list; it has: {fields.listed(row)}')
  for i, instance in enumerate(instances):
    if not isinstance(instance, dict):
      raise ValueError(f'"instances"[{i}] must be an object with "input" and "output"')
    whole = {**row, "input": instance.get("input"), "output": instance.get("output")}
    try:
      yield alpaca(whole)
    except Dropped as drop:
      yield drop.reason  # The other instances stay.


def _alpaca(row: Row) -> Iterator[Conversation]:
  unlabelled(row)
  yield alpaca(row)


def _flan(row: Row) -> Iterator[Conversation]:
  unlabelled(row)
  yield flan(row)


def _question(row: Row) -> Iterator[Conversation]:
  unlabelled(row)
  yield question(row)


ALPACA = Format(
  "alpaca",
  '{"instruction", "input" | "context", "output" | "response", "system", "history"}',
  ("instruction", "input", "output"),
  is_alpaca,
  {"conversations": _alpaca},
)
SELF_INSTRUCT = Format(
  "self_instruct",
  '{"instruction", "instances": [{"input", "output"}, ...]}',
  ("instruction", "instances"),
  _is_tasks,
  {"conversations": _tasks},
)
FLAN = Format(
  "flan",
  '{"inputs", "targets"} or {"prompt", "completion"}',
  ("inputs", "targets"),
  is_flan,
  {"conversations": _flan},
)
GSM8K = Format(
  "gsm8k",
  '{"question", "answer": "... #### 42"}',
  ("question", "answer"),
  _is_gsm8k,
  {"conversations": _gsm8k},
)
QUESTIONS = Format(
  "questions",
  '{"question", "answer" | "response", "system_prompt"}',
  ("question", "answer", "system_prompt"),
  is_question,
  {"conversations": _question},
)
