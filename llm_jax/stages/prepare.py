"""Raw sources to a tokenised corpus, with a record of what was dropped and why."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llm_jax import config
from llm_jax.data import crawl, pydocs, recipe
from llm_jax.data.documents import Document, split_of
from llm_jax.data.workers import batched
from llm_jax.errors import UserError

SPLITS = ("train", "validation")
_PACKAGES = (
  "warcio trafilatura ftfy xxhash sentencepiece tensorflow-datasets array_record numpy".split()
)
_BUILDING = ".building"


def run(cfg: config.Prepare, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Prepares `cfg.source` in `workdir` and returns the manifest.

  Writes crawl/ (of the embedded corpus), corpus/, dropped/dropped.jsonl, tokenizer/, tokens/,
  questions/ (of the embedded corpus) and, as the last file, manifest.json. Everything is built
  aside and moved in at the end, so a directory with a manifest is complete. A directory that is
  complete is returned as it is.

  Raises:
    UserError: if the source is missing, broken or too small, or `workdir` holds another corpus.
  """
  root = pathlib.Path(workdir)
  finished = _finished(cfg, root)
  if finished:
    _log(f"prepare: {root} is complete")
    return finished
  _check(cfg)
  begin = time.monotonic()
  building = root / _BUILDING
  with _fresh(building):
    manifest = _build(cfg, building)
    manifest["seconds"] = round(time.monotonic() - begin, 1)
    (building / "manifest.json").write_text(
      json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    _move(building, root)
  _log(f"prepare: done in {manifest['seconds']} s")
  return manifest


def _build(cfg: config.Prepare, out: pathlib.Path) -> dict[str, Any]:
  entries: list[pydocs.Entry] = []
  seconds: list[float] = []
  source = pathlib.Path(cfg.source)
  if cfg.source == "pydocs":
    source = out / "crawl" / "pydocs.warc.gz"
    entries = _crawl(cfg, source, seconds)
  inputs = _inputs(source)
  made = recipe.run(crawl.read(source), cfg.recipe, cfg.near_threshold, cfg.seed, cfg.workers, _log)
  made.funnel[0].seconds = round(sum(seconds), 2)
  _write_drops(out / "dropped", made.drops)
  splits = _split(cfg, made)
  # Not at the top: every worker process imports this module, and Grain and TFDS take seconds.
  from llm_jax.data import corpus, tokenizer

  with _timed("corpus"):
    corpus.write(out, splits)
  with _timed("tokenizer"):
    texts = (d.text for d in splits["train"])
    coder = tokenizer.train(texts, out / "tokenizer", cfg.vocab_size, cfg.seed)
  with _timed("tokens"):
    counts = {name: _tokenize(coder, docs, out, name, cfg) for name, docs in splits.items()}
  asked = _questions(cfg, out, entries, splits["train"]) if cfg.source == "pydocs" else {}
  size, tokens = (sum(c[key] for c in counts.values()) for key in ("bytes", "tokens"))
  return {
    "config": dataclasses.asdict(cfg),
    "inputs": inputs,
    "versions": _versions(),
    "seed": cfg.seed,
    "funnel": _funnel(made, coder, tokens, size),
    "drop_samples": recipe.samples(made.drops),
    "before_after": made.before_after,
    "tokenizer": {
      "vocab_size": coder.vocab_size,
      "bytes_per_token": round(size / (tokens - len(made.documents)), 4),
    },
    "splits": counts,
    "questions": asked,
  }


def _crawl(cfg: config.Prepare, path: pathlib.Path, seconds: list[float]) -> list[pydocs.Entry]:
  begin = time.monotonic()
  path.parent.mkdir()
  entries = pydocs.crawl(path, cfg.max_bytes, cfg.seed, cfg.workers)
  seconds.append(time.monotonic() - begin)
  _log(f"crawl: {path.stat().st_size / 1e6:.1f} MB of WARC, {seconds[0]:.1f} s")
  return entries


def _split(cfg: config.Prepare, made: recipe.Result) -> dict[str, list[Document]]:
  splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
  for document in made.documents:
    address = document.url or document.id
    splits[split_of(address, cfg.seed, cfg.validation)].append(document)
  for name, documents in splits.items():
    if not documents:
      dropped = ", ".join(f"{row.step} {sum(row.dropped.values())}" for row in made.funnel)
      raise UserError(
        f"{cfg.source}: no document for the {name} split, {len(made.documents)} kept in all "
        f"(dropped: {dropped}); give more text, another recipe or another config.validation"
      )
  return splits


def _tokenize(
  coder,
  documents: Sequence[Document],
  out: pathlib.Path,
  split: str,
  cfg: config.Prepare,
) -> dict[str, int]:
  """Writes [bos] text [eos] of each document; counts the tokens that a model predicts."""

  def rows() -> Iterator[list[int]]:
    for batch in batched(documents, 64):
      for ids in coder.encode_batch([d.text for d in batch], cfg.workers):
        yield [coder.bos_id, *ids, coder.eos_id]

  from llm_jax.data import packing

  path = out / "tokens" / f"{split}.array_record"
  written = packing.write_tokens(path, rows(), coder.vocab_size)
  size = sum(_size(d.text) for d in documents)
  # The first token of a document is given, not predicted.
  tokens = written["tokens"] - written["documents"]
  return {"documents": len(documents), "bytes": size, "tokens": tokens}


def _questions(
  cfg: config.Prepare,
  out: pathlib.Path,
  entries: Iterable[pydocs.Entry],
  train: Sequence[Document],
) -> dict[str, int]:
  from llm_jax.data import questions

  with _timed("questions"):
    texts = [d.text for d in train]
    found = questions.build(entries, texts, seed=cfg.seed, validation=cfg.validation)
    (out / "questions").mkdir()
    for name, part in zip(SPLITS, found[:2], strict=True):
      questions.write(out / "questions" / f"{name}.jsonl", part)
  return found[2]


def _funnel(made: recipe.Result, coder, tokens: int, size: int) -> list[dict[str, Any]]:
  """Returns the rows with tokens: exact in the last one, by this text's rate in the others."""
  rows = []
  for row in made.funnel:
    rows.append(dataclasses.asdict(row) | {"tokens": round(row.bytes * tokens / size)})
  html = "".join(page["before"] for page in made.before_after)
  if html and made.funnel[0].bytes != made.funnel[1].bytes:  # Markup has a rate of its own.
    rate = len(coder.encode(html)) / _size(html)
    rows[0]["tokens"] = round(made.funnel[0].bytes * rate)
  return rows


def _write_drops(directory: pathlib.Path, drops: Iterable[dict]) -> None:
  directory.mkdir()
  with open(directory / "dropped.jsonl", "w", encoding="utf-8") as f:
    for drop in drops:
      f.write(json.dumps(drop, ensure_ascii=False) + "\n")


def _inputs(source: pathlib.Path) -> list[dict[str, Any]]:
  found = []
  for file in crawl.files(source):
    with open(file, "rb") as f:
      digest = hashlib.file_digest(f, "sha256").hexdigest()
    name = file.relative_to(source).as_posix() if source.is_dir() else file.name
    found.append({"path": name, "bytes": file.stat().st_size, "sha256": digest})
  return found


def _versions() -> dict[str, str]:
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _finished(cfg: config.Prepare, root: pathlib.Path) -> dict[str, Any] | None:
  path = root / "manifest.json"
  if not path.exists():
    return None
  manifest = json.loads(path.read_text(encoding="utf-8"))
  # The number of workers changes nothing but the time.
  mine, theirs = (
    {k: v for k, v in c.items() if k != "workers"}
    for c in (dataclasses.asdict(cfg), manifest["config"])
  )
  if mine != theirs:
    names = ", ".join(f"{k}={theirs.get(k)!r}" for k in mine if mine[k] != theirs.get(k))
    raise UserError(f"{root} holds a corpus of another config ({names}); use another --workdir")
  return manifest


def _check(cfg: config.Prepare) -> None:
  recipe.get(cfg.recipe)
  if not 0 < cfg.validation < 1:
    raise UserError(f"config.validation must be between 0 and 1, got {cfg.validation}")
  if not 0 < cfg.near_threshold <= 1:
    raise UserError(f"config.near_threshold must be in (0, 1], got {cfg.near_threshold}")
  if cfg.workers < 1:
    raise UserError(f"config.workers must be at least 1, got {cfg.workers}")
  if cfg.source != "pydocs":
    crawl.files(cfg.source)


@contextlib.contextmanager
def _fresh(directory: pathlib.Path) -> Iterator[None]:
  """An empty directory, gone afterwards; an earlier attempt's rest is removed first."""
  existed = directory.parent.exists()
  shutil.rmtree(directory, ignore_errors=True)
  directory.mkdir(parents=True)
  try:
    yield
  finally:
    shutil.rmtree(directory, ignore_errors=True)
    if not existed and not any(directory.parent.iterdir()):
      directory.parent.rmdir()


def _move(building: pathlib.Path, root: pathlib.Path) -> None:
  """Moves everything in, the manifest last: it says that the rest is there."""
  for path in sorted(building.iterdir(), key=lambda p: (p.name == "manifest.json", p.name)):
    target = root / path.name
    if target.is_dir():
      shutil.rmtree(target)  # Of an attempt that was cut while it moved.
    path.replace(target)


def _size(text: str) -> int:
  return len(text.encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def _timed(name: str) -> Iterator[None]:
  begin = time.monotonic()
  yield
  _log(f"{name}: {time.monotonic() - begin:.1f} s")


def _log(line: str) -> None:
  print(f"  {line}" if not line.startswith("prepare:") else line, flush=True)
