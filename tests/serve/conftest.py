"""A server of tiny models on a free port of this machine."""

import http.client
import json
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from llm_jax.data import corpus, documents
from llm_jax.serve import app, playground, workdirs
from llm_jax.serve.models import Models
from tests.serve.browsing import browser, tab  # noqa: F401  Fixtures.
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


DROPPED = [
  {"id": "gone0", "url": "https://docs.invalid/gone0", "step": "length(least=20)",
   "reason": "too short", "sample": "<script>window.hit = 1</script><img src=x onerror='hit = 1'>"},
  {"id": "gone1", "url": "", "step": "duplicates(threshold=0.8)", "reason": "near duplicate",
   "sample": "Return all the rows of a small table.", "kept": "stays", "score": 0.9},
]  # fmt: skip


def _write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def workdir(root, tmp_path_factory):  # noqa: F811
  """A run as the pipeline leaves it: stages with their records, and a corpus with what it lost."""
  path = tmp_path_factory.mktemp("play") / "tiny"
  shutil.copytree(root, path)
  for stage in ("pretrain", "sft", "reward", "ppo"):
    _write(path / stage / "config.json", {"steps": 4})
  prepare = path / "prepare"
  for name in ("prepare", "preferences"):
    _write(path / name / "config.json", {})
  manifest = json.loads((prepare / "manifest.json").read_text())
  steps = [("read", 26, {}), ("length(least=20)", 25, {"too short": 1}),
           ("duplicates(threshold=0.8)", 24, {"near duplicate": 1})]  # fmt: skip
  manifest["funnel"] = [
    {
      "step": step,
      "documents": n,
      "bytes": 40 * n,
      "tokens": 9 * n,
      "dropped": dropped,
      "edited": {},
    }
    for step, n, dropped in steps
  ]
  manifest["before_after"] = [{"url": "https://docs.invalid/a", "before": "<b>a</b>", "after": "a"}]
  _write(prepare / "manifest.json", manifest)
  _write(prepare / "timing.json", {"steps": {"read": 1.5}})
  _write(prepare / "dropped" / "dropped.jsonl", *DROPPED)
  found = prepare / "dropped" / "duplicates_threshold_0_8"
  _write(found / "clusters.jsonl", {"cluster": "stays", "members": ["stays", "gone1"]})
  _write(found / "removed.jsonl", {"id": "gone1", "kept": "stays", "score": 0.9, "rule": "near"})
  kept = documents.Document("stays", "Return all the rows of a large table.", "")
  corpus.write(prepare, {"train": [kept]})
  (path / "report.html").write_text("<!doctype html><p>report</p>")
  return path


@pytest.fixture(scope="session")
def play(workdir):
  """A playground on that run, with another one beside it."""
  other = workdir.parent / "other"
  shutil.copytree(workdir / "sft", other / "sft")
  models = Models(workdir, rows=4, prompt=96, max_new=24, wait=True)
  made = playground.make(workdirs.Workdirs([workdir, other]), models)
  yield made
  models.close()


@pytest.fixture(scope="session")
def page(play):
  """A client of the playground."""
  port, stop = started(app.create(play.models, play=play))
  yield Client(port)
  stop()
