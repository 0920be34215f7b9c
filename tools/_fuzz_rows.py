"""Fuzzes files of post-training data: every format, every kind of item, to batches of tokens."""

import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_jax.data import batches, formats, posttraining
from llm_jax.errors import UserError
from tools import _fuzz_inputs as inputs
from tools._fuzz_chat import Checker, coders
from tools._fuzz_result import Result, refused

Text = Callable[[], str]

_KINDS = ("conversations", "preferences", "labels")
_LONGEST = 100_000  # Tokens: nothing is cut.
_MOST = 8  # Items of a file that are looked at.
_NAMES = sorted(
  {key for format in formats.FORMATS for key in format.keys}
  | set(
    "messages conversation role content from value text name function tool_calls function_call "
    "weight train full_text id response rank score replies deleted review_result parent_id prompt "
    "completion instances history system tools label reward margin probability group source "
    "score_chosen score_rejected annotator1 preference scores ranks api input output".split()
  )
)


def _turns(t: Text, who: str, said: str, names: tuple[str, str]) -> list[dict[str, Any]]:
  return [{who: names[i % 2], said: t()} for i in range(4)]


def _messages(t: Text) -> list[dict[str, Any]]:
  return _turns(t, "role", "content", ("user", "assistant"))


def _tools(t: Text) -> list[dict[str, Any]]:
  call = {"function": {"name": t(), "arguments": json.dumps({"a": t()})}}
  parts = [{"type": "text", "text": t()}, {"type": "text", "text": t()}]
  return [
    {"role": "system", "content": t()},
    {"role": "user", "content": parts},
    {"role": "assistant", "content": None, "tool_calls": [call, call]},
    {"role": "tool", "content": t()},
    {"role": "assistant", "content": t(), "weight": 1},
  ]


def _tree(t: Text) -> dict[str, Any]:
  answers = [
    {"message_id": f"a{i}", "text": t(), "role": "assistant", "rank": i, "replies": []}
    for i in range(3)
  ]
  more = {"message_id": "q", "text": t(), "role": "prompter", "replies": []}
  answers[0]["replies"] = [more]
  return {"message_id": "r", "text": t(), "role": "prompter", "replies": answers}


def _hh(t: Text) -> dict[str, Any]:
  begin = f"\n\nHuman: {t()}\n\nAssistant: {t()}\n\nHuman: {t()}\n\nAssistant: "
  return {"chosen": begin + t(), "rejected": begin + t()}


# Rows of each format, with a text of `t` wherever one stands.
SEEDS: dict[str, tuple[Callable[[Text], dict[str, Any]], ...]] = {
  "oasst": (
    lambda t: {"prompt": _tree(t)},
    _tree,
    lambda t: {"message_id": t(), "parent_id": None, "text": t(), "role": "prompter"},
    lambda t: {"message_id": t(), "parent_id": "r", "text": t(), "role": "assistant", "rank": 1},
  ),
  "hh": (_hh,),
  "sharegpt_pairs": (
    lambda t: {
      "conversations": [{"from": "human", "value": t()}],
      "chosen": {"from": "gpt", "value": t()},
      "rejected": {"from": "gpt", "value": t()},
    },
  ),
  "alpaca_pairs": (
    lambda t: {"instruction": t(), "input": t(), "chosen": t(), "rejected": t(), "system": t()},
  ),
  "pairs": (
    lambda t: {"prompt": t(), "chosen": t(), "rejected": t(), "margin": 1.5, "probability": 0.9},
    lambda t: {"prompt": _messages(t)[:3], "chosen": t(), "rejected": t(), "group": t()},
    lambda t: {
      "prompt": (asked := t()),
      "chosen": [{"role": "user", "content": asked}, {"role": "assistant", "content": t()}],
      "rejected": [{"role": "user", "content": asked}, {"role": "assistant", "content": t()}],
      "score_chosen": 2,
      "score_rejected": 1,
    },
  ),
  "pandalm": (
    lambda t: {
      "instruction": t(),
      "input": t(),
      "response1": t(),
      "response2": t(),
      "annotator1": 1,
      "annotator2": 2,
      "annotator3": 2,
    },
  ),
  "llmbar": (lambda t: {"input": t(), "output_1": t(), "output_2": t(), "label": 2},),
  "webgpt": (
    lambda t: {
      "question": {"full_text": t(), "id": t()},
      "answer_0": t(),
      "answer_1": t(),
      "score_0": -1,
      "score_1": 1,
    },
  ),
  "shp": (
    lambda t: {
      "history": t(),
      "human_ref_A": t(),
      "human_ref_B": t(),
      "labels": 1,
      "score_A": 3,
      "score_B": 1,
    },
  ),
  "safe_rlhf": (
    lambda t: {"prompt": t(), "response_0": t(), "response_1": t(), "better_response_id": 1},
  ),
  "helpsteer": (
    lambda t: {"prompt": t(), "response_1": t(), "response_2": t(), "preference_strength": -2},
  ),
  "tldr": (
    lambda t: {
      "info": {"id": t(), "post": t(), "title": t(), "subreddit": t()},
      "summaries": [{"text": t()}, {"text": t()}],
      "choice": 1,
    },
  ),
  "arena": (
    lambda t: {
      "conversation_a": [*(same := _messages(t)[:3]), {"role": "assistant", "content": t()}],
      "conversation_b": [*same, {"role": "assistant", "content": t()}],
      "winner": "model_b",
    },
  ),
  "persona": (
    lambda t: {
      "question": t(),
      "answer_matching_behavior": t(),
      "answer_not_matching_behavior": t(),
      "label_confidence": 0.9,
    },
  ),
  "rankings": (
    lambda t: {"prompt": t(), "responses": [t(), t(), t()], "ranks": [1, 2, 3]},
    lambda t: {"instruction": t(), "completions": [{"response": t(), "score": i} for i in (3, 1)]},
  ),
  "kto": (
    lambda t: {"prompt": t(), "completion": t(), "label": True},
    lambda t: {"messages": _messages(t), "label": False},
  ),
  "taskmaster": (
    lambda t: {
      "context": json.dumps([{"role": "user", "text": t()}]),
      "generation": json.dumps({"role": "agent", "text": t()}),
      "reward": 1,
    },
  ),
  "rewards": (lambda t: {"prompt": t(), "response": t(), "reward": 0},),
  "self_instruct": (
    lambda t: {"instruction": t(), "instances": [{"input": t(), "output": t()}] * 2},
  ),
  "lima": (lambda t: {"conversations": [t(), t(), t(), t()], "source": t()},),
  "sharegpt": (
    lambda t: {
      "conversations": _turns(t, "from", "value", ("human", "gpt")),
      "system": t(),
      "tools": t(),
    },
  ),
  "messages": (
    lambda t: {"messages": _messages(t)},
    lambda t: {"messages": _tools(t)},
    lambda t: {"prompt": t(), "response": t()},
  ),
  "alpaca": (
    lambda t: {"instruction": t(), "input": t(), "output": t(), "history": [[t(), t()]]},
    lambda t: {"instruction": t(), "context": t(), "response": t(), "system": t()},
  ),
  "flan": (lambda t: {"inputs": t(), "targets": t()}, lambda t: {"prompt": t(), "completion": t()}),
  "gsm8k": (lambda t: {"question": t(), "answer": f"{t()}\n#### 1,080"},),
  "questions": (lambda t: {"system_prompt": t(), "question": t(), "response": t()},),
}


class World:
  """Tokenizers, and a folder for the files."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self.checkers = [Checker(coder) for coder in coders(folder)]
    self._formats = {format.name: format for format in formats.FORMATS}

  def close(self) -> None:
    """Nothing runs."""

  def case(self, rng: random.Random) -> Result:
    """Writes a file, reads it as a kind of item, and looks at each batch that comes of it."""
    format = self._formats[rng.choice(list(SEEDS))]
    path = self._write(rng, format.name)
    kinds = [kind for kind in _KINDS if format.origin(kind)]
    kind = rng.choice(kinds if kinds and rng.random() < 0.9 else _KINDS)
    checker, length = rng.choice(self.checkers), rng.choice((_LONGEST, _LONGEST, _LONGEST, 48))
    problems: list[str] = []
    rows: list[Any] = []

    def encode(item: Any) -> posttraining.Encoded | str:
      got = getattr(posttraining, kind[:-1] if kind != "labels" else "labelled")(
        checker.coder.own, item, length
      )
      if isinstance(got, posttraining.Encoded) and len(rows) < _MOST:
        problems.extend(_problems(checker, item, got, length))
        rows.append(got)
      return got

    try:
      data = posttraining.load(kind, [str(path)], encode, validation=0.3 * (rng.random() < 0.1))
    except UserError as error:
      return refused(error) if not problems else Result(False, problems[0])
    if not data.train or not all(line.isprintable() for line in data.reports):
      problems.append(f"a report that cannot be shown: {data.reports!r}"[:300])
    return Result(True, problems[0] if problems else "")

  def _write(self, rng: random.Random, name: str) -> pathlib.Path:
    text = lambda: inputs.text(rng)  # noqa: E731
    rows = [rng.choice(SEEDS[name])(text) for _ in range(rng.choice((1, 2, 3)))]
    if rng.random() < 0.5:
      at = rng.randrange(len(rows))
      rows[at] = inputs.changed(rng, rows[at], _NAMES)
    lines = [inputs.dumps(rng, row) for row in rows]
    array = rng.random() < 0.2
    data = b"[" + b",".join(lines) + b"]" if array else b"\n".join(lines) + b"\n"
    if rng.random() < 0.15:
      data = inputs.broken(rng, data)
    path = self._folder / ("rows.json" if array else "rows.jsonl")
    path.write_bytes(data)
    return path


def _problems(checker: Checker, item: Any, got: posttraining.Encoded, length: int) -> list[str]:
  """What is wrong with an item's tokens, and with the batch that they become."""
  pad, found = checker.coder.own.pad_id, []
  if isinstance(item, formats.Conversation):
    talks = [(item.messages, got.row, item.learn)]
    batch = batches.lm_batch([got.row], _width(got.row, length), pad)
    found += _batch_problems(batch, got.row)
  else:
    prompt, several = item.prompt, isinstance(item, formats.Preference)
    sides = got.row.row if several else {"answer": got.row["answer"]}
    texts = (item.chosen, item.rejected) if several else (item.answer,)
    talks = [
      ([*prompt, {"role": "assistant", "content": text}], row, (len(prompt),))
      for text, row in zip(texts, sides.values(), strict=True)
    ]
    if several:
      width = max(_width(row, length) for row in sides.values())
      pair = batches.pair_batch([sides], width, pad)
      found += [p for side, row in sides.items() for p in _batch_problems(pair[side], row)]
  for messages, (tokens, mask), learn in talks:
    found.append(checker.problem(messages, tokens, mask, learn=learn, cut=got.cut))
  return [problem for problem in found if problem]


def _width(row: posttraining.Tokens, length: int) -> int:
  return min(length, max(len(row[0]) - 1, 1))


def _batch_problems(batch: batches.Arrays, row: posttraining.Tokens) -> list[str]:
  """Whether a batch holds the tokens and the mask of its one row, and nothing else that counts."""
  tokens, mask = np.array(row[0]), np.array(row[1])
  used = batch["segments"][0] > 0
  right = (
    np.array_equal(batch["tokens"][0][used], tokens[:-1])
    and np.array_equal(batch["targets"][0][used], tokens[1:])
    and np.array_equal(batch["mask"][0][used], mask[1:])
    and not batch["mask"][0][~used].any()
  )
  return [] if right else ["a batch that is not what its row is"]
