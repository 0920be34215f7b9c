"""What stands before every request: who may ask, from where, how much, and what a page may load.

A page of any site can send requests to a local port, and can make its own name point there; so a
loopback address alone protects nothing. Host and Origin must be ours, and there is no CORS.
"""

import hmac
import json
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 1_000_000  # Of a request's body.
HOSTS = ("localhost", "127.0.0.1", "[::1]")
_SAFE = ("GET", "HEAD")
_COOKIE = "llm_jax_token"
_HEADERS = {
  "content-security-policy": (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
  ),
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
}


class Guard:
  """ASGI middleware: refuses what should not be asked, and says what a page may load.

  Args:
    app: what is guarded.
    hosts: names under which it may be asked; any port.
    token: what "Authorization: Bearer" must give, or the cookie of a browser that opened
      "/?token=..."; "": nothing.
    most: bytes of a body.
  """

  def __init__(
    self, app: App, hosts: Sequence[str] = HOSTS, token: str = "", most: int = MOST_BYTES
  ):
    self._app, self._token, self._most = app, token, most
    self._hosts = {host.lower() for host in hosts}

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Hands a request on, or answers it with a refusal."""
    if scope["type"] == "lifespan":
      await self._app(scope, receive, send)
      return
    if scope["type"] != "http":  # Nothing here speaks WebSocket.
      raise ValueError(f"{scope['type']} is not served")
    pairs = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in scope["headers"]]
    refusal = self._refusal(scope["method"], dict(pairs))
    if sum(name == "host" for name, _ in pairs) != 1:
      refusal = 400, "one Host is needed"
    if self._token and (not refusal or refusal[0] == 401) and self._introduced(scope):
      await _let_in(send, self._token)
      return
    if refusal:
      await _refuse(send, *refusal)
      return
    body = _Body(receive, self._most)

    async def guarded(message: MutableMapping[str, Any]) -> None:
      if body.over:  # What the application makes of it is of no interest.
        return
      if message["type"] == "http.response.start":
        given = list(message.get("headers", []))
        names = {name.lower() for name, _ in given}  # A route may be stricter.
        own = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in names]
        message = {**message, "headers": [*given, *own]}
      await send(message)

    try:
      await self._app(scope, body, guarded)
    except Exception:
      if not body.over:
        raise
    if body.over:
      await _refuse(send, 413, f"a body of more than {self._most:,} bytes is not read")

  def _refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    host = headers.get("host", "").lower()
    if _name(host) not in self._hosts:
      return 421, "this server is not called that (Host); see --host"
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
      return 403, "another site's page may not ask (Origin)"
    # Another site's page may lead here, but not load what it could not read: that is work too.
    led = method in _SAFE and headers.get("sec-fetch-dest") == "document"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not led:
      return 403, "another site's page may not ask (Sec-Fetch-Site)"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 20 or int(length) > self._most:
      return 413, f"a body of more than {self._most:,} bytes is not read"
    if self._token:
      scheme, _, given = headers.get("authorization", "").partition(" ")
      given = given if scheme.lower() == "bearer" else _cookie(headers.get("cookie", ""))
      if not self._is_token(given):
        return 401, "a token is needed: Authorization: Bearer ..., or /?token=... in a browser"
    return None

  def _introduced(self, scope: Scope) -> bool:
    """Whether a browser opens the page with the token in its address."""
    given = urllib.parse.parse_qs(scope.get("query_string", b"").decode("latin-1")).get(
      "token", [""]
    )
    return scope["method"] == "GET" and scope["path"] == "/" and self._is_token(given[0])

  def _is_token(self, given: str) -> bool:
    return hmac.compare_digest(given.encode(), self._token.encode())


class _TooLarge(Exception):
  """A body went on and on."""


class _Body:
  """Counts what is received."""

  def __init__(self, receive: Receive, most: int):
    self._receive, self._left = receive, most
    self.over = False

  async def __call__(self) -> MutableMapping[str, Any]:
    message = await self._receive()
    self._left -= len(message.get("body", b""))
    if self._left < 0:
      self.over = True
      raise _TooLarge
    return message


def _name(host: str) -> str:
  """The name of a Host header, without its port."""
  host = host.strip().lower()
  if host.startswith("["):
    return host.partition("]")[0] + "]"
  return host.partition(":")[0]


def _cookie(header: str) -> str:
  """The token that a browser was given."""
  found = (part.strip().partition("=") for part in header.split(";"))
  return next((urllib.parse.unquote(value) for name, _, value in found if name == _COOKIE), "")


async def _let_in(send: Send, token: str) -> None:
  """Gives a browser the token as a cookie that no script can read, and takes it off the address."""
  cookie = f"{_COOKIE}={urllib.parse.quote(token, safe='')}; HttpOnly; SameSite=Strict; Path=/"
  headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
  headers += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
  await send({"type": "http.response.start", "status": 303, "headers": headers})
  await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, status: int, why: str) -> None:
  body = json.dumps(error(why, status)).encode()
  headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
  headers += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})


def error(message: str, status: int, param: str | None = None) -> dict[str, Any]:
  """The body of a refusal, as clients of OpenAI's interface expect it."""
  kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
  kind = kinds.get(status, "invalid_request_error")
  return {"error": {"message": message, "type": kind, "param": param, "code": None}}
