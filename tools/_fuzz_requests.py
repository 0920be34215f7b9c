"""Fuzzes requests to the endpoint and the playground, on models of random weights that answer."""

import contextlib
import json
import pathlib
import random
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import uvicorn

from llm_jax import config
from llm_jax.data import tokenizer
from llm_jax.models import heads
from llm_jax.models.transformer import Transformer
from llm_jax.serve import app, playground, workdirs
from llm_jax.serve.models import Models
from llm_jax.stages import runs
from llm_jax.train.checkpoint import Checkpoints
from tools import _fuzz_inputs as inputs
from tools._fuzz_asgi import HOST, SECONDS, Answer, Asker, Headers, judged
from tools._fuzz_result import Result

_SHAPE = config.Model(dim=16, layers=1, heads=2, vocab_size=300)
_TOKEN = "a-token-that-no-answer-tells"
_TALK = [{"role": "user", "content": "What does a list do?"}]
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "get", "FOO", "")
_SILENT = 0.2  # Seconds after which a server that waits for the rest of a request is left.
# Paths, with what they take in the query or, if it is no text, in the body.
_PATHS: tuple[tuple[str, Any], ...] = (
  ("/v1/models", ""),
  ("/v1/models/sft", ""),
  ("/v1/completions", {"model": "pretrain", "prompt": "Return", "max_tokens": 4, "seed": 1}),
  ("/v1/completions", {"model": "sft", "prompt": [[1, 2, 3]], "max_tokens": 0, "echo": True,
                       "logprobs": 2}),
  ("/v1/completions", {"model": "pretrain", "prompt": ["a", "b"], "max_tokens": 3, "n": 2,
                       "stream": True, "stop": ["x"], "stream_options": {"include_usage": True}}),
  ("/v1/chat/completions", {"model": "sft", "messages": _TALK, "max_tokens": 4, "top_p": 0.9,
                            "temperature": 0.5, "top_k": 3, "user": "a", "metadata": {"a": "b"}}),
  ("/v1/chat/completions", {"model": "sft", "messages": _TALK, "max_completion_tokens": 3,
                            "logprobs": True, "top_logprobs": 2}),
  ("/v1/chat/completions", {"model": "sft", "messages": _TALK, "max_tokens": 4, "stream": True}),
  ("/", ""),
  ("/static/app.js", ""),
  ("/api/run", "run="),
  ("/api/curves", "run=root"),
  ("/api/policies", "run="),
  ("/api/examples", ""),
  ("/api/file", "name=config.json&run="),
  ("/api/events", "run="),
  ("/api/corpus", ""),
  ("/api/dropped", "step=a&reason=b&first=0"),
  ("/api/cluster", "step=a&name=b"),
  ("/api/plan", ""),
  ("/api/tokenize", {"text": "a list of rows"}),
  ("/api/plan", {"law": "hoffmann", "device": "H100", "devices": 8, "mfu": 0.4, "price": 2.0,
                 "params": 1e9, "tokens": 1e10, "days": 0.0}),
  ("/api/next", {"model": "sft", "text": "a list", "appended": [5], "chat": True,
                 "temperature": 1.0, "top_p": 0.9, "draw": 0.5, "top": 5}),
  ("/api/compare", {"prompt": "a list?", "models": ["sft", "pretrain"], "reference": "pretrain",
                    "temperature": 0.7, "top_p": 1.0, "max_tokens": 3, "seed": 1}),
  ("/api/judge", {"model": "reward", "prompt": "a?", "answers": ["b", "c"]}),
  ("/api/vote", {"prompt": "a?", "answers": ["b", "c"], "better": 1}),
)  # fmt: skip
_NAMES = sorted({name for _, given in _PATHS if isinstance(given, dict) for name in given})
_ODD_PATHS = (
  "/../../etc/passwd", "/static/../config.json", "/static/%2e%2e/config.json", "//", "/%00", "/%ff",
  "/static//etc/passwd", "/v1/models/%2e%2e", "/api/file/", "/docs", "/openapi.json", "/v1/", "*",
  "http://evil.example/", "/" + "a" * 5000, "/é", "/v1/models/" + "%41" * 900,
)  # fmt: skip
_ODD_HEADERS = (
  ("host", "evil.example"), ("host", ""), ("host", "127.0.0.1:99999999999"), ("host", "[::1"),
  ("origin", "http://evil.example"), ("origin", "null"), ("origin", "http://127.0.0.1:8000"),
  ("sec-fetch-site", "cross-site"), ("content-length", "9" * 5000), ("content-length", "-1"),
  ("content-length", "\xb2"), ("content-length", "1e3"), ("content-length", " 5"),
  ("content-type", "text/plain"), ("content-type", "application/json; charset=utf-16"),
  ("content-type", "multipart/form-data; boundary=a"), ("content-type", "\xff"),
  ("cookie", "=;=" * 90),
  ("cookie", f"llm_jax_token={_TOKEN[:-1]}"), ("authorization", "Bearer"),
  ("range", "bytes=0-0,5-"),
  ("authorization", "Bearer \xff\xfe"), ("transfer-encoding", "chunked"), ("accept", "\xff" * 9000),
  ("x" * 5000, "y"), ("if-none-match", "*"), ("connection", "upgrade"), ("upgrade", "websocket"),
  ("if-modified-since", "Mon, 99 Foo 2000 00:00:00 GMT"), ("range", "bytes=9999999999999999999-"),
  ("range", "bytes=-"), ("expect", "100-continue"), ("accept-encoding", "gzip;q=nan"),
)  # fmt: skip


class World:
  """A run with tiny models, the applications on it, and a server that is begun when it is asked."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder / "root"
    _made(self._folder)
    self._models = Models(self._folder, rows=4, prompt=32, max_new=8)
    places = workdirs.Workdirs([self._folder])
    play = playground.make(places, self._models)
    self._app = app.create(self._models, play=play)
    self._shut = app.create(self._models, token=_TOKEN, play=play)
    self._asker = Asker()
    self._stack = contextlib.ExitStack()
    self._port = 0
    for path, given in [*_PATHS, *_longer()]:  # What is compiled takes no case's time.
      self._ask(self._app, *_request(path, given), seconds=600)

  def close(self) -> None:
    """Ends the server and the models."""
    self._stack.close()
    self._asker.close()
    self._models.close()

  def case(self, rng: random.Random) -> Result:
    """Asks something, and looks at the answer."""
    method, target, headers, body = self._mutated(rng)
    if rng.random() < 0.02:
      return self._over_a_socket(rng, method, target, headers, body)
    shut = rng.random() < 0.05
    cut = rng.randrange(len(body) + 1)
    parts = (body[:cut], body[cut:]) if rng.random() < 0.2 else (body,)
    answer = self._ask(self._shut if shut else self._app, method, target, headers, *parts)
    result = judged(answer)
    if shut and result.accepted:
      return Result(True, f"answered {answer.status} to one without the token")
    told = [value for _, value in answer.headers if _TOKEN in value]
    if _TOKEN.encode() in answer.body or told:
      return Result(result.accepted, "tells the token")
    return result

  def _ask(
    self,
    application: Any,
    method: str,
    target: str,
    headers: Headers,
    *parts: bytes,
    seconds: float = SECONDS,
  ) -> Answer:
    leaves = "/api/events" in urllib.parse.unquote(target)
    return self._asker.ask(application, method, target, headers, parts, leaves, seconds)

  def _mutated(self, rng: random.Random) -> tuple[str, str, Headers, bytes]:
    path, given = rng.choice(_PATHS)
    if isinstance(given, str) and rng.random() < 0.8:
      given = _query(rng, given)
    elif isinstance(given, dict) and rng.random() < 0.85:
      given = inputs.changed(rng, given, _NAMES)
    method, target, headers, body = _request(path, given, rng)
    if rng.random() < 0.08:
      method = rng.choice(_METHODS)
    if rng.random() < 0.08:
      target = rng.choice((target + rng.choice(_ODD_PATHS), rng.choice(_ODD_PATHS)))
    if rng.random() < 0.15:
      headers = _headers(rng, list(headers))
    if body and rng.random() < 0.1:
      body = inputs.broken(rng, body)
    return method, target, headers, body

  def _over_a_socket(
    self, rng: random.Random, method: str, target: str, headers: Headers, body: bytes
  ) -> Result:
    """The same to a real server, in bytes that may be no request at all."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers)]
    if not any(name == "content-length" for name, _ in headers):
      lines.append(f"content-length: {len(body)}")
    head = "\r\n".join([*lines, "connection: close", "", ""])
    sent = head.encode("latin-1", "replace") + body
    sent = inputs.broken(rng, sent) if rng.random() < 0.7 else sent
    with socket.create_connection(("127.0.0.1", self._served()), timeout=10) as client:
      with contextlib.suppress(OSError):  # It may hang up at what it does not like.
        client.sendall(sent)
        client.settimeout(_SILENT)
        first = client.recv(65536).split(b"\r\n")[0].split()
        status = int(first[1]) if len(first) > 1 and first[1].isdigit() else 0
        problem = f"status {status} over a socket" if status >= 500 else ""
        return Result(200 <= status < 400, problem)
    return Result(False)

  def _served(self) -> int:
    if not self._port:
      listener = socket.create_server(("127.0.0.1", 0))
      settings = uvicorn.Config(
        self._app, log_level="critical", access_log=False, timeout_graceful_shutdown=1
      )
      server = uvicorn.Server(settings)
      thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
      thread.start()
      while not server.started:
        time.sleep(0.01)
      self._port = listener.getsockname()[1]

      def stop() -> None:
        server.should_exit = True
        thread.join(30)

      self._stack.callback(stop)
    return self._port


def _longer() -> Iterator[tuple[str, Any]]:
  """Requests of each size for which there is a program of its own."""
  own = {"model": "pretrain", "max_tokens": 8}
  for count in (1, 30):
    for n in (1, 8):
      yield "/v1/completions", own | {"prompt": [5] * count, "n": n}
  yield "/v1/completions", own | {"prompt": [5] * 30, "n": 8, "top_p": 0.9}
  yield "/api/next", {"model": "sft", "text": "", "appended": [5] * 35}


def _request(
  path: str, given: Any, rng: random.Random | None = None
) -> tuple[str, str, Headers, bytes]:
  """Returns (method, target, headers, body)."""
  if isinstance(given, str):
    return "GET", f"{path}?{given}" if given else path, (HOST,), b""
  body = inputs.dumps(rng, given) if rng else json.dumps(given).encode()
  return "POST", path, (HOST, ("content-type", "application/json")), body


def _query(rng: random.Random, query: str) -> str:
  """A query with odd values, names and bytes."""
  pairs = [part.partition("=") for part in query.split("&") if part]
  found = []
  for name, _, value in pairs or [("a", "=", "b")]:
    if rng.random() < 0.6:
      value = str(inputs.odd(rng))[:3000] if rng.random() < 0.5 else inputs.text(rng)
    value = urllib.parse.quote(value, errors="surrogatepass") if rng.random() < 0.8 else value
    name = rng.choice((name, name, name, inputs.text(rng)))
    found += [f"{name}={value}"] * rng.choice((1, 1, 1, 0, 2))
  return "&".join(found)


def _headers(rng: random.Random, headers: list[tuple[str, str]]) -> Headers:
  for name, value in rng.sample(_ODD_HEADERS, rng.choice((1, 1, 2))):
    if rng.random() < 0.7:
      headers = [(k, v) for k, v in headers if k != name]
    headers.append((name, value))
  if rng.random() < 0.1:
    headers.pop(rng.randrange(len(headers)))
  return headers


def _made(root: pathlib.Path) -> None:
  """Writes a run: a corpus with a tokenizer, two language models and a reward model."""
  texts = ["What does a list of rows do?\nIt returns all the rows of a table.\n" * 4] * 3
  tokenizer.train(texts, root / "prepare" / "tokenizer", _SHAPE.vocab_size)
  (root / "prepare" / "manifest.json").write_text('{"splits": {}}')
  (root / "config.json").write_text('{"prepare": {}, "sft": {}}')
  decoder, scorer = Transformer.from_config(_SHAPE), heads.Scorer.from_config(_SHAPE)
  for seed, (name, model) in enumerate(
    {"pretrain": decoder, "sft": decoder, "reward": scorer}.items()
  ):
    runs.save_shape(root / name, _SHAPE)
    own = nn.unbox(jax.jit(model.init)(jax.random.key(seed), np.zeros((1, 2), np.int32)))
    checkpoints = Checkpoints(root / name / "checkpoints")
    checkpoints.save(0, {"params": own["params"]})
    checkpoints.close()
