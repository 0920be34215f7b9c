"""Raw sources to a tokenised corpus, with a record of what was dropped and why."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax import config, rundir
from llm_jax.data import crawl, jsonl, pydocs, templates
from llm_jax.data.documents import SPLITS, Document, split_of
from llm_jax.data.intake import Intake
from llm_jax.data.pipeline import aside, clusters, engines, recipe, shards, steps
from llm_jax.data.tokenizers import shares
from llm_jax.errors import UserError

_PACKAGES = (
  "warcio trafilatura ftfy xxhash sentencepiece tensorflow-datasets array_record numpy".split()
)
_WORK = "work"  # Shards on the way; they go at the end.


def run(cfg: config.Prepare, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Prepares `cfg.source` in `workdir` and returns the manifest.

  Writes crawl/ (of the embedded corpus), corpus/, dropped/dropped.jsonl, tokenizer/, tokens/,
  questions/ (of the embedded corpus), timing.json and, as the last file, manifest.json. Everything
  is built aside and moved in at the end, so a directory with a manifest is complete; it is returned
  as it is. A run that was killed is gone on with. Everything but timing.json is the same to the bit
  for any engine, any number of workers and any interruptions.

  Raises:
    UserError: if the source is missing, broken or too small, or `workdir` holds another corpus.
  """
  root = pathlib.Path(workdir)
  finished = _finished(cfg, root)
  if finished:
    aside.clear(root)
    _log(f"prepare: {root} is complete")
    return finished
  _check(cfg)
  begin = time.monotonic()
  with aside.building(root, _made_of(cfg)) as building:
    if (building / _WORK).exists():
      _log("prepare: goes on where an earlier run stopped")
    walls: dict[str, float] = {}
    # Beside what is built: it is to stay if there is more of it than may be.
    intake = Intake(root, cfg.max_lost, "records")
    manifest, funnel = _build(cfg, building, intake, walls)
    total = round(time.monotonic() - begin, 1)
    # Of a step: seconds of all workers together. Of what comes after the recipe: as they passed.
    spent = {row.step: round(row.seconds, 2) for row in funnel}
    timing = {"seconds": total, "steps": spent, "stages": walls}
    engines.write_json(building / "timing.json", timing)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (building / "manifest.json").write_bytes(text.encode("utf-8", "replace"))
    _move(building, root)
  _log(f"prepare: done in {total} s")
  return manifest


def _build(
  cfg: config.Prepare, out: pathlib.Path, intake: Intake, walls: dict[str, float]
) -> tuple[dict[str, Any], list[recipe.Row]]:
  source = pathlib.Path(cfg.source)
  if cfg.source == "pydocs":
    source = out / "crawl" / "pydocs.warc.gz"
    with _timed("crawl", walls):
      _crawl(cfg, source)
  inputs = _inputs(source)
  with engines.make(cfg.engine, cfg.workers, cfg.beam_runner, cfg.beam_options) as engine:
    made = recipe.run(
      cfg.recipe,
      source,
      out / _WORK,
      engine,
      seed=cfg.seed,
      intake=intake,
      options=crawl.Options(**dataclasses.asdict(cfg.reader)),
      log=_log,
    )
    _write_drops(out / "dropped", made)
    splits = _split(cfg, made)
    with _timed("tokenizer", walls):
      coder = _tokenizer(cfg, out, made.documents)
    with _timed("tokens", walls):
      counts, by_source = _tokenize(cfg, out, made.documents, engine)
    with _timed("statistics", walls):
      described = _statistics(out, made.documents, engine)
  with _timed("corpus", walls):
    _corpus(cfg, out, made.documents)
  with _timed("questions", walls):
    asked = _questions(cfg, out, made.documents) if cfg.source == "pydocs" else {}
  size, tokens = (sum(c[key] for c in counts.values()) for key in ("bytes", "tokens"))
  assert splits == {name: c["documents"] for name, c in counts.items()}
  manifest = {
    "config": _lasting(cfg),
    "inputs": inputs,
    "references": [_hashed(file, str(file)) for file in _references(cfg)],
    "versions": _versions(),
    "seed": cfg.seed,
    "funnel": _funnel(made, coder, tokens, size),
    "lost": intake.reasons(),
    "drop_samples": recipe.samples(drop for path in made.drops for drop in _rows(path)),
    "duplicates": clusters.describe(
      made.records, (drop for path in made.drops for drop in _rows(path))
    ),
    "before_after": made.before_after,
    "tokenizer": {
      "vocab_size": coder.vocab_size,
      "bytes_per_token": round(size / (tokens - sum(splits.values())), 4),
      "sources": by_source,
    },
    "splits": counts,
    "statistics": described,
    "questions": asked,
  }
  return manifest, made.funnel


def _crawl(cfg: config.Prepare, path: pathlib.Path) -> None:
  """Writes the crawl, unless an earlier attempt did: its entries are written last."""
  entries = path.with_name("entries.jsonl")
  if entries.exists():
    return
  path.parent.mkdir(exist_ok=True)
  found = pydocs.crawl(path, cfg.max_bytes, cfg.seed, cfg.workers)
  shards.write(str(entries), map(dataclasses.asdict, found))


def _documents(paths: Sequence[str]) -> Iterator[Document]:
  return (document for path in paths for document in shards.documents(path))


def _rows(path: str) -> Iterator[dict[str, Any]]:
  return (row for _, row in jsonl.rows(jsonl.Range(path)))


def _split_of(cfg: config.Prepare, document: Document) -> str:
  return split_of(document.url or document.id, cfg.seed, cfg.validation)


def _of_split(cfg: config.Prepare, paths: Sequence[str], split: str) -> Iterator[Document]:
  return (d for d in _documents(paths) if _split_of(cfg, d) == split)


def _split(cfg: config.Prepare, made: recipe.Made) -> dict[str, int]:
  """Counts the documents of each split.

  Raises:
    UserError: if one has none.
  """
  counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
  for document in _documents(made.documents):
    counts[_split_of(cfg, document)] += 1
  for name, count in counts.items():
    if not count:
      losses = {row.step: sum(row.dropped.values()) for row in made.funnel}
      dropped = ", ".join(f"{n} at {step}" for step, n in losses.items() if n) or "none"
      raise UserError(
        f"{cfg.source}: no document for the {name} split, {sum(counts.values())} kept in all "
        f"(dropped: {dropped}); give more text, another recipe or another config.validation"
      )
  return counts


def _tokenizer(cfg: config.Prepare, out: pathlib.Path, paths: Sequence[str]):
  # Not at the top: every worker process imports this module, and SentencePiece takes its time.
  from llm_jax.data import tokenizer
  from llm_jax.data.tokenizers import files

  directory, own = out / "tokenizer", cfg.tokenizer
  if (directory / "tokenizer.json").exists():  # Written last.
    return tokenizer.Tokenizer.load(directory)
  if own.adopt:
    return files.adopt(own.adopt, directory, template=own.template or None)
  documents, weights = _of_split(cfg, paths, "train"), shares.parse(own.weights)
  return tokenizer.train(
    shares.grouped(documents, weights) if weights else (d.text for d in documents),
    directory,
    cfg.vocab_size,
    cfg.seed,
    own.max_bytes,
    weights=weights or None,
    kind=own.kind,
    split_digits=own.split_digits,
    newlines=own.newlines,
    space_runs=own.space_runs,
    template=own.template or templates.DEFAULT,
  )


def _tokenize(
  cfg: config.Prepare, out: pathlib.Path, paths: Sequence[str], engine: engines.Engine
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Writes tokens/<split>/<shard>.array_record; returns counts by split and by source."""
  from llm_jax.data.pipeline import tokens

  names = engines.names(out / _WORK / "tokens", len(paths))
  tasks = [
    engines.Task(name, (path, str(out), i, cfg.seed, cfg.validation))
    for i, (name, path) in enumerate(zip(names, paths, strict=True))
  ]
  return tokens.total(engines.results(engine, tokens.shard, tasks))


def _statistics(out: pathlib.Path, paths: Sequence[str], engine: engines.Engine) -> dict[str, Any]:
  from llm_jax.data.pipeline import statistics

  names = engines.names(out / _WORK / "statistics", len(paths))
  tasks = [engines.Task(name, (path,)) for name, path in zip(names, paths, strict=True)]
  return statistics.total(engines.results(engine, statistics.shard, tasks))


def _corpus(cfg: config.Prepare, out: pathlib.Path, paths: Sequence[str]) -> None:
  from llm_jax.data import corpus

  shutil.rmtree(out / "corpus", ignore_errors=True)
  corpus.write(out, {split: _of_split(cfg, paths, split) for split in SPLITS})


def _questions(cfg: config.Prepare, out: pathlib.Path, paths: Sequence[str]) -> dict[str, int]:
  from llm_jax.data import questions

  entries = [pydocs.Entry(**row) for row in _rows(str(out / "crawl" / "entries.jsonl"))]
  texts = [d.text for d in _of_split(cfg, paths, "train")]
  found = questions.build(entries, texts, seed=cfg.seed, validation=cfg.validation)
  (out / "questions").mkdir(exist_ok=True)
  for name, part in zip(SPLITS, found[:2], strict=True):
    questions.write(out / "questions" / f"{name}.jsonl", part)
  return found[2]


def _funnel(made: recipe.Made, coder, tokens: int, size: int) -> list[dict[str, Any]]:
  """Returns the rows with tokens: exact in the last one, by this text's rate in the others."""
  rows = []
  for row in made.funnel:
    fields = dataclasses.asdict(row) | {"tokens": round(row.bytes * tokens / size)}
    del fields["seconds"]  # They are in timing.json: nothing here depends on the machine.
    rows.append(fields)
  html = "".join(page["before"] for page in made.before_after)
  if html and made.funnel[0].bytes != made.funnel[1].bytes:  # Markup has a rate of its own.
    rate = len(coder.encode(html)) / shards.size(html)
    rows[0]["tokens"] = round(made.funnel[0].bytes * rate)
  return rows


def _write_drops(directory: pathlib.Path, made: recipe.Made) -> None:
  """Writes dropped.jsonl, and what each step on the corpus left, such as clusters.jsonl."""
  directory.mkdir(exist_ok=True)
  with open(directory / "dropped.jsonl", "wb") as sink:
    for path in made.drops:
      with open(path, "rb") as f:
        shutil.copyfileobj(f, sink)
  for step, folder in made.records.items():
    for file in sorted(folder.glob("*.jsonl")):
      name = re.sub(r"\W+", "_", step).strip("_")
      (directory / name).mkdir(exist_ok=True)
      shutil.copyfile(file, directory / name / file.name)


def _inputs(source: pathlib.Path) -> list[dict[str, Any]]:
  return [_hashed(file, crawl.name_of(file, source)) for file in crawl.files(source)]


def _hashed(file: pathlib.Path, name: str) -> dict[str, Any]:
  with open(file, "rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()
  return {"path": name, "bytes": file.stat().st_size, "sha256": digest}


def _versions() -> dict[str, str]:
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _lasting(cfg: config.Prepare) -> dict[str, Any]:
  """The fields that say what is made; the others say how, and change nothing but the time."""
  fields = rundir.redacted(dataclasses.asdict(cfg))  # Tuples are lists in a manifest.
  return {k: v for k, v in fields.items() if k not in config.HOW}


def _finished(cfg: config.Prepare, root: pathlib.Path) -> dict[str, Any] | None:
  path = root / "manifest.json"
  if not path.exists():
    return None
  manifest = json.loads(path.read_text(encoding="utf-8"))
  differing = rundir.differences(_lasting(cfg), manifest["config"], _lasting(config.Prepare()))
  if differing:
    raise UserError(
      f"{root} holds a corpus of another config ({', '.join(differing)}); use another --workdir"
    )
  return manifest


def _check(cfg: config.Prepare) -> None:
  steps.recipe(tuple(cfg.recipe))
  cfg.validate()
  engines.check(cfg.engine, cfg.beam_runner)
  files = [] if cfg.source == "pydocs" else crawl.files(cfg.source)
  template = templates.get(cfg.tokenizer.template or templates.DEFAULT)
  if template.controls() and not cfg.tokenizer.adopt:
    raise UserError(
      f"config.tokenizer.template={cfg.tokenizer.template} needs control tokens, which a new "
      "tokenizer lacks: set config.tokenizer.adopt to one that has them, or another template"
    )
  if cfg.tokenizer.weights:
    if cfg.tokenizer.adopt:
      raise UserError("set config.tokenizer.weights or config.tokenizer.adopt, not both")
    weights = shares.parse(cfg.tokenizer.weights)
    if files:  # Else their names are not known yet.
      shares.check(weights, (crawl.name_of(file, cfg.source) for file in files))


def _made_of(cfg: config.Prepare) -> dict[str, Any]:
  """All that decides what is made: a killed run with the same is gone on with."""
  sources = [] if cfg.source == "pydocs" else crawl.files(cfg.source)
  read = aside.facts([*sources, *_references(cfg)])
  return {"config": _lasting(cfg), "versions": _versions(), "sources": read}


def _references(cfg: config.Prepare) -> list[pathlib.Path]:
  """The files that steps read besides the source."""
  found = (getattr(step.corpus, "reads", list)() for step in steps.recipe(tuple(cfg.recipe)))
  return [file for files in found for file in files]


def _move(building: pathlib.Path, root: pathlib.Path) -> None:
  """Moves everything in, the manifest last: it says that the rest is there."""
  ours = [p for p in building.iterdir() if p.name not in (_WORK, aside.MARK)]
  for path in sorted(ours, key=lambda p: (p.name == "manifest.json", p.name)):
    target = root / path.name
    if target.is_dir():
      shutil.rmtree(target)  # Of an attempt that was cut while it moved.
    path.replace(target)


@contextlib.contextmanager
def _timed(name: str, walls: dict[str, float]) -> Iterator[None]:
  begin = time.monotonic()
  yield
  walls[name] = round(time.monotonic() - begin, 2)
  _log(f"{name}: {walls[name]:.1f} s")


def _log(line: str) -> None:
  print(f"  {line}" if not line.startswith("prepare:") else line, flush=True)
