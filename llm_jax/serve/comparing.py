"""One prompt, answered by several models at once, and how far each has moved from the reference."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from llm_jax.data import chat
from llm_jax.serve import probe
from llm_jax.serve.engine import Ask, Piece
from llm_jax.serve.models import Models, Served
from llm_jax.serve.spelling import texts


def prompt(served: Served, text: str) -> tuple[list[int], int]:
  """The tokens of a question to a model, and the token that ends its answer.

  A base model has learned no turns: it goes on with the text.
  """
  coder = served.tokenizer
  if served.chat:
    return chat.prompt(coder, [{"role": "user", "content": text}]), coder.end_id
  return [coder.bos_id, *coder.encode(text)], coder.eos_id


class Answer:
  """One model's answer on its way to a page."""

  def __init__(self, served: Served, ask: Ask):
    self.served, self.ask = served, ask
    self.tokens: list[int] = []
    self._shown = 0

  def add(self, piece: Piece) -> dict[str, Any]:
    """What to show of the next tokens: {"model", "tokens": [{"text"}], "reason"}."""
    self.tokens += piece.tokens
    new = self.tokens[self._shown :]
    found = list(texts(self.served.tokenizer, new, [*self.ask.prompt, *self.tokens][: -len(new)]))
    # Half a character waits for its other half.
    while found and found[-1].endswith("\ufffd") and not piece.reason:
      found.pop()
    self._shown += len(found)
    shown = [{"text": text} for text in found]
    return {"model": self.served.name, "tokens": shown, "reason": piece.reason}

  def measured(self, reference: Served, ended: bool) -> dict[str, Any]:
    """Each token under the model and the reference, at temperature 1, once the answer is there.

    Returns:
      {"model", "logps", "kl", "ref_logps"}, a number a token, the end token's last if it `ended`.
    """
    whole = [*self.ask.prompt, *self.tokens, *([self.ask.end_id] if ended else [])]
    found = probe.beside(self.served, reference, whole)
    own = slice(len(self.ask.prompt) - 1, None)
    numbers = {name: x[own].round(4).tolist() for name, x in found._asdict().items()}
    return {"model": self.served.name} | numbers


async def compare(
  models: Models, asks: Sequence[tuple[str, Ask]], reference: str
) -> AsyncIterator[bytes]:
  """Yields server-sent events of all answers: pieces as they are drawn, then what they measure.

  Args:
    models: of the run.
    asks: names of models, and what each is to draw.
    reference: name of the model that divergences are taken to; "": none.
  """
  loop, queue = asyncio.get_running_loop(), asyncio.Queue()
  tickets = []

  def heard(i: int):
    return lambda _, piece: loop.call_soon_threadsafe(queue.put_nowait, (i, piece))

  try:
    answers = []
    for i, (name, ask) in enumerate(asks):
      served = await asyncio.to_thread(models.get, name)
      answers.append(Answer(served, ask))
      tickets += served.engine.submit([ask], heard(i))
    left = len(answers)
    while left:
      i, piece = await queue.get()
      yield frame(answers[i].add(piece))
      if not piece.reason:
        continue
      left -= 1
      if reference and piece.reason != "error":
        other = await asyncio.to_thread(models.get, reference)
        yield frame(await asyncio.to_thread(answers[i].measured, other, piece.reason == "stop"))
    yield frame({"done": True})
  except Exception as error:  # Headers are gone: what went wrong is said in the stream.
    logging.exception("a comparison failed")
    yield frame({"error": str(error)})
  finally:
    for ticket in tickets:
      ticket.cancel()


def frame(value: Any) -> bytes:
  """A server-sent event."""
  return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
