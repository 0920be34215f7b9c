"""OpenAI's interface: /v1/completions, /v1/chat/completions, /v1/models.

What is not implemented is refused by name; nothing that changes the answer is ignored.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llm_jax.data import chat
from llm_jax.errors import UserError
from llm_jax.serve import guards
from llm_jax.serve.engine import Ask, Engine, Full, Piece
from llm_jax.serve.models import Models, Served
from llm_jax.serve.requests import Asked, Chat, Completion, Refused
from llm_jax.serve.wording import Wording

_MOST_PROMPTS = 64  # Of one request, times its answers.


def router(models: Models) -> APIRouter:
  """The routes of these models."""
  routes = APIRouter(prefix="/v1")

  @routes.get("/models")
  def listed() -> dict[str, Any]:
    data = [
      {"id": name, "object": "model", "created": 0, "owned_by": "llm_jax"} for name in models.names
    ]
    return {"object": "list", "data": data}

  @routes.get("/models/{name}")
  def one(name: str) -> Response:
    found = [model for model in listed()["data"] if model["id"] == name]
    if not found:
      return Refused(f"there is no model {ascii(name)}", "model", 404).response
    return JSONResponse(found[0])

  @routes.post("/completions")
  async def completions(asked: Completion, request: Request) -> Response:
    return await _guarded(_complete(models, asked, request))

  @routes.post("/chat/completions")
  async def conversations(asked: Chat, request: Request) -> Response:
    return await _guarded(_converse(models, asked, request))

  return routes


async def _guarded(answering: Any) -> Response:
  try:
    return await answering
  except Refused as error:
    return error.response
  except Full as error:
    return JSONResponse(guards.error(str(error), 429), 429, {"retry-after": "1"})
  except (ValueError, UserError) as error:
    return JSONResponse(guards.error(str(error), 400), 400)


async def _served(models: Models, name: str) -> Served:
  if served := models.loaded(name):  # A thread would cost as much as reading a request.
    return served
  if name not in models.names:
    known = ", ".join(models.names)
    raise Refused(f"there is no model {ascii(name)}; there are {known}", "model", 404)
  return await asyncio.to_thread(models.get, name)


async def _complete(models: Models, asked: Completion, request: Request) -> Response:
  served = await _served(models, asked.model)
  prompts = asked.prompts(served)
  _limit(len(prompts) * asked.n)
  for prompt in prompts:
    served.engine.check_prompt(prompt)
  new = 16 if asked.max_tokens is None else asked.max_tokens
  if new == 0 and not asked.echo:
    raise Refused("max_tokens=0 is for echo alone", "max_tokens")
  if asked.stream and (asked.echo or asked.logprobs is not None):
    raise Refused("stream goes with neither echo nor logprobs here", "stream")
  root = asked.root()
  asks = [
    _ask(asked, prompt, new, root, i * asked.n + k, served.tokenizer.eos_id)
    for i, prompt in enumerate(prompts) for k in range(asked.n)
  ]  # fmt: skip
  wordings = [Wording(served.tokenizer, ask.prompt, asked.stops()) for ask in asks]
  answers = _Answers(served.engine, asks, wordings) if new else None
  shape = _Shape("cmpl", "text_completion", asked.model)
  if asked.stream and answers:
    frames = _stream(shape, answers, asked, lambda text, _: {"text": text, "logprobs": None})
    return StreamingResponse(frames, media_type="text/event-stream")
  reasons = await _whole(answers, request) if answers else ["length"] * len(asks)
  choices = []
  for i, (ask, wording, reason) in enumerate(zip(asks, wordings, reasons, strict=True)):
    text = served.tokenizer.decode(ask.prompt) + wording.text if asked.echo else wording.text
    choice = {"index": i, "text": text, "finish_reason": reason, "logprobs": None}
    if asked.logprobs is not None:
      ended = [ask.end_id] if answers and answers.ended[i] else []
      choice["logprobs"] = await asyncio.to_thread(_logprobs, served, ask, wording, asked, ended)
    choices.append(choice)
  return JSONResponse(shape.whole(choices, _usage(prompts, wordings)))


async def _converse(models: Models, asked: Chat, request: Request) -> Response:
  served = await _served(models, asked.model)
  if not served.chat:
    raise Refused(f'"{asked.model}" has learned no turns: use /v1/completions', "model")
  if asked.top_logprobs and not asked.logprobs:
    raise Refused("top_logprobs needs logprobs", "top_logprobs")
  if asked.stream and asked.logprobs:
    raise Refused("stream does not go with logprobs here", "stream")
  turns = [{"role": one.role, "content": one.content} for one in asked.messages]
  prompt = chat.prompt(served.tokenizer, turns)
  wanted = asked.max_completion_tokens or asked.max_tokens
  new = wanted or served.engine.max_new
  root = asked.root()
  asks = [_ask(asked, prompt, new, root, k, served.tokenizer.end_id) for k in range(asked.n)]
  wordings = [Wording(served.tokenizer, (), asked.stops()) for _ in asks]
  answers = _Answers(served.engine, asks, wordings)
  kind = "chat.completion.chunk" if asked.stream else "chat.completion"
  shape = _Shape("chatcmpl", kind, asked.model)
  if asked.stream:
    begun: set[int] = set()

    def delta(text: str, i: int) -> dict[str, Any]:
      first = {} if i in begun else {"role": "assistant"}
      begun.add(i)
      return {"delta": first | ({"content": text} if text or first else {})}

    frames = _stream(shape, answers, asked, delta)
    return StreamingResponse(frames, media_type="text/event-stream")
  reasons = await _whole(answers, request)
  choices = []
  for i, (ask, wording, reason) in enumerate(zip(asks, wordings, reasons, strict=True)):
    message = {"role": "assistant", "content": wording.text}
    choice = {"index": i, "message": message, "finish_reason": reason, "logprobs": None}
    if asked.logprobs:
      choice["logprobs"] = await asyncio.to_thread(_chat_logprobs, served, ask, wording, asked)
    choices.append(choice)
  return JSONResponse(shape.whole(choices, _usage([prompt], wordings)))


def _limit(answers: int) -> None:
  if not 0 < answers <= _MOST_PROMPTS:
    raise Refused(f"1 to {_MOST_PROMPTS} answers a request, not {answers}", "prompt")


def _ask(asked: Asked, prompt: list[int], new: int, seed: int, number: int, end_id: int) -> Ask:
  return Ask(prompt, new, asked.temperature, asked.top_k, asked.top_p, seed, number, end_id)


class _Answers:
  """Answers on their way, as the event loop sees them."""

  def __init__(self, engine: Engine, asks: Sequence[Ask], wordings: Sequence[Wording]):
    loop = asyncio.get_running_loop()
    self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
    self.wordings = wordings
    self.ended = [False] * len(asks)  # By the end token.

    def emit(i: int, piece: Piece) -> None:
      loop.call_soon_threadsafe(self._queue.put_nowait, (i, piece))

    self._tickets = engine.submit(asks, emit)

  async def __aiter__(self) -> AsyncIterator[tuple[int, str, str]]:
    """Yields (number of the answer, new text, reason or "")."""
    done: set[int] = set()
    try:
      while len(done) < len(self._tickets):
        i, piece = await self._queue.get()
        if i in done:
          continue
        if piece.reason == "error":
          raise Refused("the model failed; see the server's log", None, 500)
        wording, reason = self.wordings[i], piece.reason
        text = wording.add(piece.tokens, last=bool(reason))
        if wording.stopped and not reason:
          self._tickets[i].cancel()
        self.ended[i] = reason == "stop" and not wording.stopped
        reason = "stop" if wording.stopped else reason
        done |= {i} if reason else set()
        yield i, text, reason
    finally:
      self.close()

  def close(self) -> None:
    """Gives all rows back."""
    for ticket in self._tickets:
      ticket.cancel()


async def _whole(answers: _Answers, request: Request) -> list[str]:
  """Waits for all answers, unless the client leaves; returns why each ended."""
  reasons = [""] * len(answers.wordings)

  async def collect() -> None:
    async for i, _, reason in answers:
      reasons[i] = reason

  async def gone() -> None:
    while not await request.is_disconnected():
      await asyncio.sleep(0.1)

  tasks = [asyncio.create_task(collect()), asyncio.create_task(gone())]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not tasks[0].done():
      raise Refused("the client left", None, 499)
    tasks[0].result()
  finally:
    for task in tasks:
      task.cancel()
    answers.close()
  return reasons


async def _stream(shape: "_Shape", answers: _Answers, asked: Asked, made: Any):
  """Yields server-sent events."""
  try:
    async for i, text, reason in answers:
      if text or reason:
        choice = {"index": i, "finish_reason": reason or None} | made(text, i)
        yield shape.frame(choice)
  except Refused as error:
    yield b"data: " + error.response.body + b"\n\n"
    return
  counted = (asked.stream_options or {}).get("include_usage")
  usage = shape.frame(usage=_usage([], answers.wordings)) if counted else b""
  yield usage + b"data: [DONE]\n\n"


class _Shape:
  """What all parts of one reply have in common."""

  def __init__(self, prefix: str, kind: str, model: str):
    self._common = {
      "id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()),
      "model": model,
    }  # fmt: skip
    self._begin = b"data: " + _json(self._common)[:-1] + b', "choices": ['

  def frame(self, choice: dict[str, Any] | None = None, usage: dict | None = None) -> bytes:
    """A server-sent event."""
    own = _json(choice) if choice else b""
    return self._begin + own + (b'], "usage": ' + _json(usage) if usage else b"]") + b"}\n\n"

  def whole(self, choices: list[dict], usage: dict | None = None) -> dict[str, Any]:
    return self._common | {"choices": choices} | ({"usage": usage} if usage else {})


def _json(value: dict[str, Any]) -> bytes:
  return json.dumps(value, ensure_ascii=False).encode()


def _usage(prompts: Sequence[Sequence[int]], wordings: Sequence[Wording]) -> dict[str, int]:
  asked, drawn = sum(map(len, prompts)), sum(len(one.tokens) for one in wordings)
  return {"prompt_tokens": asked, "completion_tokens": drawn, "total_tokens": asked + drawn}


def _logprobs(
  served: Served, ask: Ask, wording: Wording, asked: Completion, ended: list[int]
) -> dict[str, Any]:
  """Log-probabilities of an answer's tokens, of the prompt's too with `echo`.

  The end token, if the model drew it, has no text but a place: lm-eval takes off one token.
  """
  whole, top = [*ask.prompt, *wording.tokens, *ended], asked.logprobs or 0
  logps, values, ids = served.engine.score(whole, top)
  skipped = 0 if asked.echo else len(ask.prompt)
  texts = list(_texts(served, ask.prompt, wording)) if asked.echo else wording.spans()
  texts += [("", texts[-1][1] + len(texts[-1][0]) if texts else 0)] * len(ended)
  found: dict[str, list] = {
    "tokens": [],
    "token_logprobs": [],
    "top_logprobs": [],
    "text_offset": [],
  }
  for place, (text, offset) in enumerate(texts, skipped):
    found["tokens"].append(text)
    found["text_offset"].append(offset)
    if place == 0:  # Nothing stands before it that could predict it.
      found["token_logprobs"].append(None)
      found["top_logprobs"].append(None)
      continue
    found["token_logprobs"].append(float(logps[place - 1]))
    best: dict[str, float] = {}
    for i, value in zip(ids[place - 1], values[place - 1], strict=True):
      best.setdefault(served.tokenizer.token(int(i)), float(value))
    found["top_logprobs"].append(best)
  return found


def _texts(served: Served, prompt: Sequence[int], wording: Wording) -> Iterator[tuple[str, int]]:
  """The text of each token of a prompt and its answer, and where it begins."""
  own = Wording(served.tokenizer)
  own.tokens = [*prompt, *wording.tokens]
  yield from own.spans()


def _chat_logprobs(served: Served, ask: Ask, wording: Wording, asked: Chat) -> dict[str, Any]:
  logps, values, ids = served.engine.score([*ask.prompt, *wording.tokens], asked.top_logprobs)
  found, name = [], served.tokenizer.token
  for k, token in enumerate(wording.tokens):
    place = len(ask.prompt) + k - 1
    best = [
      {"token": name(int(i)), "logprob": float(value), "bytes": None}
      for i, value in zip(ids[place], values[place], strict=True)
    ]
    found.append(
      {"token": name(token), "logprob": float(logps[place]), "bytes": None, "top_logprobs": best}
    )
  return {"content": found, "refusal": None}
