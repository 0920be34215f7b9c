"""Runs a recipe: an ordered list of steps from raw records to clean documents, every drop recorded.

Steps on one document follow each other in one pass; a step on the whole corpus ends a pass. So a
recipe is a few passes over shards, each a phase of pure tasks that any engine runs
(data/pipeline/engines.py), with a decision between them:

    read, steps ..., features | decide | apply, steps ..., features | decide | apply, steps ...
"""

import dataclasses
import heapq
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llm_jax.data.crawl import DEFAULTS, Lost, Options
from llm_jax.data.intake import Intake
from llm_jax.data.pipeline import engines, inputs, passes, shards
from llm_jax.data.pipeline.passes import Row
from llm_jax.data.pipeline.steps import Step

__all__ = ["Made", "Row", "run", "samples"]

EXAMPLES = 6  # Pages that were kept, shown before and after.
SAMPLES = 3  # Dropped documents shown per step and reason.
_PAGE_CHARS = 4000


@dataclasses.dataclass
class Made:
  """What a recipe made.

  Attributes:
    documents: files of the documents that were kept, shard by shard.
    drops: files of {"id", "url", "step", "reason", "sample"} of each dropped document, pass by pass
      and shard by shard, with "kept" and "score" of a duplicate.
    funnel: one row a step.
    before_after: {"url", "before", "after"} of a few pages.
    records: {name of a step on the corpus: folder with what it left on record as *.jsonl}.
  """

  documents: list[str]
  drops: list[str]
  funnel: list[Row]
  before_after: list[dict[str, str]]
  records: dict[str, pathlib.Path]


def run(
  recipe: Sequence[str],
  source: str | pathlib.Path,
  work: str | pathlib.Path,
  engine: engines.Engine,
  seed: int = 0,
  intake: Intake | None = None,
  options: Options = DEFAULTS,
  log: Callable[[str], None] = lambda line: None,
) -> Made:
  """Runs the steps of `recipe` on `source`.

  Args:
    recipe: specs of steps (data/pipeline/steps.py), in order.
    source: what `crawl.files` takes.
    work: folder for the shards; what an earlier run with the same arguments left is used.
    engine: runs the passes.
    seed: of the choice of examples.
    intake: takes records that cannot be read (drops of "read"); None: the first is an error.
    options: how records are read.
    log: gets a line per step.

  Raises:
    UserError: if a step is unknown, the source is missing, or more of it broken than may be.
  """
  recipe, work = tuple(recipe), pathlib.Path(work)
  parts: list[Any] = list(inputs.plan(source))
  outs, made = [""] * len(parts), Made([], [], [], [], {})
  befores: list[list[str]] = []
  for number, own in enumerate(passes.passes(recipe)):
    if own.after and hasattr(own.after.corpus, "begin"):
      (work / f"decide{number}").mkdir(parents=True, exist_ok=True)
      own.after.corpus.begin(str(work / f"decide{number}"), engine)
  waiting: dict[str, Any] = {}  # What the decision before left for the next pass's first row.
  for number, own in enumerate(passes.passes(recipe)):
    names = engines.names(work / f"pass{number}", len(parts))
    tasks = [
      engines.Task(name, (recipe, number, part, out, seed, bool(intake and intake.most), options))
      for name, part, out in zip(names, parts, outs, strict=True)
    ]
    results = engines.results(engine, passes.run, tasks)
    rows = _rows(own, results, waiting)
    if intake and not number:
      _put_aside(results, parts, rows[0], intake, log)
    made.funnel += rows
    for row in rows:
      log(f"{row.step}: {row.documents:,} documents, {row.bytes / 1e6:.2f} MB, {row.seconds:.1f} s")
    befores = heapq.nsmallest(
      passes.CANDIDATES, [*befores, *(page for result in results for page in result["befores"])]
    )
    made.drops += [f"{name}.drops.jsonl" for name in names]
    if own.after:
      seconds = sum(result["features"] for result in results)
      made.records[own.after.name] = work / f"decide{number}"
      waiting = _decide(own.after, names, made.records[own.after.name], engine)
      waiting["seconds"] += seconds
    outs, parts = names, [f"{name}.jsonl" for name in names]
  made.documents = parts
  made.before_after = _examples(befores, parts)
  return made


def samples(drops: Iterable[dict]) -> list[dict]:
  """Returns a few drops of each step and reason, in their order."""
  counts: Counter[tuple[str, str]] = Counter()
  chosen = []
  for drop in drops:
    key = drop["step"], drop["reason"]
    counts[key] += 1
    if counts[key] <= SAMPLES:
      chosen.append(drop)
  return chosen


def _put_aside(
  results: Sequence[engines.Result],
  parts: Sequence[inputs.Part],
  read: passes.Row,
  intake: Intake,
  log: Callable[[str], None],
) -> None:
  """Writes down the records that cannot be read.

  Raises:
    UserError: if they are too many.
  """
  lost = [Lost(*fields) for result in results for fields in result["lost"]]
  for record in inputs.numbered(parts, lost):
    intake.lose(record)
  intake.count(read.documents + len(lost))
  intake.write_lost()
  intake.check()
  if lost:
    log(intake.told())


def _rows(own: passes.Pass, results: Sequence[engines.Result], waiting: dict) -> list[Row]:
  """Adds the rows of all shards up."""
  rows = own.rows()
  for result in results:
    for row, part in zip(rows, result["rows"], strict=True):
      row.documents += part["documents"]
      row.bytes += part["bytes"]
      row.seconds += part["seconds"]
      for reason, count in part["dropped"].items():
        row.drops(reason, count)
      for what, count in part["edited"].items():
        row.edited[what] = row.edited.get(what, 0) + count
  for row in rows:
    row.dropped = dict(sorted(row.dropped.items(), key=lambda item: (-item[1], item[0])))
  if waiting:
    rows[0].seconds += waiting["seconds"]
    rows[0].edited = waiting["counts"]
  return rows


def _decide(
  step: Step, outs: Sequence[str], work: pathlib.Path, engine: engines.Engine
) -> dict[str, Any]:
  """Lets a corpus step decide, unless it did; returns {"seconds", "counts"}."""
  assert step.corpus
  work.mkdir(exist_ok=True)
  begin = time.perf_counter()
  task = engines.Task(str(work))
  counts = engines.result_of(task)
  if counts is None:
    counts = step.corpus.decide(outs, str(work), engine)
    engines.write_json(f"{task.out}.json", counts)
  return {"seconds": time.perf_counter() - begin, "counts": counts}


def _examples(befores: Sequence[Sequence[str]], documents: Sequence[str]) -> list[dict[str, str]]:
  """Of the remembered pages the first ones that were kept, before and after."""
  wanted = {id_ for _, id_, *_ in befores}
  after = {
    d.id: d.text[:_PAGE_CHARS]
    for path in documents
    for d in shards.documents(path)
    if d.id in wanted
  }
  kept = [(url, body, after[id_]) for _, id_, url, body in befores if id_ in after]
  return [{"url": url, "before": body, "after": text} for url, body, text in kept[:EXAMPLES]]
