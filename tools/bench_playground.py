"""How fast the playground is for the one who looks at it: first paint, and the next token.

python -m tools.playground --workdir=runs/quickstart &
python -m tools.bench_playground --url=http://127.0.0.1:8000 --json=playground.json

The first paint is Chromium's own figure for a page that it has not seen (first-contentful-paint);
without Chromium and the extra `browser` it is left out. The next token is asked for over HTTP, for
contexts that grow word by word; the first question of each size compiles and is not counted.
"""

import argparse
import http.client
import json
import pathlib
import shutil
import statistics
import sys
import time
import urllib.parse
from typing import Any

from llm_jax.errors import UserError
from tools import _figures

_WORDS = (
  "Return an iterator over the items of a table whose rows are sorted by their names . ".split()
)
_COUNTS = (4, 16, 64, 160)  # Words of a context.


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a playground that runs")
  parser.add_argument("--model", default="sft", help="which of its models")
  parser.add_argument("--rounds", type=int, default=9, help="pages, and questions of each size")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options = parser.parse_args(argv)
  return _figures.finish(lambda: measured(options), table, options.json)


def measured(options: argparse.Namespace) -> dict[str, Any]:
  """Returns milliseconds.

  Raises:
    UserError: if an option is out of range, or no playground answers.
  """
  address = urllib.parse.urlsplit(options.url)
  if options.rounds < 1 or address.scheme != "http" or not address.hostname:
    raise UserError("--rounds must be at least 1, and --url like http://127.0.0.1:8000")
  rows = [
    {"words": count, "milliseconds": _questions(address, options, count)} for count in _COUNTS
  ]
  return {"model": options.model, "paint": _paints(options), "next": rows}


def _questions(
  address: urllib.parse.SplitResult, options: argparse.Namespace, count: int
) -> list[float]:
  found = []
  for number in range(options.rounds + 1):
    words = [_WORDS[(i + number) % len(_WORDS)] for i in range(count)]
    body = json.dumps({"model": options.model, "text": " ".join(words)})
    start = time.perf_counter()
    try:
      connection = http.client.HTTPConnection(
        address.hostname or "", address.port or 80, timeout=60
      )
      connection.request("POST", "/api/next", body, {"content-type": "application/json"})
      reply = connection.getresponse()
      text = reply.read().decode()
      connection.close()
    except OSError as error:
      raise UserError(f"--url={options.url}: {error}; start tools.playground first") from error
    if reply.status != 200:
      raise UserError(f"--url={options.url}: it says {reply.status}: {text[:300]}")
    found.append(1000 * (time.perf_counter() - start))
  return found[1:]


def _paints(options: argparse.Namespace) -> list[float]:
  """Of each page; [] without a browser."""
  program = shutil.which("chromium") or shutil.which("chromium-browser")
  try:
    from playwright.sync_api import sync_playwright
  except ModuleNotFoundError:
    return []
  if not program:
    return []
  found = []
  flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
  script = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
  with sync_playwright() as started:
    browser = started.chromium.launch(executable_path=program, args=flags)
    for _ in range(options.rounds):
      context = browser.new_context()
      page = context.new_page()
      page.goto(options.url)
      page.locator(".stage-row").first.wait_for()
      found.append(page.evaluate(script))
      context.close()
    browser.close()
  return found


def table(figures: dict[str, Any]) -> str:
  """Returns the figures as Markdown."""
  rows = [("first paint", figures["paint"])] if figures["paint"] else []
  rows += [
    (f"next token after {row['words']} words", row["milliseconds"]) for row in figures["next"]
  ]
  lines = [f"model {figures['model']}", "", "| | median, ms | slowest, ms |", "|---|--:|--:|"]
  lines += [
    f"| {name} | {statistics.median(values):,.0f} | {max(values):,.0f} |" for name, values in rows
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
