"""A chosen and a rejected answer: texts, messages, ShareGPT turns, Alpaca rows, HH transcripts."""

from collections.abc import Iterator

from llm_jax.data.formats import dialogues, fields, instructions, transcripts
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.schema import (
  TIE,
  Conversation,
  Dropped,
  Format,
  Messages,
  Preference,
  Reason,
)

_SIDES = ("chosen", "rejected")
_CONTRARY = Reason("scores contradict", '"score_chosen" must be above "score_rejected"')


def preference(row: Row, prompt: Messages, chosen: str, rejected: str) -> Preference:
  """Returns a pair with what the row says of it: margin or scores, probability, group, source.

  Raises:
    ValueError: if one of them is malformed.
    Dropped: if the scores say that it is a tie, or the other way round.
  """
  margin = fields.number(row["margin"], "margin") if row.get("margin") is not None else 0.0
  if margin < 0:
    raise ValueError(f'"margin" must not be negative, it is {margin:g}')
  scores = [row.get(name) for name in ("score_chosen", "score_rejected")]
  if None not in scores:
    better, worse = (fields.number(score, "score_chosen") for score in scores)
    if better <= worse:
      raise Dropped(TIE if better == worse else _CONTRARY)
    margin = margin or better - worse
  sure = row.get("probability")
  sure = 1.0 if sure is None else fields.number(sure, "probability")
  group = row.get("group", "")
  group = group if isinstance(group, str | int) else ""
  return Preference(prompt, chosen, rejected, margin, sure, group, fields.source(row))


def _chosen_and_rejected(row: Row) -> None:
  for name in _SIDES:
    fields.needed(row, (name,))


def _is_pairs(row: Row) -> bool:
  if not fields.has(row, "chosen", "rejected"):
    return False
  return "prompt" in row or _lists(row)


def _pair(row: Row) -> Iterator[Preference | Reason]:
  if row.get("prompt") is None and _lists(row):
    yield _whole(row)
    return
  for name in ("prompt", *_SIDES):
    fields.needed(row, (name,))
  if _lists(row, 3) and isinstance(row["prompt"], str):
    # The prompt may be one of several messages of the user, as in Tulu's mixtures.
    if fields.user(row["prompt"]) in fields.messages(row["chosen"], "chosen")[0]:
      yield _whole(row)
      return
  prompt = fields.prompt(row["prompt"], "prompt")
  if prompt[-1]["role"] == "assistant":
    raise ValueError('"prompt" must not end with the assistant\'s message')
  answers = [fields.answer(row[side], side, prompt) for side in _SIDES]
  yield preference(row, prompt, *answers)


def _lists(row: Row, least: int = 0) -> bool:
  sides = [row.get(side) for side in _SIDES]
  return all(isinstance(side, list) and len(side) >= least for side in sides)


def _whole(row: Row) -> Preference | Reason:
  """Returns the pair of two whole conversations that differ in their last message."""
  found = transcripts.split(*(fields.messages(row[name], name)[0] for name in _SIDES))
  return found if isinstance(found, Reason) else preference(row, *found)


def _demonstrated(reads):
  """Returns what reads the chosen answers of pairs, as conversations."""

  def conversations(row: Row) -> Iterator[Conversation | Reason]:
    for found in reads(row):
      if isinstance(found, Preference):
        found = Conversation([*found.prompt, fields.assistant(found.chosen)], found.source)
      yield found

  return conversations


def _is_sharegpt_pairs(row: Row) -> bool:
  # With a prompt beside it, a list holds the whole conversation again (UltraFeedback, binarized).
  listed = bool(fields.named(row, dialogues.LISTS)) and "prompt" not in row
  return listed and fields.has(row, "chosen", "rejected")


def _sharegpt_pair(row: Row) -> Iterator[Preference]:
  _chosen_and_rejected(row)
  name = fields.needed(row, ("conversations", "messages", "conversation"))
  prompt = dialogues.with_tools(fields.messages(row[name], name)[0], row)
  answers = [fields.answer(row[side], side, prompt) for side in _SIDES]
  yield preference(row, prompt, *answers)


def _is_alpaca_pairs(row: Row) -> bool:
  asked = fields.named(row, ("instruction", "question"))
  return bool(asked) and all(isinstance(row.get(side), str) for side in _SIDES)


def _alpaca_pair(row: Row) -> Iterator[Preference]:
  prompt = instructions.instruction(row, "instruction", "question")
  chosen, rejected = (fields.text(row, side) for side in _SIDES)
  yield preference(row, prompt, chosen, rejected)


def _alpaca_demonstration(row: Row) -> Iterator[Conversation | Reason]:
  if not isinstance(row.get("output"), str):
    yield from _demonstrated(_alpaca_pair)(row)
  else:
    _chosen_and_rejected(row)
    prompt = instructions.instruction(row, "instruction", "question")
    yield Conversation([*prompt, fields.assistant(row["output"])], fields.source(row))


def _is_hh(row: Row) -> bool:
  sides = [row.get(side) for side in _SIDES]
  if "prompt" in row:
    prompt = row["prompt"]
    spoken = transcripts.is_transcript(prompt) and prompt.rstrip().endswith("\n\nAssistant:")
    return spoken and all(isinstance(side, str) for side in sides)
  return all(map(transcripts.is_transcript, sides))


def _hh(row: Row) -> Iterator[Preference | Reason]:
  chosen, rejected = (fields.text(row, side) for side in _SIDES)
  if "prompt" in row:
    prompt = transcripts.prompt(row["prompt"], "prompt")
    yield preference(row, prompt, chosen.removeprefix(" "), rejected.removeprefix(" "))
    return
  found = transcripts.split(
    transcripts.parse(chosen, "chosen"), transcripts.parse(rejected, "rejected")
  )
  yield found if isinstance(found, Reason) else preference(row, *found)


PAIRS = Format(
  "pairs",
  '{"prompt", "chosen", "rejected"}: texts, messages or whole conversations; "margin",'
  ' "probability", "group", "score_chosen" and "score_rejected" if there are any',
  ("prompt", "chosen", "rejected"),
  _is_pairs,
  {"preferences": _pair, "conversations": _demonstrated(_pair)},
)
SHAREGPT_PAIRS = Format(
  "sharegpt_pairs",
  '{"conversations": [{"from", "value"}, ...], "chosen": {"from", "value"}, "rejected": {...}}',
  ("conversations", "chosen", "rejected"),
  _is_sharegpt_pairs,
  {"preferences": _sharegpt_pair, "conversations": _demonstrated(_sharegpt_pair)},
)
ALPACA_PAIRS = Format(
  "alpaca_pairs",
  '{"instruction" | "question", "input", "chosen", "rejected", "system"}; "output", where there is'
  " one, is the answer to learn from",
  ("instruction", "input", "chosen", "rejected"),
  _is_alpaca_pairs,
  {"preferences": _alpaca_pair, "conversations": _alpaca_demonstration},
)
HH = Format(
  "hh",
  '{"chosen", "rejected"}: "\\n\\nHuman: ...\\n\\nAssistant: ..." that differ in the last turn; or'
  ' a "prompt" that ends with "\\n\\nAssistant:" and two texts',
  ("chosen", "rejected"),
  _is_hh,
  {"preferences": _hh, "conversations": _demonstrated(_hh)},
)
