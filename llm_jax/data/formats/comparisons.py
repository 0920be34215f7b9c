"""Two answers and a verdict: PandaLM, LLMBar, WebGPT, SHP, SafeRLHF, HelpSteer, TL;DR, arena ..."""

import re
from collections.abc import Iterator
from typing import Any

from llm_jax.data.formats import fields, instructions, transcripts
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.schema import TIE, Format, Messages, Preference, Reason

_ANNOTATOR = re.compile(r"annotator_?\d+")


def verdict(
  prompt: Messages,
  answers: tuple[str, str],
  first: float,
  margin: float = 0.0,
  group: str | int = "",
  source: str = "",
) -> Preference | Reason:
  """Returns the pair of two answers, or that it is a tie.

  Args:
    prompt: messages.
    answers: the two of them.
    first: probability that the first one is the better one.
    margin: how much better the better one is; not negative.
    group: as in `Preference`.
    source: as in `Preference`.
  """
  if first == 0.5:
    return TIE
  chosen, rejected = answers if first > 0.5 else answers[::-1]
  return Preference(prompt, chosen, rejected, margin, max(first, 1 - first), group, source)


def by_scores(prompt: Messages, answers: tuple[str, str], scores: list[float], **more: Any):
  """Returns the pair of two answers with ratings, or that it is a tie; see `verdict`."""
  gap = scores[0] - scores[1]
  return verdict(prompt, answers, 0.5 if gap == 0 else float(gap > 0), abs(gap), **more)


def _votes(row: Row) -> list[float]:
  """Returns for each annotator 1: the first answer is better, 0: the second, 0.5: a tie."""
  votes = []
  for name in sorted(filter(_ANNOTATOR.fullmatch, row)):
    if row[name] not in (0, 1, 2) or isinstance(row[name], bool):
      raise ValueError(f'"{name}" must be 1 or 2, the better answer, or 0, a tie')
    votes.append({0: 0.5, 1: 1.0, 2: 0.0}[row[name]])
  if not votes:
    raise ValueError(f'no vote ("annotator1", ...); it has: {fields.listed(row)}')
  return votes


def _pandalm(row: Row) -> Iterator[Preference | Reason]:
  votes = _votes(row)
  prompt = instructions.instruction(row)
  # The published table has been through a program that takes the answer True for a boolean.
  said = {k: str(v) if isinstance(v, bool) else v for k, v in row.items()}
  answers = fields.text(said, "response1"), fields.text(said, "response2")
  if 2 * votes.count(0.5) > len(votes):
    yield TIE
  else:
    mean = sum(votes) / len(votes)
    yield verdict(prompt, answers, mean, source=fields.source(row))


def _is_pandalm(row: Row) -> bool:
  return fields.has(row, "response1", "response2") and any(map(_ANNOTATOR.fullmatch, row))


def _llmbar(row: Row) -> Iterator[Preference | Reason]:
  answers = fields.text(row, "output_1"), fields.text(row, "output_2")
  if "instruction" in row:
    prompt = instructions.instruction(row)
  else:
    prompt = [fields.user(fields.text(row, "input"))]
  name = fields.needed(row, ("label", "preference"))
  if isinstance(row[name], bool) or row[name] not in (0, 1, 2):
    raise ValueError(f'"{name}" must be 1 or 2, the better answer, or 0, a tie')
  yield verdict(prompt, answers, {0: 0.5, 1: 1.0, 2: 0.0}[row[name]], source=fields.source(row))


def _is_llmbar(row: Row) -> bool:
  return fields.has(row, "output_1", "output_2") and ("label" in row or "preference" in row)


def _webgpt(row: Row) -> Iterator[Preference | Reason]:
  question = row.get("question")
  asked = question if isinstance(question, dict) else {"full_text": question}
  prompt = [fields.user(fields.text(asked, "full_text", "text"))]
  answers = fields.text(row, "answer_0"), fields.text(row, "answer_1")
  scores = [fields.number(row.get(f"score_{i}"), f"score_{i}") for i in range(2)]
  group = asked.get("id", "")
  group = group if isinstance(group, str | int) else ""
  yield by_scores(prompt, answers, scores, group=group, source=fields.source(asked))


def _is_webgpt(row: Row) -> bool:
  return fields.has(row, "question", "answer_0", "answer_1", "score_0", "score_1")


def _shp(row: Row) -> Iterator[Preference | Reason]:
  answers = fields.text(row, "human_ref_A"), fields.text(row, "human_ref_B")
  first = fields.flag(row.get("labels"), "labels")
  scores = [fields.number(row.get(f"score_{side}"), f"score_{side}") for side in "AB"]
  prompt = [fields.user(fields.text(row, "history"))]
  margin, post = abs(scores[0] - scores[1]), fields.optional(row, "post_id")
  yield verdict(prompt, answers, float(first), margin, post, fields.source(row))


def _is_shp(row: Row) -> bool:
  return fields.has(row, "history", "human_ref_A", "human_ref_B", "labels")


def _safe_rlhf(row: Row) -> Iterator[Preference]:
  answers = fields.text(row, "response_0"), fields.text(row, "response_1")
  second = fields.flag(row.get("better_response_id"), "better_response_id")
  prompt = fields.prompt(row.get("prompt"), "prompt")
  chosen, rejected = answers[::-1] if second else answers
  yield Preference(prompt, chosen, rejected, source=fields.source(row))


def _is_safe_rlhf(row: Row) -> bool:
  return fields.has(row, "prompt", "response_0", "response_1", "better_response_id")


def _helpsteer(row: Row) -> Iterator[Preference | Reason]:
  answers = fields.text(row, "response_1"), fields.text(row, "response_2")
  strength = fields.number(row.get("preference_strength"), "preference_strength")
  prompt = fields.prompt(row.get("prompt"), "prompt")
  # Negative: the first answer is the better one.
  yield by_scores(prompt, answers, [-strength, 0.0], source=fields.source(row))


def _is_helpsteer(row: Row) -> bool:
  return fields.has(row, "prompt", "response_1", "response_2", "preference_strength")


def _tldr(row: Row) -> Iterator[Preference | Reason]:
  """Reads a pair of summaries; the post is laid out as in Stiennon et al., arXiv:2009.01325."""
  info, summaries = row.get("info"), row.get("summaries")
  if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
    raise ValueError('needs "info", an object, and two "summaries"')
  if not all(isinstance(summary, dict) for summary in summaries):
    raise ValueError('"summaries" must be objects with "text"')
  first, second = (fields.text(summary, "text").removeprefix(" ") for summary in summaries)
  chosen = fields.flag(row.get("choice"), "choice")
  post = fields.text(info, "post", "article")
  heads = ("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title")
  parts = [mark + fields.optional(info, name) for mark, name in heads if info.get(name)]
  prompt = [fields.user("\n\n".join([*parts, f"POST: {post}" if parts else post, "TL;DR:"]))]
  group, source = (
    fields.optional(info, "id"),
    fields.source(row) or fields.source(info, "subreddit"),
  )
  yield verdict(prompt, (first, second), float(not chosen), group=group, source=source)


def _is_tldr(row: Row) -> bool:
  return fields.has(row, "info", "summaries", "choice")


def _arena(row: Row) -> Iterator[Preference | Reason]:
  names = ("conversation_a", "conversation_b")
  sides = [fields.messages(row.get(name), name)[0] for name in names]
  winner = fields.text(row, "winner")
  if winner not in ("model_a", "model_b") and not winner.startswith("tie"):
    raise ValueError(f'"winner" must be "model_a", "model_b" or a tie, not "{winner[:40]}"')
  found = transcripts.split(*sides)
  if winner.startswith("tie"):
    yield TIE
  elif isinstance(found, Reason):
    yield found
  else:
    prompt, *answers = found
    first = float(winner == "model_a")
    yield verdict(prompt, (answers[0], answers[1]), first, source=fields.source(row))


def _is_arena(row: Row) -> bool:
  return fields.has(row, "conversation_a", "conversation_b", "winner")


def _persona(row: Row) -> Iterator[Preference]:
  names = ("answer_matching_behavior", "answer_not_matching_behavior")
  # They are completions, with a space before them.
  answers = [fields.text(row, name).removeprefix(" ") for name in names]
  asked = [fields.user(fields.text(row, "question"))]
  sure = row.get("label_confidence")
  sure = 1.0 if sure is None else fields.number(sure, "label_confidence")
  yield Preference(asked, answers[0], answers[1], 0.0, sure, source=fields.source(row))


def _is_persona(row: Row) -> bool:
  return fields.has(row, "question", "answer_matching_behavior")


PANDALM = Format(
  "pandalm",
  '{"instruction", "input", "response1", "response2", "annotator1": 0 | 1 | 2, ...}',
  ("instruction", "response1", "response2", "annotator1"),
  _is_pandalm,
  {"preferences": _pandalm},
)
LLMBAR = Format(
  "llmbar",
  '{"input", "output_1", "output_2", "label": 1 | 2}; AlpacaFarm: "instruction", "preference"',
  ("input", "output_1", "output_2", "label"),
  _is_llmbar,
  {"preferences": _llmbar},
)
WEBGPT = Format(
  "webgpt",
  '{"question": {"full_text", "id"}, "answer_0", "answer_1", "score_0", "score_1"}',
  ("question", "answer_0", "answer_1", "score_0", "score_1"),
  _is_webgpt,
  {"preferences": _webgpt},
)
SHP = Format(
  "shp",
  '{"history", "human_ref_A", "human_ref_B", "labels": 1 | 0, "score_A", "score_B"}',
  ("history", "human_ref_A", "human_ref_B", "labels"),
  _is_shp,
  {"preferences": _shp},
)
SAFE_RLHF = Format(
  "safe_rlhf",
  '{"prompt", "response_0", "response_1", "better_response_id": 0 | 1}',
  ("prompt", "response_0", "response_1", "better_response_id"),
  _is_safe_rlhf,
  {"preferences": _safe_rlhf},
)
HELPSTEER = Format(
  "helpsteer",
  '{"prompt", "response_1", "response_2", "preference_strength": -3 ... 3}',
  ("prompt", "response_1", "response_2", "preference_strength"),
  _is_helpsteer,
  {"preferences": _helpsteer},
)
TLDR = Format(
  "tldr",
  '{"info": {"id", "post" | "article", "title", "subreddit"}, "summaries": [{"text"}, {"text"}],'
  ' "choice": 0 | 1}',
  ("info", "summaries", "choice"),
  _is_tldr,
  {"preferences": _tldr},
)
ARENA = Format(
  "arena",
  '{"conversation_a", "conversation_b", "winner": "model_a" | "model_b" | "tie"}',
  ("conversation_a", "conversation_b", "winner"),
  _is_arena,
  {"preferences": _arena},
)
PERSONA = Format(
  "persona",
  '{"question", "answer_matching_behavior", "answer_not_matching_behavior", "label_confidence"}',
  ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
  _is_persona,
  {"preferences": _persona},
)
