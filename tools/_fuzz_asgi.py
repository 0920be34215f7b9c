"""Asks an application in this process, as a server would: bytes in, a status and bytes out."""

import asyncio
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

from tools._fuzz_result import Result

Headers = Sequence[tuple[str, str]]

SECONDS = 8.0  # That an answer may take.
HOST = ("host", "127.0.0.1:8000")


class Answer(NamedTuple):
  """What came back.

  Attributes:
    status: 0: nothing did.
    headers: latin-1 texts.
    body: all of it, of a stream that never ends its first part.
  """

  status: int
  headers: list[tuple[str, str]]
  body: bytes


class Asker:
  """Asks applications, all in one event loop."""

  def __init__(self):
    self._runner = asyncio.Runner()

  def close(self) -> None:
    """Ends the loop."""
    self._runner.close()

  def ask(
    self,
    app: Any,
    method: str,
    target: str,
    headers: Headers = (HOST,),
    parts: Sequence[bytes] = (b"",),
    leaves: bool = False,
    seconds: float = SECONDS,
  ) -> Answer:
    """Returns the answer of an ASGI application.

    Args:
      app: the application.
      method: of the request.
      target: path and query, as a request line has them.
      headers: of the request.
      parts: of its body.
      leaves: whether the client goes when it has heard something.
      seconds: that the answer may take.

    Raises:
      Exception: what the application lets out.
      TimeoutError: if it does not answer.
    """
    return self._runner.run(_asked(app, method, target, headers, parts, leaves, seconds))


async def _asked(
  app: Any,
  method: str,
  target: str,
  headers: Headers,
  parts: Sequence[bytes],
  leaves: bool,
  seconds: float,
) -> Answer:
  # A server reads bytes; what is beyond ASCII in them is percent-encoded, or is lost.
  raw, _, query = target.encode("utf-8", "replace").partition(b"?")
  scope = {
    "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
    "method": method, "scheme": "http", "root_path": "", "raw_path": raw, "query_string": query,
    "path": urllib.parse.unquote(raw.decode("ascii", "replace")),
    "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers],
    "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000), "state": {},
  }  # fmt: skip
  left, gone = list(parts), asyncio.Event()
  status, sent, body = 0, [], []

  async def receive() -> dict[str, Any]:
    if left:
      return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
    await gone.wait()
    return {"type": "http.disconnect"}

  async def send(message: dict[str, Any]) -> None:
    nonlocal status
    if message["type"] == "http.response.start":
      status = message["status"]
      sent.extend((k.decode("latin-1"), v.decode("latin-1")) for k, v in message["headers"])
    else:
      body.append(message.get("body", b""))
      if leaves:
        gone.set()

  await asyncio.wait_for(app(scope, receive, send), seconds)
  return Answer(status, sent, b"".join(body))


def judged(answer: Answer) -> Result:
  """An answer of 2xx or 3xx is taken, one of 4xx refused; all others are a problem."""
  if not 200 <= answer.status < 500:
    return Result(False, f"status {answer.status}: {answer.body[:300]!r}")
  said = (b'"server_error"', b'data: {"error":')
  if any(text in answer.body for text in said):
    return Result(False, f"an answer that failed: {answer.body[-300:]!r}")
  return Result(answer.status < 400)
