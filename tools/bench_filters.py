"""How fast each per-document step is, and what it drops, over a file of JSON lines.

python -m tools.bench_filters pages.jsonl
python -m tools.bench_filters pages.jsonl.xz --field=gold --step="gopher_repetition(first=True)"
python -m tools.bench_filters pages.jsonl --config=configs/data/fineweb.py

Without --step every step that needs no file of its own. --config takes a recipe's per-document
steps one after the other, as `prepare` does: each sees what the one before left. MB are those of
UTF-8 that a step reads, seconds those of this process.
"""

import argparse
import gzip
import importlib.util
import json
import lzma
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from llm_jax.data import filters, normalize
from llm_jax.data.documents import Document
from llm_jax.data.pipeline import steps
from llm_jax.errors import UserError

_OPENERS = {"gz": gzip.open, "xz": lzma.open}
_NEED_FILES = ("blocked_urls", "c4_words")
_EDITS = ("repair", "whitespace", "rulers", "documentation")


def main(argv: list[str] | None = None) -> int:
  """Prints a Markdown table; 2 is the exit code of bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("file", help=".jsonl, .jsonl.gz or .jsonl.xz")
  parser.add_argument("--field", default="text", help="of the text")
  parser.add_argument("--megabytes", type=float, default=10, help="read at most; 0: all")
  parser.add_argument("--step", action="append", default=[], help="a spec; may be repeated")
  parser.add_argument("--config", default="", help="a file with get_config() -> config.Prepare")
  options = parser.parse_args(argv)
  try:
    documents = read(options.file, options.field, options.megabytes)
    specs = options.step + (_recipe(options.config) if options.config else [])
    found = steps.recipe(tuple(specs or default_specs()))
    chosen = [step for step in found if step.kind in ("text", "document")]
    for row in table(documents, chosen, chain=bool(options.config)):
      print(row, flush=True)
  except UserError as e:
    print(e, file=sys.stderr)
    return 2
  return 0


def read(path: str, field: str, megabytes: float) -> list[Document]:
  """Reads documents from a file of JSON lines, up to about so many megabytes of text; 0: all.

  Raises:
    UserError: if the file cannot be read, or has no text in `field`.
  """
  documents, size = [], 0
  opener = _OPENERS.get(path.rpartition(".")[2], open)
  try:
    with opener(path, "rt", encoding="utf-8") as file:
      for i, line in enumerate(file):
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
          raise UserError(f"{path}: line {i + 1} has no text in the field {field!r}; see --field")
        documents.append(Document(str(row.get("id", i)), row[field], str(row.get("url", ""))))
        size += len(row[field].encode("utf-8", "surrogatepass"))
        if 0 < megabytes * 1e6 <= size:
          break
  except (OSError, EOFError, lzma.LZMAError, ValueError) as e:
    raise UserError(f"{path}: cannot be read as JSON lines ({e})") from e
  return documents


def default_specs() -> list[str]:
  """All rules and edits that need no file."""
  rules = [name for name in filters.__all__ if name not in _NEED_FILES]
  return [f"{filters.__name__}:{name}" for name in rules] + [
    f"{normalize.__name__}:{name}" for name in _EDITS
  ]


def table(
  documents: Sequence[Document], chosen: Sequence[steps.Step], chain: bool = False
) -> Iterator[str]:
  """Yields the lines of a table, one for each step.

  Args:
    documents: to judge or edit.
    chosen: per-document steps.
    chain: each step gets what the one before left; else all get `documents`.
  """
  yield "| step | MB/s | us per document | dropped | of it most |"
  yield "|---|--:|--:|--:|---|"
  total, first = 0.0, _size(documents)
  for step in chosen:
    left, dropped, seconds = run(documents, step)
    total += seconds
    size, count = _size(documents), max(len(documents), 1)
    most = "; ".join(f"{reason} {n / count:.1%}" for reason, n in dropped.most_common(3))
    name = step.name.removeprefix(f"{filters.__name__}:").removeprefix(f"{normalize.__name__}:")
    name = name if len(name) < 60 else f"{name[:57]}..."
    rate, each = size / 1e6 / max(seconds, 1e-9), seconds / count * 1e6
    yield f"| {name} | {rate:.1f} | {each:.0f} | {dropped.total() / count:.1%} | {most} |"
    documents = left if chain else documents
  if chain:
    yield f"| all | {first / 1e6 / max(total, 1e-9):.1f} | | | {len(documents)} left |"


def run(
  documents: Sequence[Document], step: steps.Step
) -> tuple[list[Document], Counter[str], float]:
  """Returns what a step leaves, what it drops for which reason, and its seconds of CPU time."""
  assert step.run
  given = documents if step.kind == "document" else [document.text for document in documents]
  for one in given[:1]:
    step.run(one)  # Loads what the step needs.
  begin = time.process_time()
  results = [step.run(one) for one in given]
  seconds = time.process_time() - begin
  left, dropped = [], Counter()
  for document, result in zip(documents, results, strict=True):
    if step.kind == "document":
      reason = result
    else:
      reason = None if result else "nothing left"
      document = Document(document.id, result, document.url, document.source)
    if reason:
      dropped[reason] += 1
    else:
      left.append(document)
  return left, dropped, seconds


def _recipe(path: str) -> list[str]:
  spec = importlib.util.spec_from_file_location("recipe", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path}: want a Python file with get_config()")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror})") from e
  return list(module.get_config().recipe)


def _size(documents: Sequence[Document]) -> int:
  return sum(len(d.text.encode("utf-8", "surrogatepass")) for d in documents)


if __name__ == "__main__":
  sys.exit(main())
