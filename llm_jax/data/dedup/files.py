"""Duplicates among JSONL files: reads {"id", "text"}, writes who stays and why the others go."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data import formats
from llm_jax.data.dedup.search import find
from llm_jax.errors import UserError

Id = str | int


def deduplicate(
  source: str | os.PathLike[str],
  out: str | os.PathLike[str],
  workers: int = 1,
  threshold: float = 0.8,
) -> dict[str, Any]:
  """Removes duplicates from JSONL files of {"id", "text", ...}; the texts must fit in memory.

  Writes, replacing what an earlier call wrote: `out/kept/` with a file per source file, its lines
  unchanged and in their order; `out/removed.jsonl` with {"id", "kept", "score", "rule"};
  `out/edges.jsonl` with the verified pairs {"a", "b", "score"}; at last `out/report.json`.

  Args:
    source: a .jsonl or .jsonl.gz file, or a folder of them.
    out: folder for the results.
    workers: processes; the result is the same for any number.
    threshold: Jaccard similarity of word 5-grams at which one of two documents goes.

  Returns:
    The report: threshold, counts of documents, removals by rule, candidates, edges, clusters.

  Raises:
    UserError: if there is no file, or for the first bad row (file, line, reason).
  """
  files, out = _files(source), pathlib.Path(out)
  kept_folder = out / "kept"
  if any(kept_folder.resolve() == file.resolve().parent for file in files):
    raise UserError(f"{source} lies in {kept_folder}, which would be replaced: choose another out")
  ids, texts = _read(files)
  result = find(texts, list(ids), threshold, workers)
  (out / "report.json").unlink(missing_ok=True)  # Written last: it marks a complete result.
  if kept_folder.exists():
    shutil.rmtree(kept_folder)
  kept_folder.mkdir(parents=True)
  stays = np.zeros(len(texts), bool)
  stays[result.kept] = True
  decisions = iter(stays)
  for file in files:
    name = pathlib.Path(file.name.removesuffix(".gz")).with_suffix(".jsonl")
    with open(kept_folder / name, "w", encoding="utf-8", newline="\n") as sink:
      sink.writelines(row.line for row in formats.read_rows(file) if next(decisions))
  _write(out / "removed.jsonl", result.removed, ids)
  _write(out / "edges.jsonl", result.edges, ids)
  rules = [row["rule"] for row in result.removed]
  report = {
    "threshold": threshold,
    **result.counts,
    "kept": len(result.kept),
    "removed": {rule: rules.count(rule) for rule in ("exact", "near")},
  }
  (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
  return report


def _files(source: str | os.PathLike[str]) -> list[pathlib.Path]:
  path = pathlib.Path(source)
  if path.is_dir():
    files = sorted(f for f in path.iterdir() if f.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
      raise UserError(f"no .jsonl or .jsonl.gz file in {path}: give a file or a folder of them")
  elif path.is_file():
    files = [path]
  else:
    raise UserError(f"{path} is missing: give a .jsonl file or a folder of them")
  names = [file.name.removesuffix(".gz") for file in files]
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise UserError(f"{path} holds both {twice[0]} and {twice[0]}.gz: remove one of them")
  return files


def _read(files: Sequence[pathlib.Path]) -> tuple[dict[str, Id], list[str]]:
  """Returns ({id as text: id as written}, texts)."""
  ids: dict[str, Id] = {}
  texts = []
  for file in files:
    for row in formats.read_rows(file):
      name, text = row.value.get("id"), row.value.get("text")
      if not isinstance(name, str | int) or isinstance(name, bool):
        raise formats.bad_row(file, row.number, '"id" must be a string or an integer')
      if not isinstance(text, str):
        raise formats.bad_row(file, row.number, '"text" must be a string')
      if str(name) in ids:
        raise formats.bad_row(file, row.number, f"id {name!r} occurs a second time")
      ids[str(name)] = name
      texts.append(text)
  return ids, texts


def _write(path: pathlib.Path, rows: Iterable[Mapping[str, Any]], ids: Mapping[str, Id]) -> None:
  with open(path, "w", encoding="utf-8", newline="\n") as sink:
    for row in rows:
      named = {k: v if k in ("score", "rule") else ids[v] for k, v in row.items()}
      sink.write(json.dumps(named, ensure_ascii=False) + "\n")
