"""Which rows of evaluation sets a corpus has, and how often it has each of their n-grams.

D documents of a batch, M matches, E n-grams, R rows.
"""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data.decontaminate import overlap
from llm_jax.data.decontaminate.index import Index, load, store_counts
from llm_jax.data.documents import Document
from llm_jax.data.workers import ordered_map

DIRTY = 0.8  # Share of a row's words from which Llama 2 calls it dirty.
EXAMPLES = 5

_CHARS = 1 << 20  # Characters of documents that are searched at once.


class _Seen(NamedTuple):
  """What a batch of documents has: ids, bytes, and different (document, n-gram) pairs [M, 2]."""

  ids: list[str]
  size: int
  pairs: np.ndarray


def count(
  documents: Iterable[Document], index: str, corpus: str = "", workers: int = 1
) -> dict[str, Any]:
  """Writes into an index in how many documents each of its n-grams stands; returns what it says.

  `decontaminate(frequent=10)` then passes over n-grams in more than ten of them, as GPT-3 does:
  proverbs, licences, headings that everybody has. Counted again, the new counts replace the old.

  Args:
    documents: of the corpus that will be decontaminated, before that.
    index: folder of the index.
    corpus: what the corpus is called in index.json.
    workers: processes.

  Raises:
    UserError: if there is no such index, or it cannot be written.
  """
  counts = np.zeros(len(load(index).sizes), np.int64)
  total = 0
  for seen in _scan(documents, index, 0, workers):
    counts += np.bincount(seen.pairs[:, 1], minlength=len(counts))
    total += len(seen.ids)
  counted = {"corpus": corpus, "documents": total, "found": int((counts > 0).sum())}
  store_counts(index, counts, counted)
  return counted


def report(
  documents: Iterable[Document],
  index: str | os.PathLike[str],
  frequent: int = 0,
  workers: int = 1,
  examples: int = EXAMPLES,
) -> dict[str, Any]:
  """Says which evaluation rows a corpus has.

  Args:
    documents: of the corpus, each read once.
    index: folder of the index.
    frequent: see `decontaminate`.
    workers: processes.
    examples: rows shown of each set, those most covered.

  Returns:
    {"documents", "bytes", "contaminated": documents with a protected n-gram, "sets", "rows"}.
    Of each set: "name", "rows", "unprotected", "hit": rows that share an n-gram with the corpus,
    "share": hit / rows, "dirty": rows of which at least DIRTY of the words are covered by the
    n-grams of all documents, "documents": how many have some of it, "examples".
    Of each row that is hit: "set", "row": its number in the file from 0, "share" of its words that
    is covered, "documents", and the first n-gram found: "document": its id, "gram": its words.

  Raises:
    UserError: if there is no such index, or as `decontaminate`.
  """
  protected = load(index)
  total = size = contaminated = 0
  row_documents = np.zeros(len(protected.sets), np.int64)
  set_documents = np.zeros(len(protected.facts["sets"]), np.int64)
  grams = np.zeros(len(protected.sizes), bool)
  firsts: dict[int, tuple[str, int]] = {}
  for seen in _scan(documents, os.fspath(index), frequent, workers):
    total, size = total + len(seen.ids), size + seen.size
    if not len(seen.pairs):
      continue
    contaminated += len(np.unique(seen.pairs[:, 0]))
    grams[seen.pairs[:, 1]] = True
    rows, first, per_row, per_set = _tally(seen.pairs, protected)
    row_documents += per_row
    set_documents += per_set
    for row, (document, gram) in zip(rows.tolist(), seen.pairs[first].tolist(), strict=True):
      firsts.setdefault(row, (seen.ids[document], gram))
  shares = overlap.shares(np.flatnonzero(grams), protected)
  found = _rows(firsts, shares, row_documents, protected)
  sets = [
    _summary(s, [r for r in found if r["set"] == s["name"]], int(n), examples)
    for s, n in zip(protected.facts["sets"], set_documents, strict=True)
  ]
  totals = {"documents": total, "bytes": size, "contaminated": contaminated}
  return totals | {"sets": sets, "rows": found}


def _scan(
  documents: Iterable[Document], index: str, frequent: int, workers: int
) -> Iterator[_Seen]:
  return ordered_map(partial(_seen, index=index, frequent=frequent), _batches(documents), workers)


def _seen(documents: list[Document], index: str, frequent: int) -> _Seen:
  found = overlap.find([d.text for d in documents], load(index), frequent)
  pairs = np.stack([found.documents, found.grams], axis=1)
  size = sum(len(d.text.encode("utf-8", "surrogatepass")) for d in documents)
  # The first place of each n-gram in a document comes first.
  _, first = np.unique(pairs, axis=0, return_index=True)
  return _Seen([d.id for d in documents], size, pairs[np.sort(first)])


def _tally(
  pairs: np.ndarray, protected: Index
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns the rows that (document, n-gram) pairs hit, the first pair of each, and documents.

  The latter are counted per row [R] and per set.
  """
  hits = overlap.places(pairs[:, 1], protected)
  document_Q = pairs[hits.matches, 0]
  rows, first = np.unique(hits.rows, return_index=True)
  own = np.unique(np.stack([hits.rows, document_Q], axis=1), axis=0)[:, 0]
  sets = np.unique(np.stack([protected.sets[hits.rows], document_Q], axis=1), axis=0)[:, 0]
  per_row = np.bincount(own, minlength=len(protected.sets))
  per_set = np.bincount(sets, minlength=len(protected.facts["sets"]))
  return rows, hits.matches[first], per_row, per_set


def _rows(
  firsts: dict[int, tuple[str, int]], shares: np.ndarray, documents: np.ndarray, protected: Index
) -> list[dict[str, Any]]:
  """Returns what is said of each row that was hit; `firsts` is row -> (document's id, n-gram)."""
  sets = protected.facts["sets"]
  begins = np.append(0, np.cumsum([s["rows"] for s in sets])).tolist()
  found = []
  for row in sorted(firsts):
    s = int(protected.sets[row])
    document, gram = firsts[row]
    found.append(
      {
        "set": sets[s]["name"],
        "row": row - begins[s],
        "share": float(shares[row]),
        "documents": int(documents[row]),
        "document": document,
        "gram": protected.gram(gram).decode(),
      }
    )
  return found


def _summary(
  facts: dict[str, Any], rows: list[dict[str, Any]], documents: int, examples: int
) -> dict[str, Any]:
  most = sorted(rows, key=lambda row: (-row["share"], row["row"]))[:examples]
  return {
    "name": facts["name"],
    "rows": facts["rows"],
    "unprotected": facts["unprotected"],
    "hit": len(rows),
    "share": len(rows) / facts["rows"],
    "dirty": sum(row["share"] >= DIRTY for row in rows),
    "documents": documents,
    "examples": most,
  }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  batch: list[Document] = []
  size = 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size >= _CHARS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
