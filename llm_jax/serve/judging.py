"""What a reward model says of two answers, token by token, and what a person says of them."""

import json
import os
import pathlib
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax.data import chat
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models.heads import Critic
from llm_jax.serve import probe
from llm_jax.serve.spelling import pieces
from llm_jax.stages import runs
from llm_jax.train import checkpoint
from llm_jax.types import Params

STAGES = ("reward", "reward_shuffled")
VOTES = "votes.jsonl"
_MOST = 1024  # Tokens of a conversation.


class _Scorer(NamedTuple):
  step: int
  critic: Critic
  params: Params
  tokenizer: Tokenizer


class Judges:
  """The reward models of a run, loaded when they are first asked for, and again when they grow."""

  def __init__(self, workdir: str | pathlib.Path, prepared: str):
    self._root, self._prepared = pathlib.Path(workdir), prepared
    self._loaded: dict[str, _Scorer] = {}
    self._lock = threading.Lock()

  @property
  def names(self) -> list[str]:
    """Of the reward models that are there."""
    return [name for name in STAGES if self._step(name) is not None]

  def compare(self, name: str, question: str, answers: list[str]) -> dict[str, Any]:
    """Scores of two answers to a question.

    Returns:
      {"scores": [2], "margin", "probability": that the first is preferred, "tokens": for each
      answer [{"id", "text", "name", "moved"}], "begin": [2] what the model said before the answer}.
      "moved" is by how much a token moved what the model would say if the text ended there; with
      "begin" they add up to the score.

    Raises:
      KeyError: if there is no such reward model.
      ValueError: if an answer is too long.
    """
    scorer = self._get(name)
    found = [_scored(scorer, question, answer) for answer in answers]
    first, second = (one["score"] for one in found)
    return {
      "scores": [first, second],
      "margin": first - second,
      "probability": float(1 / (1 + np.exp(second - first))),
      "tokens": [one["tokens"] for one in found],
      "begin": [one["begin"] for one in found],
    }

  def vote(self, question: str, answers: list[str], better: int) -> int:
    """Appends a preference to the run's votes.jsonl; returns how many there are.

    Raises:
      ValueError: if the answers are the same.
    """
    if answers[0] == answers[1]:
      raise ValueError("the answers are the same: there is nothing to prefer")
    row = {
      "prompt": [{"role": "user", "content": question}],
      "chosen": answers[better], "rejected": answers[1 - better],
      "source": "votes", "time": int(time.time()),
    }  # fmt: skip
    path = self._root / VOTES
    with self._lock, open(path, "a+", encoding="utf-8") as f:
      f.write(json.dumps(row, ensure_ascii=False) + "\n")
      f.flush()
      os.fsync(f.fileno())
      f.seek(0)
      return sum(1 for _ in f)

  @property
  def votes(self) -> str:
    """The file of votes."""
    return str(self._root / VOTES)

  def _get(self, name: str) -> _Scorer:
    if name not in STAGES:
      raise KeyError(name)
    with self._lock:
      step = self._step(name)
      if step is None:
        raise KeyError(name)
      if name not in self._loaded or self._loaded[name].step != step:
        coder = runs.tokenizer(self._prepared)
        found = runs.load(str(self._root / name), "reward", reward=True)
        # A critic has a reward model's parameters, and reads its head at every token.
        critic = Critic.from_config(found.shape)
        self._loaded[name] = _Scorer(step, critic, jax.device_put(found.params), coder)
      return self._loaded[name]

  def _step(self, name: str) -> int | None:
    path = self._root / name
    return checkpoint.latest_step(path / "checkpoints") if (path / "model.json").exists() else None


def _scored(scorer: _Scorer, question: str, answer: str) -> dict[str, Any]:
  turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
  try:
    tokens, said = chat.render(scorer.tokenizer, turns)
  except UserError as error:
    raise ValueError(str(error)) from error
  if len(tokens) > _MOST:
    raise ValueError(f"question and answer have {len(tokens)} tokens, {_MOST} are read here")
  values = probe.scores(scorer.critic, scorer.params, tokens, scorer.tokenizer.pad_id)
  # What comes after the turn's end, such as a line break of a template, is not scored.
  last = max(i for i, own in enumerate(said) if own)
  first = next(i for i, own in enumerate(said) if own)
  own = pieces(scorer.tokenizer, tokens[: last + 1])[first:]
  moved = np.diff(values[: last + 1], prepend=0.0)[first:]
  begin = float(values[first - 1]) if first else 0.0
  return {
    "score": float(values[last]),
    "begin": begin,
    "tokens": [one | {"moved": round(float(x), 4)} for one, x in zip(own, moved, strict=True)],
  }
