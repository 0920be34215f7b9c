"""Small files in public formats, made of the prepared questions, so that a recipe can be tried.

What they hold is not what such data sets are for; it is there so that all of the code runs.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llm_jax.data.questions import Question
from llm_jax.errors import UserError, nearest

Rows = list[dict[str, Any]]


def check(names: Iterable[str]) -> None:
  """Checks that there are files of these names.

  Raises:
    UserError: with the nearest name.
  """
  for name in names:
    if name not in FILES:
      raise UserError(f'there is no "@examples/{name}"{nearest(name, FILES)}')


def write(
  directory: str | os.PathLike[str], names: Iterable[str], questions: Sequence[Question]
) -> None:
  """Writes files of `FILES`; each appears whole or not at all.

  Args:
    directory: made if missing.
    names: of `FILES`.
    questions: at least two, with true answers.

  Raises:
    UserError: for an unknown name.
  """
  names = list(names)
  check(names)
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  for name in names:
    rows = FILES[name](questions)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    whole = "\n".join(lines) if name.endswith(".jsonl") else f"[{','.join(lines)}]"
    temporary = path / f".{name}.tmp"
    temporary.write_text(whole + "\n", encoding="utf-8")
    temporary.replace(path / name)


def _alpaca(questions: Sequence[Question]) -> Rows:
  """The question as an instruction, and how the object is called as its input."""
  rows = []
  for q in questions:
    instruction, _, given = q.prompt.partition("\n")
    rows.append({"instruction": instruction, "input": given, "output": q.answer})
  return rows


def _sharegpt(questions: Sequence[Question]) -> Rows:
  """Two questions make a conversation."""
  rows = []
  for i in range(0, len(questions) - 1, 2):
    said = [
      part
      for q in questions[i : i + 2]
      for part in ({"from": "human", "value": q.prompt}, {"from": "gpt", "value": q.answer})
    ]
    rows.append({"id": f"example_{i}", "conversations": said})
  return rows


def _lima(questions: Sequence[Question]) -> Rows:
  return [{"conversations": [q.prompt, q.answer], "source": "examples"} for q in questions]


def _flan(questions: Sequence[Question]) -> Rows:
  return [{"inputs": q.prompt, "targets": q.answer} for q in questions]


def _messages(questions: Sequence[Question]) -> Rows:
  return [{"messages": _talk(q.prompt, q.answer)} for q in questions]


def _ultrafeedback(questions: Sequence[Question]) -> Rows:
  """The true answer against half of it, or against another question's, with scores as there."""
  rows = []
  for i, (q, half, other) in enumerate(_worse(questions)):
    worse, score = (half, 6.0) if i % 2 else (other, 3.0)
    rows.append(
      {
        "prompt": q.prompt,
        "chosen": _talk(q.prompt, q.answer),
        "rejected": _talk(q.prompt, worse),
        "score_chosen": 9.0,
        "score_rejected": score,
      }
    )
  return rows


def _rankings(questions: Sequence[Question]) -> Rows:
  """Three answers to a prompt: the true one, half of it, another question's."""
  return [
    {"prompt": q.prompt, "responses": [q.answer, half, other], "ranks": [1, 2, 3]}
    for q, half, other in _worse(questions)
  ]


def _hh(questions: Sequence[Question]) -> Rows:
  """Transcripts of two speakers."""
  rows = []
  for q, half, _ in _worse(questions):
    begin = f"\n\nHuman: {q.prompt}\n\nAssistant: "
    rows.append({"chosen": begin + q.answer, "rejected": begin + half})
  return rows


def _talk(prompt: str, answer: str) -> list[dict[str, str]]:
  return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _worse(questions: Sequence[Question]) -> list[tuple[Question, str, str]]:
  """Each question with the first half of its answer and with the next question's answer."""
  others = [*questions[1:], questions[0]]
  found = []
  for q, other in zip(questions, others, strict=True):
    words = q.answer.split()
    found.append((q, " ".join(words[: max(len(words) // 2, 1)]), other.answer))
  return found


FILES: dict[str, Callable[[Sequence[Question]], Rows]] = {
  "alpaca.json": _alpaca,
  "sharegpt.json": _sharegpt,
  "lima.jsonl": _lima,
  "flan.jsonl": _flan,
  "messages.jsonl": _messages,
  "ultrafeedback.jsonl": _ultrafeedback,
  "rankings.jsonl": _rankings,
  "hh.jsonl": _hh,
}
