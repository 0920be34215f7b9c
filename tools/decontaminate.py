"""Evaluation sets against a corpus: builds the index, counts, and says which rows a corpus has.

python -m tools.decontaminate build --eval=gsm8k=eval/gsm8k.jsonl --eval=eval/more/ --out=runs/index
python -m tools.decontaminate report --index=runs/index --corpus=corpus.jsonl --out=runs/overlap
python -m tools.decontaminate count --index=runs/index --corpus=corpus.jsonl

A recipe then drops what was found with `decontaminate(index='runs/index')`, or cuts it out with
`without_overlap(index='runs/index')`. `count` makes their `frequent=10` possible, which passes over
n-grams that more than ten documents of the corpus have.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_jax.data import decontaminate
from llm_jax.errors import UserError
from tools import _documents


def main(argv: list[str] | None = None) -> int:
  """Runs one of the commands; 2 is the exit code of bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, dest="command", metavar="build|count|report")
  for command, arguments in ((_build, _BUILD), (_count, _CORPUS), (_report, _REPORT)):
    own = commands.add_parser(command.__name__[1:], help=str(command.__doc__))
    for name, options in arguments.items():
      own.add_argument(f"--{name}", **options)
    own.set_defaults(run=command)
  options = parser.parse_args(argv)
  try:
    options.run(options)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def sources(given: Sequence[str], fields: Sequence[str]) -> list[decontaminate.Source]:
  """Returns the evaluation sets of "PATH" or "NAME=PATH", with fields from "NAME=field,field".

  Raises:
    UserError: if a path has nothing to read, or fields are given for a set that there is not.
  """
  found: list[decontaminate.Source] = []
  for text in given:
    name, mark, path = text.partition("=")
    found += decontaminate.expand(path, name) if mark else decontaminate.expand(text)
  chosen = dict(item.split("=", 1) for item in fields if "=" in item)
  unknown = sorted({*chosen, *(f for f in fields if "=" not in f)} - {s.name for s in found})
  if unknown:
    names = ", ".join(s.name for s in found)
    raise UserError(f"--fields={unknown[0]}: want NAME=field,field with a NAME of {names}")
  return [
    decontaminate.Source(s.name, s.path, tuple(filter(None, chosen.get(s.name, "").split(","))))
    for s in found
  ]


def built(facts: dict[str, Any]) -> str:
  """Returns what is protected, as a Markdown table."""
  lines = ["| evaluation set | rows | words | whole only | unprotected |", "|---|--:|--:|--:|--:|"]
  lines += [
    f"| {s['name']} | {s['rows']} | {s['words']} | {s['short']} | {s['unprotected']} |"
    for s in facts["sets"]
  ]
  n, least = facts["n"], facts["least"]
  return "\n".join([*lines, "", f"runs of {n} words; shorter texts whole, from {least} words on"])


def found(report: dict[str, Any]) -> str:
  """Returns which sets a corpus has rows of, as a Markdown table with examples below."""
  lines = [
    "| evaluation set | rows | unprotected | hit | share | 80 % covered | documents |",
    "|---|--:|--:|--:|--:|--:|--:|",
  ]
  lines += [
    f"| {s['name']} | {s['rows']} | {s['unprotected']} | {s['hit']} | {s['share']:.4f} "
    f"| {s['dirty']} | {s['documents']} |"
    for s in report["sets"]
  ]
  for s in report["sets"]:
    lines += [
      f"{s['name']} row {r['row']}: {r['share']:.0%} covered, {r['documents']} documents, first in "
      f"{r['document']}: {r['gram']}"
      for r in s["examples"][:2]
    ]
  return "\n".join(lines)


def _build(options: argparse.Namespace) -> None:
  """Builds the index of evaluation sets."""
  sets = sources(options.eval, options.fields)
  facts = decontaminate.build(sets, options.out, options.n, options.least, options.numbers)
  print(built(facts))
  print(f"\nwrote {options.out}: index.npz, index.json")


def _count(options: argparse.Namespace) -> None:
  """Counts the documents of a corpus that have each n-gram."""
  lost: Counter[str] = Counter()
  documents = _documents.read(options.corpus, options.extractor, lost)
  corpus = ", ".join(options.corpus)
  counted = decontaminate.count(documents, options.index, corpus, options.workers)
  print(_documents.told(lost), end="")
  print(f"{counted['found']:,} n-grams found in {counted['documents']:,} documents")


def _report(options: argparse.Namespace) -> None:
  """Says which evaluation rows a corpus has, and writes them."""
  begin = time.monotonic()
  lost: Counter[str] = Counter()
  documents = _documents.read(options.corpus, options.extractor, lost)
  report = decontaminate.report(documents, options.index, options.frequent, options.workers)
  seconds = time.monotonic() - begin
  options.out.mkdir(parents=True, exist_ok=True)
  rows = report.pop("rows")
  lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  (options.out / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
  (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
  print(_documents.told(lost), end="")
  print(found(report))
  size = report["bytes"] / 1e6
  print(
    f"\n{report['contaminated']:,} of {report['documents']:,} documents, {size:.1f} MB in "
    f"{seconds:.1f} s; wrote {options.out}: report.json, rows.jsonl"
  )


_BUILD: dict[str, dict[str, Any]] = {
  "eval": {
    "action": "append",
    "required": True,
    "metavar": "[NAME=]PATH",
    "help": "a file, or a folder of which each file is a set; may be repeated",
  },
  "fields": {
    "action": "append",
    "default": [],
    "metavar": "NAME=FIELD,FIELD",
    "help": "fields of a set that are protected; all texts of its rows without",
  },
  "n": {"type": int, "default": 13, "help": "words of an n-gram"},
  "least": {"type": int, "default": 8, "help": "words of a shorter text that is protected whole"},
  "numbers": {"action": "store_true", "help": "protect runs of numbers alone, too"},
  "out": {"type": Path, "required": True, "help": "folder of the index"},
}
_CORPUS: dict[str, dict[str, Any]] = {
  "index": {"required": True, "help": "folder of the index"},
  "corpus": {"action": "append", "required": True, "help": "a file or folder; may be repeated"},
  "extractor": {"default": "trafilatura", "help": "how HTML becomes text"},
  "workers": {"type": int, "default": 1, "help": "processes"},
}
_REPORT: dict[str, dict[str, Any]] = _CORPUS | {
  "frequent": {"type": int, "default": 0, "help": "pass over n-grams of more documents; 0: none"},
  "out": {"type": Path, "required": True, "help": "folder of report.json and rows.jsonl"},
}


if __name__ == "__main__":
  sys.exit(main())
