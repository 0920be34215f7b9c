"""Shows what deduplication found: clusters, and two documents with the words that differ marked.

python -m tools.inspect_duplicates --found=out --source=docs.jsonl            # the largest clusters
python -m tools.inspect_duplicates --found=out --source=docs.jsonl --id=d17   # why d17 went
python -m tools.inspect_duplicates --found=runs/mine/dropped/duplicates_threshold_0_8 \\
  --source=runs/mine/dropped/dropped.jsonl                          # of a corpus that was prepared
"""

import argparse
import collections
import difflib
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from llm_jax.data import jsonl
from llm_jax.data.dedup.differing import differing
from llm_jax.errors import UserError

RED, GREEN, BOLD, DIM, END = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[2m", "\x1b[0m"
_WIDTH = 100
_AROUND = 8  # Equal words shown on either side of a difference.


def main(argv: list[str] | None = None) -> int:
  """Prints to the terminal; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--found", type=pathlib.Path, required=True, help="holds clusters.jsonl")
  parser.add_argument("--source", type=pathlib.Path, help="the JSONL with the texts, or a folder")
  parser.add_argument("--id", default="", help="show this document beside the one that stays")
  parser.add_argument("--clusters", type=int, default=5, help="how many of the largest to show")
  parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
  options = parser.parse_args(argv)
  paint = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
  try:
    lines = pair(options) if options.id else overview(options)
    for line in lines:
      print(line if paint else re.sub(r"\x1b\[\d+m", "", line))
  except UserError as error:
    print("error:", error, file=sys.stderr)
    return 2
  except BrokenPipeError:
    sys.stderr.close()
  return 0


def overview(options: argparse.Namespace) -> Iterator[str]:
  """Sizes of all clusters, then the largest, each with its first pair."""
  clusters = _rows(options.found, "clusters.jsonl")
  removed = {str(row["id"]): row for row in _rows(options.found, "removed.jsonl")}
  sizes = collections.Counter(len(row["members"]) for row in clusters)
  yield f"{BOLD}{len(clusters):,} clusters, {len(removed):,} documents go{END}"
  most = max(sizes.values(), default=0)
  for size, count in sorted(sizes.items()):
    yield f"  {size:>6,} members  {count:>8,}  {'#' * -(-40 * count // most)}"
  largest = sorted(clusters, key=lambda row: (-len(row["members"]), str(row["cluster"])))
  largest = largest[: options.clusters]
  texts = _texts(options.source, {str(m) for row in largest for m in row["members"]})
  for row in largest:
    yield ""
    yield f"{BOLD}cluster {row['cluster']}{END}, {len(row['members'])} members"
    gone = [m for m in row["members"] if str(m) in removed]
    for member in gone[:10]:
      fact = removed[str(member)]
      yield f"  {member} -> {fact['kept']}  {fact['rule']}, similarity {fact['score']:.3f}"
    if len(gone) > 10:
      yield f"  {DIM}and {len(gone) - 10} more{END}"
    if gone and texts:
      yield from _beside(removed[str(gone[0])], texts)


def pair(options: argparse.Namespace) -> Iterator[str]:
  """One document that went, beside the one that stays.

  Raises:
    UserError: if it did not go.
  """
  removed = {str(row["id"]): row for row in _rows(options.found, "removed.jsonl")}
  if options.id not in removed:
    near = difflib.get_close_matches(options.id, removed, 1)
    hint = f"; {near[0]} did" if near else ""
    raise UserError(f"{options.found}/removed.jsonl: {options.id} did not go{hint}")
  fact = removed[options.id]
  where = f" in {fact['in']}" if "in" in fact else ""
  yield f"{BOLD}{fact['id']}{END} went, {BOLD}{fact['kept']}{END} stays{where}"
  yield f"  {fact['rule']}, similarity {fact['score']:.4f}"
  yield from _beside(fact, _texts(options.source, {options.id, str(fact["kept"])}))


def differences(kept: str, gone: str) -> Iterator[str]:
  """Yields the differing words of two texts in their surroundings, removed red and added green."""
  marks = {"kept": (f"{RED}[-", f"-]{END}"), "gone": (f"{GREEN}{{+", f"+}}{END}"), "same": ("", "")}
  for group in differing(kept, gone, _AROUND):
    words = [f"{marks[kind][0]}{text}{marks[kind][1]}" for kind, text in group]
    yield from textwrap.wrap(
      " ".join(words), _WIDTH, initial_indent="    ", subsequent_indent="    "
    )
    yield f"    {DIM}...{END}"


def _beside(fact: Mapping, texts: Mapping[str, str]) -> Iterator[str]:
  kept, gone = texts.get(str(fact["kept"])), texts.get(str(fact["id"]))
  if gone is None:
    yield f"  {DIM}the text of {fact['id']} is not in --source{END}"
  elif kept is None:
    yield f"  {DIM}the text of {fact['kept']} is not in --source; {fact['id']} begins:{END}"
    yield from textwrap.wrap(gone[:400], _WIDTH, initial_indent="    ", subsequent_indent="    ")
  elif kept.split() == gone.split():
    yield f"  {DIM}the same words; they begin:{END}"
    yield from textwrap.wrap(gone[:400], _WIDTH, initial_indent="    ", subsequent_indent="    ")
  else:
    yield f"  {RED}[-stays-]{END} {GREEN}{{+went+}}{END}"
    yield from differences(kept, gone)


def _texts(source: pathlib.Path | None, wanted: set[str]) -> dict[str, str]:
  """The texts of these ids, from {"id", "text"} or the samples of a corpus's dropped.jsonl."""
  if source is None:
    return {}
  files: Iterable[pathlib.Path] = sorted(source.rglob("*.jsonl*")) if source.is_dir() else [source]
  found: dict[str, str] = {}
  for file in files:
    for _, row in jsonl.rows(jsonl.Range(str(file))):
      if str(row.get("id")) in wanted and ("text" in row or "sample" in row):
        found[str(row["id"])] = str(row.get("text", row.get("sample")))
  return found


def _rows(folder: pathlib.Path, name: str) -> list[dict]:
  path = folder / name
  if not path.exists():
    raise UserError(f"--found={folder}: no {name} there; give a folder that deduplication wrote")
  return [row for _, row in jsonl.rows(jsonl.Range(str(path)))]


if __name__ == "__main__":
  sys.exit(main())
