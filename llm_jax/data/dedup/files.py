"""Duplicates among JSONL files: reads {"id", "text"}, writes who stays and why the others go."""

import itertools
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax import rundir
from llm_jax.data import jsonl
from llm_jax.data.dedup import records, verify
from llm_jax.data.dedup.search import Decision, columns, decide
from llm_jax.data.dedup.table import Table
from llm_jax.data.pipeline import aside, engines
from llm_jax.errors import UserError, nearest


def deduplicate(
  source: str | os.PathLike[str],
  out: str | os.PathLike[str],
  workers: int = 1,
  threshold: float = 0.7,
  measure: str = "jaccard",
  against: str | os.PathLike[str] = "",
) -> dict[str, Any]:
  """Removes duplicates from JSONL files of {"id", "text", ...}; memory holds no texts.

  Writes, replacing what an earlier call wrote: `out/kept/` with a file per source file, its lines
  unchanged and in their order; `out/removed.jsonl` with {"id", "kept", "score", "rule"};
  `out/edges.jsonl` with the verified pairs {"a", "b", "score"}; `out/clusters.jsonl` with
  {"cluster", "members"}; at last `out/report.json`. A call that was killed is gone on with by the
  same call. On the way `out/.work` takes about 1.5 times the size of the texts.

  Args:
    source: a .jsonl or .jsonl.gz file, or a folder of them.
    out: folder for the results.
    workers: processes; the result is the same for any number.
    threshold: similarity of word 5-grams at which one of two documents goes.
    measure: "jaccard"; or "containment", the part of the one that goes, of pairs that LSH finds
      alike (a short text within a far longer one is not: see `substrings`).
    against: another corpus, as `source`: what is in there goes from here. It is only read, and
      its documents are not compared with each other.

  Returns:
    The report: threshold, counts of documents, removals by rule, candidates, edges, clusters.

  Raises:
    UserError: if there is no file, or for the first bad row (file, line, reason).
  """
  check(threshold, measure)
  files, out = _files(source), pathlib.Path(out)
  others = _files(against) if against else []
  written = {(out / name).resolve() for name in records.FILES}
  for file in [*files, *others]:
    if file.resolve() in written or file.resolve().parent == (out / "kept").resolve():
      raise UserError(f"{file} would be replaced by what goes to {out}: choose another out")
  parts = {file: jsonl.ranges(file) for file in files}
  made_of = {"threshold": threshold, "measure": measure, "files": aside.facts(files)}
  made_of["against"] = aside.facts(others)
  with aside.building(out, made_of, ".work") as work, engines.Local(workers) as engine:
    table = columns([part for own in parts.values() for part in own], str(work), engine)
    _check_ids(table, [part for own in parts.values() for part in own])
    reference = 0
    if others:
      ranges = [part for file in others for part in jsonl.ranges(file)]
      other = columns(ranges, str(work), engine, "against")
      reference, table = len(other), Table([*table.shards, *other.shards])
    decision = decide(table, str(work), engine, threshold, measure, reference)
    (out / "report.json").unlink(missing_ok=True)  # Written last: it marks a complete result.
    _write_kept(out / "kept", files, decision)
    written = records.write(out, table, decision, str(against))
    report = {"threshold": threshold, "measure": measure, **decision.counts, **written}
    rundir.write_json(out / "report.json", report)
  return report


def check(threshold: float, measure: str) -> None:
  """Raises UserError unless documents can be compared like this."""
  if not 0 < threshold <= 1:
    raise UserError(f"threshold must be in (0, 1], got {threshold}")
  if measure not in verify.MEASURES:
    raise UserError(f'measure "{measure}" is unknown{nearest(measure, verify.MEASURES)}')


def _check_ids(table: Table, parts: Sequence[jsonl.Range]) -> None:
  twice = table.twice()
  if twice:
    name, _, second = twice
    shard = int(np.searchsorted(table.starts, second, side="right")) - 1
    rows = itertools.islice(jsonl.lines(parts[shard]), second - int(table.starts[shard]), None)
    at = next(rows)[0]
    raise jsonl.bad_row(parts[shard], at, f"id {name!r} occurs a second time")


def _write_kept(folder: pathlib.Path, files: Sequence[pathlib.Path], decision: Decision) -> None:
  if folder.exists():
    shutil.rmtree(folder)
  folder.mkdir(parents=True)
  stays = iter((decision.kept == np.arange(len(decision.kept)))[: decision.own].tolist())
  for file in files:
    name = pathlib.Path(file.name.removesuffix(".gz")).with_suffix(".jsonl")
    with open(folder / name, "wb") as sink:
      lines = jsonl.lines(jsonl.Range(str(file)))
      sink.writelines(line.rstrip(b"\r\n") + b"\n" for _, line in lines if next(stays))


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
