"""What a server on this machine refuses: other sites' pages, other names, too much."""

import asyncio
import json

import pytest

from llm_jax.serve import guards


async def _app(scope, receive, send):
  size = 0
  while True:
    message = await receive()
    size += len(message.get("body", b""))
    if not message.get("more_body"):
      break
  await send({"type": "http.response.start", "status": 200, "headers": []})
  await send({"type": "http.response.body", "body": str(size).encode()})


def asked(method="GET", parts=(b"",), token="", most=100, **headers):
  """Returns (status, headers, body) of a guarded application."""
  given = {"host": "localhost:8000"} | {k.replace("_", "-"): v for k, v in headers.items()}
  scope = {
    "type": "http", "method": method, "path": "/",
    "headers": [(k.encode(), v.encode()) for k, v in given.items()],
  }  # fmt: skip
  sent, left = [], list(parts)

  async def receive():
    body = left.pop(0)
    return {"type": "http.request", "body": body, "more_body": bool(left)}

  async def send(message):
    sent.append(message)

  asyncio.run(guards.Guard(_app, token=token, most=most)(scope, receive, send))
  return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
  ("status", "fields"),
  [
    (200, {}),
    (200, {"host": "127.0.0.1"}),
    (200, {"host": "[::1]:8000"}),
    (200, {"host": "LOCALHOST:1"}),
    (421, {"host": "evil.example"}),
    (421, {"host": "localhost.evil.example:8000"}),
    (421, {"host": "127.0.0.1.evil.example"}),
    (421, {"host": ""}),
    (200, {"origin": "http://localhost:8000"}),
    (403, {"origin": "http://evil.example"}),
    (403, {"origin": "http://localhost:8001", "method": "POST"}),
    (403, {"origin": "null"}),
    (403, {"sec_fetch_site": "cross-site", "method": "POST"}),
    (200, {"sec_fetch_site": "same-origin", "method": "POST"}),
    (403, {"sec_fetch_site": "cross-site", "sec_fetch_dest": "image"}),
    (403, {"sec_fetch_site": "same-site", "sec_fetch_dest": "iframe"}),
    (403, {"sec_fetch_site": "cross-site", "sec_fetch_dest": "document", "method": "POST"}),
    (200, {"sec_fetch_site": "cross-site", "sec_fetch_dest": "document"}),
    (413, {"content_length": "101", "method": "POST"}),
    (413, {"content_length": "-1", "method": "POST"}),
    (413, {"content_length": "1e3", "method": "POST"}),
    (413, {"content_length": "9" * 5000, "method": "POST"}),  # More digits than Python reads.
    (200, {"method": "POST", "parts": (b"x" * 60, b"y" * 40)}),
    (413, {"method": "POST", "parts": (b"x" * 60, b"y" * 41)}),
    (401, {"token": "secret"}),
    (401, {"token": "secret", "authorization": "Bearer secre"}),
    (200, {"token": "secret", "authorization": "Bearer secret"}),
    (200, {"token": "secret", "authorization": "bearer secret"}),
    (401, {"token": "secret", "authorization": "secret"}),
    (200, {"host": "LOCALHOST:8000", "origin": "http://localhost:8000"}),
  ],
)
def test_who_may_ask_and_how_much(status, fields):
  found, headers, body = asked(**fields)
  assert found == status
  if status != 200:
    assert json.loads(body)["error"]["message"]
    assert b"secret" not in body
  assert b"default-src 'self'" in headers[b"content-security-policy"]
  assert headers[b"x-content-type-options"] == b"nosniff"
  assert b"access-control-allow-origin" not in headers


def test_two_hosts_are_no_host():
  found = []

  async def send(message):
    found.append(message)

  headers = [(b"host", b"evil.example"), (b"host", b"localhost")]
  scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
  asyncio.run(guards.Guard(_app)(scope, None, send))
  assert found[0]["status"] == 400


def test_the_whole_body_arrives():
  assert asked(method="POST", parts=(b"ab", b"cd"))[2] == b"4"


def test_other_protocols_are_not_served():
  with pytest.raises(ValueError, match="websocket is not served"):
    asyncio.run(guards.Guard(_app)({"type": "websocket"}, None, None))
