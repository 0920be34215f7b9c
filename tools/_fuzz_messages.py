"""Fuzzes conversations on the endpoint's and the playground's own way from a request to tokens.

The models are made up: they keep the tokens that they are asked to go on from, and say nothing.
"""

import json
import pathlib
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from llm_jax.data import chat
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.serve import app, corpus, judging, playground, workdirs
from llm_jax.serve.batch import Ask, Piece, Ticket
from llm_jax.serve.models import Served
from tools import _fuzz_inputs as inputs
from tools._fuzz_asgi import HOST, Asker, judged
from tools._fuzz_chat import Checker, coders
from tools._fuzz_result import Result, refused

_NAMES = (
  "model messages role content name prompt stream n seed stop temperature top_p top_k max_tokens "
  "logprobs echo models reference user metadata"
).split()
_JSON = ("content-type", "application/json")


class _Engine:
  """Keeps what it is asked, and ends each answer at once."""

  prompt, max_new = 1 << 30, 16

  def __init__(self):
    self.asked: list[list[int]] = []

  def check_prompt(self, prompt: Sequence[int]) -> None:
    """Nothing is too long."""

  def submit(self, asks: Sequence[Ask], emit: Callable[[int, Piece], None]) -> list[Ticket]:
    """Answers nothing to each."""
    self.asked += [ask.prompt for ask in asks]
    for i in range(len(asks)):
      emit(i, Piece([], [], "stop"))
    return [Ticket(ask, lambda piece: None) for ask in asks]

  def score(self, tokens: list[int], top: int = 0) -> None:
    """Refuses: there is nothing to score."""
    raise ValueError("this model scores nothing")


class _Models:
  """A made-up model for each tokenizer."""

  max_new = _Engine.max_new

  def __init__(self, tokenizers: Sequence[Tokenizer], prepared: str):
    self.engine, self.prepared = _Engine(), prepared
    self._all = {
      f"model{i}": Served(f"model{i}", self.engine, own, True, None, None)  # type: ignore[arg-type]
      for i, own in enumerate(tokenizers)
    }

  @property
  def names(self) -> list[str]:
    """Of all."""
    return list(self._all)

  def get(self, name: str) -> Served:
    """One of them."""
    return self._all[name]

  def loaded(self, name: str) -> Served | None:
    """One of them, if there is one."""
    return self._all.get(name)

  def close(self) -> None:
    """Nothing runs."""


class World:
  """The application, its made-up models, and what tells whether their prompts are right."""

  def __init__(self, folder: pathlib.Path):
    self.checkers = [Checker(coder) for coder in coders(folder)]
    self.models = _Models([one.coder.own for one in self.checkers], str(folder))
    judges, texts = judging.Judges(folder, str(folder)), corpus.Corpus(folder)
    runs = workdirs.Workdirs([folder])
    play = playground.Playground(runs, self.models, judges, texts, threading.Event())  # type: ignore[arg-type]
    self._app = app.create(self.models, play=play)  # type: ignore[arg-type]
    self._asker = Asker()

  def close(self) -> None:
    """Ends the event loop."""
    self._asker.close()

  def case(self, rng: random.Random) -> Result:
    """Sends one request, and looks at the tokens that the model is to go on from."""
    number = rng.randrange(len(self.checkers))
    path = rng.choices(("chat", "text", "compare", "judge"), (70, 10, 10, 10))[0]
    if path == "judge":
      return self._judge(rng, self.checkers[number])
    given = _MADE[path](rng, f"model{number}")
    if rng.random() < 0.4:
      given = inputs.changed(rng, given, _NAMES)
    data = inputs.dumps(rng, given)
    if rng.random() < 0.1:
      data = inputs.broken(rng, data)
    self.models.engine.asked.clear()
    answer = self._asker.ask(self._app, "POST", _PATHS[path], (HOST, _JSON), (data,))
    result, asked = judged(answer), self.models.engine.asked
    if not result.accepted or result.problem or not asked:
      return result
    problem = self._problem(path, json.loads(data), asked)
    return Result(True, problem)

  def _problem(self, path: str, given: dict[str, Any], asked: list[list[int]]) -> str:
    """What is wrong with the prompts of an accepted request."""
    if path == "compare":
      names = dict.fromkeys(given["models"])
      said = [[{"role": "user", "content": given["prompt"]}]] * len(names)
    else:
      names = [given["model"]] * len(asked)
      said = [given["messages"]] * len(asked) if path == "chat" else []
    for i, (name, tokens) in enumerate(zip(names, asked, strict=True)):
      checker = self.checkers[int(name.removeprefix("model"))]
      if said:
        problem = checker.problem(said[i], tokens, speak=True)
      elif _is_text(given["prompt"]):
        begins = tokens[0] == checker.coder.own.bos_id
        problem = checker.forged(tokens[1:]) if begins else "a text without a bos"
      else:
        problem = ""  # Ids are taken as they are, control tokens too.
      if problem:
        return problem
    return ""

  def _judge(self, rng: random.Random, checker: Checker) -> Result:
    """A conversation as judges and stages write it, cut to a limit too."""
    talk = _talk(rng)
    tokens, mask = chat.render(checker.coder.own, talk)
    problem = checker.problem(talk, tokens, mask)
    limit = rng.randrange(len(tokens) // 2, len(tokens) + 1)
    if problem or not limit:
      return Result(True, problem)
    try:
      tokens, mask = chat.render(checker.coder.own, talk, limit)
    except UserError as error:
      return refused(error)
    problem = checker.problem(talk, tokens, mask, cut=True)
    return Result(True, problem if len(tokens) <= limit else f"{len(tokens)} tokens of {limit}")


def _is_text(prompt: Any) -> bool:
  return isinstance(prompt, str) or bool(prompt) and isinstance(prompt[0], str)


def _talk(rng: random.Random) -> list[dict[str, str]]:
  roles = ("user", "assistant") * rng.choice((1, 1, 2, 3))
  roles = ("system", *roles) if rng.random() < 0.4 else roles
  if rng.random() < 0.1:
    roles = tuple(rng.choices(("system", "user", "assistant"), k=rng.randrange(1, 6)))
  return [{"role": role, "content": inputs.text(rng)} for role in roles]


def _chat(rng: random.Random, model: str) -> dict[str, Any]:
  talk = _talk(rng)
  talk = talk[:-1] if len(talk) > 1 and rng.random() < 0.9 else talk
  more = {"stream": True} if rng.random() < 0.2 else {"n": rng.choice((1, 1, 2))}
  return {"model": model, "messages": talk, "max_tokens": 4} | more


def _text(rng: random.Random, model: str) -> dict[str, Any]:
  texts = [inputs.text(rng) for _ in range(rng.choice((1, 2)))]
  return {"model": model, "prompt": rng.choice((texts[0], texts)), "max_tokens": 4}


def _compare(rng: random.Random, model: str) -> dict[str, Any]:
  return {"prompt": inputs.text(rng) + "?", "models": [model], "max_tokens": 4}


_MADE = {"chat": _chat, "text": _text, "compare": _compare}
_PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions", "compare": "/api/compare"}
