"""Shows what files of post-training data hold: format, kind, rows, what is kept, and why not all.

python -m tools.inspect_data talks.json.gz pairs.jsonl           # every kind that they hold
python -m tools.inspect_data pairs.jsonl --kind=labels --show=3   # one kind, and the first three

Formats: docs/posttraining.md. Kinds: conversations, preferences, labels, rankings.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_jax.data import formats
from llm_jax.data.formats import Conversation, Labelled, Messages, Preference, Ranking, Table
from llm_jax.data.intake import Intake
from llm_jax.data.readers.streams import Lost
from llm_jax.errors import UserError

_HEAD: tuple[str, ...] = ("file", "format", "kind", "rows", "kept", "dropped")
_MOST = 300  # Characters shown of a text.
_LINES = 5  # Rows of a file that are named which cannot be read.


def main(argv: list[str] | None = None) -> int:
  """Prints a table of files, and a line for all that cannot be read; 2: there was something."""
  options = _parser().parse_args(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore
  rows, shown, errors = [_HEAD], [], []
  for file in options.files:
    intake = Intake("", most=math.inf)
    try:
      for table in tables(file, options.kind, options.format, intake.lose):
        rows.append(_row(file, table))
        for number, item in enumerate(table.items[: max(options.show, 0)], 1):
          shown += ["", f"── {Path(file).name} · {table.kind} · {number}", *_item(item)]
    except UserError as error:
      errors.append(str(error))
    errors += intake.lines(_LINES)
  try:
    for line in [*(_aligned(rows) if rows[1:] else ()), *shown]:
      print(line)
    for error in errors:
      print(f"error: {error}", file=sys.stderr)
  except BrokenPipeError:
    sys.stderr.close()
  return 2 if errors else 0


def tables(
  file: str, kind: str = "", format: str = "", lost: Callable[[Lost], None] = formats.refuse
) -> Iterator[Table]:
  """Yields what a file holds.

  Args:
    file: as `llm_jax.data.formats.read` takes it.
    kind: the one to read; "": all that it holds without being worked out from another.
    format: what it must be; "": what it is found to be.
    lost: as `llm_jax.data.formats.read` takes it.

  Raises:
    UserError: if it cannot be read, or does not hold the kind.
  """
  for wanted in (kind,) if kind else formats.detect(file, format, lost).reads:
    yield formats.read(file, wanted, format, lost)


def _row(file: str, table: Table) -> tuple[str, ...]:
  lost = {"cannot be read": sum(table.lost.values())} if table.lost else {}
  drops = "; ".join(f"{name} {count:,}" for name, count in (table.drops | lost).items())
  count, kept = f"{table.rows:,}", f"{len(table.items):,}"
  return Path(file).name, table.format, table.kind, count, kept, drops or "-"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
  """Yields rows in columns, numbers to the right."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
  for row in rows:
    cells = [
      cell.rjust(width) if name in ("rows", "kept") else cell.ljust(width)
      for name, cell, width in zip(_HEAD, row, widths, strict=True)
    ]
    yield "  ".join(cells).rstrip()


def _item(item: Conversation | Preference | Labelled | Ranking) -> Iterator[str]:
  if isinstance(item, Conversation):
    yield from _said(item.messages, item.learned())
  else:
    yield from _said(item.prompt)
  if isinstance(item, Preference):
    yield from _text(f"chosen (probability {item.probability:.3g})", item.chosen)
    yield from _text(f"rejected (margin {item.margin:g})", item.rejected)
  elif isinstance(item, Labelled):
    yield from _text("desirable" if item.desirable else "undesirable", item.answer)
  elif isinstance(item, Ranking):
    for rank, answer in sorted(zip(item.ranks, item.answers, strict=True)):
      yield from _text(f"rank {rank:g}", answer)
  about = {"source": item.source, "group": getattr(item, "group", "")}
  yield from (f"{name}: {_visible(str(value))}" for name, value in about.items() if value != "")


def _said(messages: Messages, learned: Sequence[int] = ()) -> Iterator[str]:
  for i, message in enumerate(messages):
    yield from _text(message["role"] + (", learned" if i in learned else ""), message["content"])


def _text(title: str, text: str) -> Iterator[str]:
  lines = _visible(text[:_MOST]).split("\n")
  more = f" ... {len(text) - _MOST:,} characters more" if len(text) > _MOST else ""
  yield f"[{title}] {lines[0]}{'' if lines[1:] else more}"
  for i, line in enumerate(lines[1:], 2):
    yield f"    {line}{more if i == len(lines) else ''}"


def _visible(text: str) -> str:
  """Nothing that a file holds may steer the terminal."""
  return "".join(
    c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("files", nargs="+", metavar="FILE", help=".jsonl, .json, .parquet")
  parser.add_argument("--kind", default="", help=f"one of {', '.join(formats.KINDS)}")
  parser.add_argument("--format", default="", help="the format that the files must be of")
  parser.add_argument("--show", type=int, default=0, metavar="N", help="items to show of each")
  return parser


if __name__ == "__main__":
  sys.exit(main())
