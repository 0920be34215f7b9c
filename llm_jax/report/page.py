"""One self-contained report.html of a run: it opens from a disk and loads nothing."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import llm_jax
from llm_jax.report.corpus import corpus
from llm_jax.report.cost import cost
from llm_jax.report.data import data
from llm_jax.report.drawings import charts
from llm_jax.report.frontier import frontier
from llm_jax.report.headline import headline
from llm_jax.report.language import answers, next_token
from llm_jax.report.load import Run, load
from llm_jax.report.markup import Html, dig, el, esc, join, slug
from llm_jax.report.policies import policies
from llm_jax.report.reward import reward
from llm_jax.report.tables import named_tables, replace, save
from llm_jax.report.training import training

LIMIT = 1_900_000  # Bytes of the finished page.
DRAWING = ("uplot/uPlot.iife.min.js", "theme.js", "numbers.js", "charts.js", "svg.js", "export.js")
SCRIPTS = (*DRAWING, "answers.js")
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

  A folder that `experiments.prepare` wrote gets the sections on its data, from manifest.json, and
  the workdir of one stage (metrics.jsonl and config.json) those on its training.

  What a run did not record is named as such; a run in progress can be rendered. The page holds
  every script, style and number that it shows, and is smaller than 2 MB: long runs are drawn
  with fewer points, each the mean of consecutive rows, and the page says so.

  Returns:
    The path of the page.

  Raises:
    UserError: `workdir` holds no run, or one of its files is malformed.
  """
  target = Path(workdir) / "report.html"
  write(target, lambda points: render(load(workdir, points)))
  return target


def write(target: Path, rendered: Callable[[int], str]) -> None:
  """Writes the page that `rendered` makes of at most so many points a curve, small enough."""
  text = ""
  for points in (500, 250, 120, 60, 30):
    text = rendered(points)
    if len(text.encode()) <= LIMIT:
      break
  replace(target, text)


def export(workdir: Path | str, directory: Path | str) -> list[Path]:
  """Writes the tables of a run's page as CSV and its charts as SVG, without a browser.

  Returns:
    The paths of the files.

  Raises:
    UserError: `workdir` holds no run, or the directory cannot be written.
  """
  return files(render(load(workdir)), directory)


def files(text: str, directory: Path | str) -> list[Path]:
  """Writes the tables and the charts of a page as files; returns their paths."""
  _, _, rest = text.partition('<script type="application/json" id="payload">')
  payload, _, _ = rest.partition("</script>")
  return save(directory, text, charts(json.loads(payload), text))


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
  if run.single:
    paid = "objective/kl" in run.curves[run.single].series
    sections = [curves, *([frontier(run)] if paid else []), cost(run)]
    links = [
      ("training", "Training"),
      *[("frontier", "Reward and KL")] * paid,
      ("cost", "To run it again"),
    ]
  return page(run.workdir.resolve().name, _facts(run), links, sections, payload, SCRIPTS)


def page(
  name: str,
  facts: Html,
  links: Sequence[tuple[str, str]],
  sections: Sequence[Html],
  payload: dict[str, Any],
  names: Sequence[str],
) -> str:
  """Returns a page that loads nothing.

  Args:
    name: its title.
    facts: the line below it.
    links: (anchor, words) of the sections.
    sections: what it shows.
    payload: what its scripts draw.
    names: of its scripts.
  """
  scripts = [_static(script) for script in names]
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
    _header(name, facts, links),
    named_tables(el("main", *sections)),
    el("footer", f"Made by llm_jax {llm_jax.__version__} from the files of the run."),
    el("script", Html(as_json(payload)), type="application/json", id="payload"),
    Html(f"<!--\nThe charts are drawn by uPlot.\n{esc(_static('uplot/LICENSE'))}-->"),
    *(el("script", Html(text)) for text in scripts),
    data_name=slug(name),
  )
  return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def as_json(value: Any) -> str:
  """Returns JSON that is safe inside a script element: `<`, `>` and `&` are escaped."""
  text = json.dumps(value, separators=(",", ":"), allow_nan=False)
  return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(run: Run) -> Html:
  seed = dig(run.summary, "seed")
  facts = [f"seed {seed}" if seed is not None else "", dig(run.summary, "machine.device")]
  return join((fact for fact in facts if fact), " · ")


def _header(name: str, facts: Html, links: Sequence[tuple[str, str]]) -> Html:
  toggle = el("button", "Theme", type="button", id="theme", aria_label="Switch light and dark")
  anchors = [el("a", title, href=f"#{anchor}") for anchor, title in links]
  title = el("div", el("h1", name), el("p", facts), cls="title")
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
