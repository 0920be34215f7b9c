"""A server of tiny models on a free port of this machine."""

import http.client
import json
import socket
import threading
import time

import pytest
import uvicorn

from llm_jax.serve import app
from llm_jax.serve.models import Models
from tests.stages.conftest import prepared, root  # noqa: F401  Fixtures.


class Client:
  """Asks one server."""

  def __init__(self, port):
    self.port = port

  def ask(self, method, path, body=None, **headers):
    """Returns (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
      body, own = json.dumps(body).encode(), {"content-type": "application/json"} | own
    try:
      connection.request(method, path, body, own)
      reply = connection.getresponse()
      return reply.status, dict(reply.getheaders()), reply.read()
    finally:
      connection.close()

  def post(self, path, **fields):
    """Returns (status, JSON)."""
    status, _, body = self.ask("POST", path, fields)
    return status, json.loads(body)

  def events(self, path, **fields):
    """Returns the JSON of each event; the last one must be [DONE]."""
    status, headers, body = self.ask("POST", path, fields | {"stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    frames = body.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def started(application):
  """Returns (port, a function that stops it)."""
  listener = socket.socket()
  listener.bind(("127.0.0.1", 0))
  server = uvicorn.Server(
    uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=2)
  )
  thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
  thread.start()
  while not server.started:
    time.sleep(0.01)

  def stop():
    server.should_exit = True
    thread.join(60)

  return listener.getsockname()[1], stop


@pytest.fixture(scope="session")
def models(root):  # noqa: F811
  made = Models(root, rows=4, prompt=96, max_new=24)
  yield made
  made.close()


@pytest.fixture(scope="session")
def client(models):
  port, stop = started(app.create(models))
  yield Client(port)
  stop()
