"""One answer and whether it is wanted: KTO's labels, rewards of 0 and 1, Taskmaster's dialogues."""

import json
from collections.abc import Iterator
from typing import Any

from llm_jax.data.formats import dialogues, fields, instructions, transcripts
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.schema import (
  NO_PROMPT,
  SILENT,
  UNANSWERED,
  Conversation,
  Dropped,
  Format,
  Labelled,
  Reason,
)

# What says how a row with a label is read without it: the first that fits.
_READERS = (
  (dialogues.is_messages, dialogues.conversation),
  (dialogues.is_sharegpt, dialogues.conversation),
  (instructions.is_alpaca, instructions.alpaca),
  (instructions.is_flan, instructions.flan),
  (instructions.is_question, instructions.question),
)
_SAID = ("response", "completion", "generation", "answer", "output")
_ASKED = ("prompt", "context", "instruction", "question")


def _reader(row: Row):
  return next((read for fits, read in _READERS if fits(row)), None)


def _is_kto(row: Row) -> bool:
  return bool(dialogues.labelled(row)) and _reader(row) is not None


def _kto(row: Row) -> Iterator[Labelled | Reason]:
  name = dialogues.labelled(row)
  if not name:
    name = fields.needed(row, ("label", "kto_tag", "desirable"))
    raise ValueError(f'"{name}" must be true or false, or 1 or 0, not {row[name]!r:.40}')
  read = _reader(row)
  if read is None:
    raise ValueError(f'"{name}" belongs to no conversation; it has: {fields.listed(row)}')
  yield _labelled(read(row), bool(row[name]))


def _labelled(found: Conversation, desirable: bool) -> Labelled | Reason:
  *prompt, last = found.messages
  if last["role"] != "assistant":
    # The label is about what is not there, so nothing is cut back to an earlier answer.
    return UNANSWERED if any(m["role"] == "assistant" for m in prompt) else SILENT
  return Labelled(prompt, last["content"], desirable, found.source)


def _is_taskmaster(row: Row) -> bool:
  context = row.get("context")
  return isinstance(context, str) and context.startswith("[") and "generation" in row


def _taskmaster(row: Row) -> Iterator[Labelled]:
  """Reads a dialogue with calls of an interface, both as JSON in texts."""
  turns = _json(row, "context", list)
  said = _turn(_json(row, "generation", dict), "generation")
  desirable = fields.flag(row.get("reward"), "reward")
  if not turns:
    raise Dropped(NO_PROMPT)
  prompt = [_turn(turn, f"context[{i}]") for i, turn in enumerate(turns)]
  if said["role"] != "assistant":
    raise ValueError('"generation" must be of the role "agent"')
  yield Labelled(prompt, said["content"], desirable, fields.source(row))


def _json(row: Row, name: str, kind: type) -> Any:
  try:
    value = json.loads(fields.text(row, name))
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f'"{name}" is not JSON ({error})') from error
  if not isinstance(value, kind):
    raise ValueError(f'"{name}" must be JSON of a {kind.__name__}')
  return value


def _turn(value: Any, name: str) -> dict[str, str]:
  """Returns a turn: its text, or its call or the result of one as JSON."""
  if isinstance(value, dict) and "text" not in value:
    found = fields.named(value, ("api", "response"))
    if found:
      value = {**value, "text": json.dumps(value[found], ensure_ascii=False)}
  return fields.messages([value], name)[0][0]


def _is_rewards(row: Row) -> bool:
  asked, said = fields.named(row, _ASKED), fields.named(row, _SAID)
  return bool(asked and said) and fields.is_flag(row.get("reward"))


def _rewards(row: Row) -> Iterator[Labelled]:
  if isinstance(row.get("reward"), float | int) and not fields.is_flag(row["reward"]):
    raise ValueError(
      f'"reward" must be 1 or 0, not {row["reward"]!r:.40}: put a threshold on it, or rank answers'
    )
  desirable = fields.flag(row.get("reward"), "reward")
  name = fields.needed(row, _ASKED)
  prompt = transcripts.prompt(row[name], name)
  said = fields.needed(row, _SAID)
  yield Labelled(prompt, fields.answer(row[said], said, prompt), desirable, fields.source(row))


KTO = Format(
  "kto",
  'a row of messages, sharegpt, alpaca, flan or questions with "label" | "kto_tag" | "desirable":'
  " true | false, which is about its last answer",
  ("prompt", "completion", "label"),
  _is_kto,
  {"labels": _kto},
)
TASKMASTER = Format(
  "taskmaster",
  '{"context": JSON of turns, "generation": JSON of a turn, "reward": 0 | 1}',
  ("context", "generation", "reward"),
  _is_taskmaster,
  {"labels": _taskmaster},
)
REWARDS = Format(
  "rewards",
  '{"prompt" | "context" | "instruction" | "question", "response" | "completion" | "generation" |'
  ' "answer" | "output", "reward": 0 | 1}',
  ("prompt", "response", "reward"),
  _is_rewards,
  {"labels": _rewards},
)
