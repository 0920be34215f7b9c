r"""Measures the search for repeated substrings on JSONL files: speed, memory, what it finds.

python -m tools.bench_substrings corpus.jsonl.gz --tokens=50 --part_mb=4 --partitions=8 --examples=3

One process and one part of the corpus at a time, through files, as a pipeline of any size does it.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.data import formats
from llm_jax.data.dedup import substrings
from llm_jax.errors import UserError

_SHOWN = 200  # Characters of an example.


def main(argv: list[str] | None = None) -> int:
  """Prints a table of the phases, then the largest repeats with the text before them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("files", nargs="+", help='JSONL or JSONL.gz of {"text"}')
  parser.add_argument("--tokens", type=int, default=substrings.TOKENS)
  parser.add_argument("--part_mb", type=float, default=4.0)
  parser.add_argument("--partitions", type=int, default=8)
  parser.add_argument("--examples", type=int, default=3)
  parser.add_argument("--both", action="store_true", help="the first occurrence goes, too")
  options = parser.parse_args(argv)
  try:
    with tempfile.TemporaryDirectory() as folder:
      print(run(options, Path(folder)))
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


def run(options: argparse.Namespace, folder: Path) -> str:
  """Runs all phases and returns the report; the texts are read again for each phase."""
  tokens, keep = options.tokens, not options.both
  clock = _Clock()
  size = count = left = number = 0
  for number, texts in enumerate(_parts(options), 1):
    rows = clock("windows", substrings.windows, texts, tokens)
    np.save(folder / f"windows{number - 1}.npy", rows)
    count += len(rows)
    size += sum(map(len, texts))
  files = [folder / f"windows{i}.npy" for i in range(number)]
  repeats = [folder / f"repeats{p}.npy" for p in range(options.partitions)]
  for p, file in enumerate(repeats):
    np.save(file, clock("repeated", substrings.repeated, files, p, len(repeats)))
  quotes = []
  for i, texts in enumerate(_parts(options)):
    rows = substrings.of_part(repeats, i)
    quotes.append(clock("quote", substrings.quote, texts, rows, tokens, keep))
  largest: list[tuple[int, str, str]] = []
  repeated = spans = 0
  for i, texts in enumerate(_parts(options)):
    rows = substrings.of_part(repeats, i)
    found = clock("spans", substrings.spans, texts, rows, quotes.__getitem__, tokens, keep)
    for text, own in zip(texts, found, strict=True):
      left += len(clock("cut", substrings.cut, text, own))
      spans += len(own)
      repeated += sum(b - a for a, b in own)
      largest += [(b - a, text[max(a - 60, 0) : a], text[a:b]) for a, b in own]
    largest = sorted(largest, reverse=True)[: options.examples]
  lines = [f"| {name} | {s:.2f} | {size / 1e6 / s:.1f} |" for name, s in clock.seconds.items()]
  total = sum(clock.seconds.values())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return "\n".join(
    [
      "| phase | CPU seconds | MB/s |\n|---|--:|--:|",
      *lines,
      f"| all | {total:.2f} | {size / 1e6 / total:.1f} |",
      f"\n{size / 1e6:.1f} MB of characters in {number} parts, {count} windows of {tokens} words",
      f"{spans} spans, {repeated / max(size, 1):.2%} of the text; {size - left} characters cut",
      f"peak memory {peak:.0f} MiB; windows on disk {count * 12 / 2**20:.0f} MiB",
      *(f"\n[{n} characters] ...{before!r} >>> {text[:_SHOWN]!r}" for n, before, text in largest),
    ]
  )


class _Clock:
  """Adds up the CPU time of calls by name."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  def __call__(self, name: str, fn: Callable, *arguments: Any) -> Any:
    start = time.process_time()
    out = fn(*arguments)
    self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
    return out


def _parts(options: argparse.Namespace) -> Iterator[list[str]]:
  """Yields the texts of all files in lists of about `part_mb` million characters."""
  texts, size = [], 0
  for file in options.files:
    for row in formats.read_rows(file):
      text = row.value.get("text")
      if not isinstance(text, str):
        raise formats.bad_row(file, row.number, '"text" must be a string')
      texts.append(text)
      size += len(text)
      if size >= options.part_mb * 1e6:
        yield texts
        texts, size = [], 0
  if texts:
    yield texts


if __name__ == "__main__":
  sys.exit(main())
