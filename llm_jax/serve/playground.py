"""The playground: one page, and what it asks of a run as JSON."""

import asyncio
import json
import pathlib
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from importlib import resources
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from llm_jax.errors import UserError
from llm_jax.serve import asked, comparing, corpus, guards, judging, planning, probe, progress
from llm_jax.serve.engine import Ask, Full
from llm_jax.serve.models import Models, Served
from llm_jax.serve.spelling import pieces
from llm_jax.serve.workdirs import Workdirs, read_json
from llm_jax.stages import glossary, runs
from llm_jax.train import curves

_STATIC = ("llm_jax", "llm_jax.serve")  # Where the page's files are; they are found once.
_KINDS = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
}
# A run wrote it: it may run what scripts it holds, but as nobody's page, which can ask for nothing
# here, and tell no one elsewhere what it says.
_ALONE = (
  "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
  "style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
_POINTS = 400  # Of a curve.
_EVERY = 1.0  # Seconds between two looks at a run,
_BEAT = 15  # and looks after which a silent stream says that it lives.
_LAST = 1_000_000_000  # Number of a dropped document that may be asked for.
_STREAMS = 16  # Pages that may watch.


class Playground(NamedTuple):
  """What there is to play with.

  Attributes:
    workdirs: runs; models are the first one's.
    models: its language models.
    judges: its reward models.
    corpus: its prepared corpus.
    closing: set when the server ends, so that pages that watch do not hold it.
  """

  workdirs: Workdirs
  models: Models
  judges: judging.Judges
  corpus: corpus.Corpus
  closing: threading.Event


def make(workdirs: Workdirs, models: Models) -> Playground:
  """A playground on the first of the runs."""
  root = workdirs.path()
  return Playground(
    workdirs, models, judging.Judges(root, models.prepared), corpus.Corpus(models.prepared),
    threading.Event(),
  )  # fmt: skip


def router(play: Playground) -> APIRouter:
  """The routes of the page."""
  routes = APIRouter()
  _pages(routes)
  _run(routes, play)
  _watch(routes, play)
  _data(routes, play)
  _models(routes, play)
  return routes


def _pages(routes: APIRouter) -> None:
  """The page and its files: a list that is made once, so that no path of a request is followed."""
  found: dict[str, tuple[bytes, str]] = {}
  for package in _STATIC:
    for name, path in _files(resources.files(package) / "static", ""):
      kind = _KINDS.get(pathlib.PurePosixPath(name).suffix, "text/plain")
      found[name] = path.read_bytes(), f"{kind}; charset=utf-8"

  @routes.get("/")
  def index() -> Response:
    body, kind = found["index.html"]
    return Response(body, media_type=kind)

  @routes.get("/static/{name:path}")
  def file(name: str) -> Response:
    if name not in found:
      return _refused(f"there is no file {ascii(name)}", 404)
    body, kind = found[name]
    return Response(body, media_type=kind, headers={"cache-control": "no-cache"})


def _files(folder: Any, prefix: str) -> Iterable[tuple[str, Any]]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path, f"{prefix}{path.name}/")
    else:
      yield f"{prefix}{path.name}", path


def _run(routes: APIRouter, play: Playground) -> None:
  """How far runs are, their curves and files."""
  drawn = Drawn()

  @routes.get("/api/run")
  def now(run: str = "") -> Response:
    return _answered(lambda: _state(play, run))

  @routes.get("/api/curves")
  def curved(run: str = "") -> Response:
    return _answered(lambda: drawn.curves(play.workdirs.path(run)))

  @routes.get("/api/policies")
  def policies(run: str = "") -> Response:
    keys = ("policies", "win_rates", "checks", "definitions")
    read = lambda: read_json(play.workdirs.path(run) / "summary.json")  # noqa: E731
    return _answered(
      lambda: {key: found[key] for found in [read()] for key in keys if key in found}
    )

  @routes.get("/api/examples")
  def examples() -> Response:
    return _answered(lambda: progress.examples(play.workdirs.path(), play.models.prepared))

  @routes.get("/api/file")
  def artefact(name: str, run: str = "") -> Response:
    if run not in ("", *play.workdirs.names) or name not in play.workdirs.files(run):
      return _refused(f"there is no file {ascii(name)}", 404)
    path = play.workdirs.path(run) / name
    if path.suffix not in (".html", ".svg"):
      return FileResponse(path, media_type="text/plain; charset=utf-8")
    alone = {"content-security-policy": _ALONE}
    return FileResponse(path, media_type=_KINDS[path.suffix] + "; charset=utf-8", headers=alone)


def _state(play: Playground, run: str) -> dict[str, Any]:
  """All that the frame of the page shows.

  Raises:
    KeyError: if there is no such run.
  """
  root = play.workdirs.path(run)
  return {
    "run": run or play.workdirs.names[0],
    "runs": play.workdirs.names,
    "models": [{"name": n, "chat": n != "pretrain"} for n in play.models.names],
    "max_new": play.models.max_new,
    "judges": play.judges.names,
    "stages": progress.pipeline(root),
    "files": play.workdirs.files(run),
    "changed": _changed(root),
    "gone": not root.is_dir(),
  }


def _watch(routes: APIRouter, play: Playground) -> None:
  """The state of a run whenever it changes, as server-sent events."""
  watching: weakref.WeakSet[_Place] = weakref.WeakSet()

  @routes.get("/api/events")
  async def events(request: Request, run: str = "") -> Response:
    if run not in ("", *play.workdirs.names):
      return _refused(f"there is no run {ascii(run)}", 404)
    if len(watching) >= _STREAMS:
      return _refused(f"{_STREAMS} pages are watching already", 429)
    place = _Place()
    watching.add(place)

    async def stream(_: _Place) -> AsyncIterator[bytes]:
      last, silent = "", 0
      while not (play.closing.is_set() or await request.is_disconnected()):
        try:
          found = json.dumps(await asyncio.to_thread(_state, play, run))
        except OSError:  # A file went between being listed and being looked at.
          found = last
        if found != last:
          yield b"data: " + found.encode() + b"\n\n"
          last, silent = found, 0
        elif silent >= _BEAT:
          yield b": still here\n\n"
          silent = 0
        silent += 1
        await asyncio.sleep(_EVERY)

    return StreamingResponse(stream(place), media_type="text/event-stream")


class _Place:
  """Of a page that watches; free once its stream is gone, even if that never began."""


def _changed(root: pathlib.Path) -> float:
  """When a curve last got longer."""
  return max((p.stat().st_mtime for p in root.glob("*/metrics.jsonl")), default=0.0)


class Drawn:
  """The curves of runs, which may be long: of what was read before only the end is read again."""

  def __init__(self):
    self._readers: dict[pathlib.Path, curves.Reader] = {}
    self._lock = threading.Lock()

  def curves(self, root: pathlib.Path) -> dict[str, Any]:
    """{"stages": {name: {"x", "t", "begin", "y"}}} in the order in which they began, and what each
    metric means: {"explain": {name: text}}."""
    found = {}
    for path in root.glob("*/metrics.jsonl"):
      with self._lock:
        reader = self._readers.setdefault(path, curves.Reader(path))
        own = reader.read(_POINTS)
      if own.series:
        found[path.parent.name] = {
          "x": own.steps, "t": own.times, "begin": own.begin, "y": own.series
        }  # fmt: skip
    names = {name for stage in found.values() for name in stage["y"]}
    return {
      "stages": dict(sorted(found.items(), key=lambda item: item[1]["begin"] or 0.0)),
      "explain": {name: glossary.explain(name) for name in sorted(names)},
    }


def _data(routes: APIRouter, play: Playground) -> None:
  """The corpus."""

  @routes.get("/api/corpus")
  def overview() -> Response:
    return _answered(lambda: play.corpus.overview() | {"clusters": play.corpus.clusters()})

  @routes.get("/api/dropped")
  def dropped(step: str, reason: str, first: int = 0) -> Response:
    return _answered(lambda: play.corpus.dropped(step, reason, min(max(first, 0), _LAST), 5))

  @routes.get("/api/cluster")
  def cluster(step: str, name: str) -> Response:
    return _answered(lambda: play.corpus.cluster(step, name))

  @routes.post("/api/tokenize")
  def tokenize(given: asked.Tokenize) -> Response:
    return _answered(lambda: corpus.tokenized(runs.tokenizer(play.models.prepared), given.text))

  @routes.get("/api/plan")
  def options() -> Response:
    return _answered(lambda: planning.options(play.workdirs))

  @routes.post("/api/plan")
  def plan(given: asked.Plan) -> Response:
    fields = given.model_dump()
    law, device = fields.pop("law"), fields.pop("device")
    return _answered(lambda: planning.figures(play.workdirs, law, device=device, **fields))


def _models(routes: APIRouter, play: Playground) -> None:
  """What models do."""
  turn = asyncio.Lock()

  async def in_turn(request: Request, answer: Callable[[], dict[str, Any]]) -> Response:
    """One at a time, as they share a device; who left while others had their turn gets nothing."""
    async with turn:
      if await request.is_disconnected():
        return _refused("the client left", 499)
      return await asyncio.to_thread(_answered, answer)

  @routes.post("/api/next")
  async def following(given: asked.NextToken, request: Request) -> Response:
    return await in_turn(request, lambda: _next(_served(play.models, given.model), given))

  @routes.post("/api/compare")
  async def compare(given: asked.Compare) -> Response:
    try:
      asks = await asyncio.to_thread(_asks, play.models, given)
    except (KeyError, ValueError, UserError) as error:
      return _refused(_words(error), 404 if isinstance(error, KeyError) else 400)
    stream = comparing.compare(play.models, asks, given.reference)
    return StreamingResponse(stream, media_type="text/event-stream")

  @routes.post("/api/judge")
  async def judge(given: asked.Judge, request: Request) -> Response:
    return await in_turn(
      request, lambda: play.judges.compare(given.model, given.prompt, given.answers)
    )

  @routes.post("/api/vote")
  def vote(given: asked.Vote) -> Response:
    def answer() -> dict[str, Any]:
      count = play.judges.vote(given.prompt, given.answers, given.better)
      return {"votes": count, "file": play.judges.votes}

    return _answered(answer)


def _served(models: Models, name: str) -> Served:
  if name not in models.names:
    raise KeyError(name)
  return models.get(name)


def _next(served: Served, given: asked.NextToken) -> dict[str, Any]:
  coder = served.tokenizer
  if given.chat and not served.chat:
    raise ValueError(f'"{served.name}" has learned no turns')
  if any(i >= coder.vocab_size for i in given.appended):
    raise ValueError(f"token ids are 0 to {coder.vocab_size - 1}")
  if given.chat:
    context = comparing.prompt(served, given.text)[0]
  else:
    context = [coder.bos_id, *coder.encode(given.text)]
  tokens = [*context, *given.appended]
  found = probe.next_token(served, tokens, given.temperature, given.top_p, given.draw, given.top)
  # What a token adds here, spaces and all, and not what it is spelt like.
  named = {i: pieces(coder, [*tokens[-8:], int(i)])[-1] for i in (*found.ids.tolist(), found.drawn)}
  shown = zip(found.ids.tolist(), found.raw.tolist(), found.shaped.tolist(), strict=True)
  return {
    "tokens": len(tokens),
    "appended": pieces(coder, [*tokens[-8 - len(given.appended) :]])[-len(given.appended) :]
    if given.appended else [],
    "likeliest": [named[i] | {"raw": raw, "shaped": shaped} for i, raw, shaped in shown],
    "entropy": found.entropy,
    "shaped_entropy": found.shaped_entropy,
    "kept": found.kept,
    "vocabulary": coder.vocab_size,
    "drawn": named[found.drawn],
    "end": coder.end_id if given.chat else coder.eos_id,
  }  # fmt: skip


def _asks(models: Models, given: asked.Compare) -> list[tuple[str, Ask]]:
  """What each model is to draw, from one seed.

  Raises:
    KeyError: for an unknown model.
    ValueError: for a prompt or an answer that is too long.
  """
  if given.reference:
    _served(models, given.reference)
  found = []
  for name in dict.fromkeys(given.models):
    served = _served(models, name)
    tokens, end_id = comparing.prompt(served, given.prompt)
    served.engine.check_prompt(tokens)
    if given.max_tokens > served.engine.max_new:
      raise ValueError(f"an answer has 1 to {served.engine.max_new} tokens here")
    found.append((
      name, Ask(tokens, given.max_tokens, given.temperature, 0, given.top_p, given.seed, 0, end_id)
    ))  # fmt: skip
  return found


def _answered(answer: Callable[[], dict[str, Any]]) -> Response:
  try:
    # Not JSONResponse: what a run wrote may hold characters that are none, which UTF-8 cannot say.
    return Response(json.dumps(answer(), allow_nan=False), media_type="application/json")
  except OSError as error:
    return _refused(f"{error.filename or 'a file'}: {error.strerror}", 404)
  except KeyError as error:
    return _refused(_words(error), 404)
  except Full as error:
    return _refused(str(error), 429)
  except (ValueError, UserError) as error:
    return _refused(str(error), 400)


def _words(error: Exception) -> str:
  return f"there is no {ascii(error.args[0])}" if isinstance(error, KeyError) else str(error)


def _refused(why: str, status: int) -> JSONResponse:
  return JSONResponse(guards.error(why, status), status)
