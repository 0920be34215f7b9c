"""One self-contained report.html of a run: it opens from a disk and loads nothing."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from llm_jax.report.corpus import corpus
from llm_jax.report.cost import cost
from llm_jax.report.data import data
from llm_jax.report.frontier import frontier
from llm_jax.report.headline import headline
from llm_jax.report.language import answers, next_token
from llm_jax.report.load import Run, load
from llm_jax.report.markup import Html, dig, el, esc, join
from llm_jax.report.policies import policies
from llm_jax.report.reward import reward
from llm_jax.report.training import training

LIMIT = 1_900_000  # Bytes of the finished page.
SCRIPTS = ("uplot/uPlot.iife.min.js", "theme.js", "charts.js", "answers.js")
STYLES = ("uplot/uPlot.min.css", "base.css", "parts.css")
LINKS = (
  ("headline", "Figures"),
  ("data", "Data"),
  ("corpus", "Corpus"),
  ("training", "Training"),
  ("next-token", "Next token"),
  ("answers", "Answers"),
  ("policies", "Policies"),
  ("reward", "Reward model"),
  ("frontier", "Reward and KL"),
  ("cost", "Time"),
)


def build(workdir: Path | str) -> Path:
  """Writes `workdir/report.html` from summary.json, config.json and <stage>/metrics.jsonl.

  A folder that `experiments.prepare` wrote gets the sections on its data, from manifest.json.

  What a run did not record is named as such; a run in progress can be rendered. The page holds
  every script, style and number that it shows, and is smaller than 2 MB: long runs are drawn
  with fewer points, each the mean of consecutive rows, and the page says so.

  Returns:
    The path of the page.

  Raises:
    UserError: `workdir` holds no run, or one of its files is malformed.
  """
  target = Path(workdir) / "report.html"
  text = ""
  for points in (500, 250, 120, 60, 30):
    text = render(load(workdir, points))
    if len(text.encode()) <= LIMIT:
      break
  # A reader never sees half a page.
  part = target.with_suffix(".html.part")
  part.write_text(text, encoding="utf-8")
  part.replace(target)
  return target


def render(run: Run) -> str:
  """Returns the page of a run."""
  curves, payload = training(run)
  links = LINKS
  sections = [
    headline(run),
    data(run),
    corpus(run.summary),
    curves,
    next_token(run),
    answers(run),
    policies(run),
    reward(run),
    frontier(run),
    cost(run),
  ]
  if run.only_corpus:
    links, sections = LINKS[1:3], [data(run), corpus(run.summary)]
  scripts = [_static(name) for name in SCRIPTS]
  name = run.workdir.resolve().name
  head = el(
    "head",
    Html('<meta charset="utf-8">'),
    Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
    Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">'),
    Html('<link rel="icon" href="data:,">'),
    el("title", f"{name} · llm_jax report"),
    el("style", Html("\n".join(_static(style) for style in STYLES))),
  )
  body = el(
    "body",
    _header(run, name, links),
    el("main", *sections),
    el("footer", "Made by llm_jax ", dig(run.summary, "version"), " from the files of the run."),
    el("script", Html(as_json(payload)), type="application/json", id="payload"),
    Html(f"<!--\nThe charts are drawn by uPlot.\n{esc(_static('uplot/LICENSE'))}-->"),
    *(el("script", Html(text)) for text in scripts),
  )
  return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def as_json(value: Any) -> str:
  """Returns JSON that is safe inside a script element: `<`, `>` and `&` are escaped."""
  text = json.dumps(value, separators=(",", ":"), allow_nan=False)
  return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _header(run: Run, name: str, links: Sequence[tuple[str, str]]) -> Html:
  toggle = el("button", "Theme", type="button", id="theme", aria_label="Switch light and dark")
  seed = dig(run.summary, "seed")
  facts = [f"seed {seed}" if seed is not None else "", dig(run.summary, "machine.device")]
  line = join((fact for fact in facts if fact), " · ")
  anchors = [el("a", title, href=f"#{anchor}") for anchor, title in links]
  title = el("div", el("h1", name), el("p", line), cls="title")
  return join((el("header", title), el("nav", el("div", *anchors), toggle)))


def _static(name: str) -> str:
  """A file of the report's own, or of those that every page has."""
  for package in ("llm_jax.report", "llm_jax"):
    path = resources.files(package) / "static" / name
    if path.is_file():
      return path.read_text(encoding="utf-8")
  raise FileNotFoundError(name)


def _policy(scripts: list[str]) -> str:
  """Only these very scripts may run, and nothing may be fetched from anywhere."""
  hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
  allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
  parts = ("default-src 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'")
  return "; ".join((*parts, "img-src data:", "base-uri 'none'", "form-action 'none'"))
