"""Tokens a second of the endpoint: one stream alone, and many at a time.

python -m tools.bench_serve --workdir=runs/quickstart
python -m tools.bench_serve --workdir=runs/quickstart --model=ppo --streams=8,32 --json=serve.json

Starts `tools.serve` in a process of its own on a free port of this machine, and asks it for
completions of --new tokens over HTTP. Both sides run on the same cores. The first round compiles
and is not counted.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, NamedTuple

from llm_jax.errors import UserError
from tools import _figures, serve

_START = 120.0  # Seconds that the server may take to start.


class Stream(NamedTuple):
  """What came of one request.

  Attributes:
    tokens: of the answer.
    first: seconds until its first piece.
    seconds: in all.
  """

  tokens: int
  first: float
  seconds: float


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--workdir", default="runs/quickstart", help="a run of the pipeline")
  parser.add_argument("--model", default="pretrain", help="which of its models")
  parser.add_argument("--streams", default="32", help="so many at a time; one number or several")
  parser.add_argument("--new", type=int, default=200, help="tokens of an answer")
  parser.add_argument("--rounds", type=int, default=3, help="that are counted")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options = parser.parse_args(argv)
  return _figures.finish(lambda: measured(options), table, options.json)


def measured(options: argparse.Namespace) -> dict:
  """Returns the figures.

  Raises:
    UserError: if an option is out of range, or the server does not start or answer.
  """
  numbers = options.streams.split(",")
  if not all(n.strip().isdecimal() and int(n) for n in numbers) or min(
    options.new, options.rounds
  ) < 1:  # fmt: skip
    raise UserError("--streams must be numbers above 0, --new and --rounds at least 1")
  found = {"model": options.model, "new": options.new, "rows": []}
  with server(options) as port:
    for count in (1, *map(int, numbers)):
      rounds = [_round(port, options, count) for _ in range(options.rounds + 1)][1:]
      found["rows"].append({"streams": count, "tokens_per_second": [r[0] for r in rounds],
                            "first_seconds": [r[1] for r in rounds]})  # fmt: skip
  return found


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[int]:
  """Starts the server; gives its port, and ends it."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  words = [sys.executable, "-m", "tools.serve", f"--workdir={options.workdir}", f"--port={port}"]
  words.append(f"--max_new={max(256, options.new)}")
  free_for_all = {name: value for name, value in os.environ.items() if name != serve.TOKEN}
  with tempfile.TemporaryFile("w+") as log:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log, env=free_for_all)
    try:
      _wait(process, port, log)
      yield port
    finally:
      process.terminate()
      process.wait(30)


def _wait(process: subprocess.Popen, port: int, log: IO[str]) -> None:
  deadline = time.time() + _START
  while time.time() < deadline:
    if process.poll() is not None:
      log.seek(0)
      raise UserError(f"tools.serve ended: {log.read().strip()[-300:]}")
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
      return
    time.sleep(0.1)
  raise UserError(f"tools.serve did not answer within {_START:.0f} s")


def _round(port: int, options: argparse.Namespace, count: int) -> tuple[float, float]:
  """Returns tokens a second of `count` streams together, and the slowest one's first piece."""
  start = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    streams = list(pool.map(lambda seed: stream(port, options, seed), range(count)))
  whole = time.perf_counter() - start
  return sum(one.tokens for one in streams) / whole, max(one.first for one in streams)


def stream(port: int, options: argparse.Namespace, seed: int) -> Stream:
  """Asks for one answer, and reads it as it comes.

  Raises:
    UserError: if the server refuses.
  """
  body = {"model": options.model, "prompt": f"Module {seed}\n", "max_tokens": options.new,
          "seed": seed, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
  start, first, tokens = time.perf_counter(), 0.0, 0
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
  with contextlib.closing(connection):
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    if reply.status != 200:
      raise UserError(f"the server says {reply.status}: {reply.read().decode()[:300]}")
    for line in reply:
      if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        continue
      first = first or time.perf_counter() - start
      if b'"usage"' in line:
        tokens = json.loads(line[6:])["usage"]["completion_tokens"]
  if not tokens:
    raise UserError("a stream ended without tokens; see the server's log")
  return Stream(tokens, first, time.perf_counter() - start)


def table(figures: dict) -> str:
  """Returns the figures as Markdown."""
  lines = [
    f"{figures['model']}, answers of up to {figures['new']} tokens", "",
    "| streams | tokens/s together | median over one stream's | slowest first piece, ms |",
    "|--:|--:|--:|--:|",
  ]  # fmt: skip
  one = statistics.median(figures["rows"][0]["tokens_per_second"])
  for row in figures["rows"]:
    rates = row["tokens_per_second"]
    shown = ", ".join(f"{rate:,.0f}" for rate in rates)
    first = 1000 * statistics.median(row["first_seconds"])
    lines.append(
      f"| {row['streams']} | {shown} | {statistics.median(rates) / one:.1f} | {first:.0f} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
