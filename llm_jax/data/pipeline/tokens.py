"""Documents of a shard to token files, and what the tokenizer makes of each source."""

import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.data import token_files
from llm_jax.data.documents import SPLITS, Document, split_of
from llm_jax.data.pipeline import engines, shards
from llm_jax.data.tokenizer import Tokenizer

SHOWN = 20  # Sources in the report.
_KEYS = ("documents", "bytes", "words", "tokens")


def shard(
  out: str, path: str, root: str, number: int, seed: int, validation: float
) -> engines.Result:
  """A task: writes [bos] text [eos] of a shard's documents to `root`/tokens, a file for each split.

  Args:
    out: of the task; only its result goes there.
    path: the shard's documents.
    root: holds tokenizer/, gets tokens/<split>/<number>.array_record.
    number: of the shard.
    seed: of the split.
    validation: fraction of addresses held out.

  Returns:
    {"splits": {split: {"documents", "bytes", "tokens"}}, "sources": {source: the same and
    "words"}}: tokens are those that a model predicts.
  """
  coder = Tokenizer.load(pathlib.Path(root) / "tokenizer")
  parts: dict[str, list[Document]] = {name: [] for name in SPLITS}
  for document in shards.documents(path):
    parts[split_of(document.url or document.id, seed, validation)].append(document)
  sources: dict[str, Counter[str]] = {}
  splits = {}
  for split, documents in parts.items():
    file = pathlib.Path(root) / "tokens" / split / f"{number:05d}.array_record"
    rows = _counted(coder, documents, sources)
    written = token_files.write_tokens(file, rows, coder.vocab_size)
    splits[split] = {
      "documents": len(documents),
      "bytes": sum(shards.size(d.text) for d in documents),
      # The first token of a document is given, not predicted.
      "tokens": written["tokens"] - written["documents"],
    }
  return {"splits": splits, "sources": sources}


def total(results: Sequence[engines.Result]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Returns (counts of each split, rows of the largest sources) of all shards.

  A source's row has {"source", "documents", "bytes", "words", "tokens", "bytes_per_token",
  "tokens_per_word"}; the last is the fertility (Rust et al. 2021, arXiv:2012.15613).
  """
  splits = {
    split: {
      key: sum(r["splits"][split][key] for r in results) for key in ("documents", "bytes", "tokens")
    }
    for split in SPLITS
  }
  sources: dict[str, Counter[str]] = {}
  for result in results:
    for name, counts in result["sources"].items():
      sources.setdefault(name, Counter()).update(counts)
  ranked = sorted(sources.items(), key=lambda item: (-item[1]["bytes"], item[0]))
  rows = []
  for name, counts in ranked[:SHOWN]:
    own = {key: counts[key] for key in _KEYS}
    own["bytes_per_token"] = round(counts["bytes"] / max(counts["tokens"], 1), 3)
    own["tokens_per_word"] = round(counts["tokens"] / max(counts["words"], 1), 3)
    rows.append({"source": name, **own})
  return splits, rows


def _counted(
  coder: Tokenizer, documents: Iterable[Document], sources: dict[str, Counter[str]]
) -> Iterator[np.ndarray]:
  documents = list(documents)
  rows = coder.documents(document.text for document in documents)
  for document, ids in zip(documents, rows, strict=True):
    counts = sources.setdefault(document.source or "-", Counter())
    counts["documents"] += 1
    counts["bytes"] += shards.size(document.text)
    counts["words"] += len(document.text.split())
    counts["tokens"] += len(ids) - 1
    yield ids
