"""Which n-grams of evaluation sets stand in which documents, and how much of each row they cover.

D documents, W words of all of them, M matches, Q (match, place) pairs, E n-grams, R rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.data import words
from llm_jax.data.decontaminate.index import Index, Table, normalise
from llm_jax.errors import UserError

_NONE = np.zeros((0, 2), np.int64)


class Matches(NamedTuple):
  """Protected n-grams in documents, in the order of the documents' words.

  Attributes:
    documents: [M] int64.
    words: [M] int64, the first word, counted from the document's first one.
    grams: [M] int64, which n-gram; its words are those of the document.
  """

  documents: np.ndarray
  words: np.ndarray
  grams: np.ndarray


class Places(NamedTuple):
  """Every place in evaluation rows of every match.

  Attributes:
    matches: [Q] int64, ascending.
    places: [Q] int64 first words.
    rows: [Q] int64.
  """

  matches: np.ndarray
  places: np.ndarray
  rows: np.ndarray


def find(texts: Sequence[str], index: Index, frequent: int = 0) -> Matches:
  """Returns the protected n-grams of these texts.

  A hash that is in the index is a candidate; it is a match if the words are the same.

  Args:
    texts: of documents.
    index: what is protected.
    frequent: n-grams in more documents of the counted corpus than this are passed over; 0: none.

  Raises:
    UserError: if `frequent` is given and the index has counted no corpus, or it is negative.
  """
  if frequent < 0 or (frequent and not len(index.counts)):
    raise UserError(
      f"decontaminate: frequent={frequent} needs the number of documents of each n-gram: "
      "count a corpus with python -m tools.decontaminate count"
    )
  plain = [normalise(text) for text in texts]
  found = words.split(plain)
  candidates = [_candidates(found.hashes, table) for table in index.tables]
  pairs_Q2 = np.concatenate([_NONE, *(c for c in candidates if len(c))])
  if not len(pairs_Q2):
    return Matches(*(np.zeros(0, np.int64),) * 3)
  if frequent:
    pairs_Q2 = pairs_Q2[index.counts[pairs_Q2[:, 1]] <= frequent]
  document_Q = np.searchsorted(found.bounds, pairs_Q2[:, 0], side="right") - 1
  inside = pairs_Q2[:, 0] + index.sizes[pairs_Q2[:, 1]] <= found.bounds[document_Q + 1]
  pairs_Q2, document_Q = pairs_Q2[inside], document_Q[inside]
  same = _same("\n".join(plain), found, pairs_Q2, index)
  pairs_Q2, document_Q = pairs_Q2[same], document_Q[same]
  order = np.lexsort((pairs_Q2[:, 1], pairs_Q2[:, 0]))
  pairs_Q2, document_Q = pairs_Q2[order], document_Q[order]
  return Matches(document_Q, pairs_Q2[:, 0] - found.bounds[document_Q], pairs_Q2[:, 1])


def places(grams: np.ndarray, index: Index) -> Places:
  """Returns where these n-grams [M] stand in evaluation rows."""
  begins = index.bounds[grams]
  counts = index.bounds[grams + 1] - begins
  matches = np.repeat(np.arange(len(grams)), counts)
  nth = np.arange(len(matches)) - np.repeat(np.cumsum(counts) - counts, counts)
  at = index.places[begins[matches] + nth]
  return Places(matches, at, index.row_of(at))


def shares(grams: np.ndarray, index: Index) -> np.ndarray:
  """Returns the share [R] of each row's words that these n-grams [M] cover together."""
  own = np.unique(grams)
  found = places(own, index)
  edges = np.zeros(len(index.words), np.int64)
  np.add.at(edges, found.places, 1)
  np.add.at(edges, found.places + index.sizes[own[found.matches]], -1)
  covered = np.append(0, np.cumsum(np.cumsum(edges) > 0))
  sizes = np.diff(index.rows)
  return (covered[index.rows[1:]] - covered[index.rows[:-1]]) / np.maximum(sizes, 1)


def covered(grams: np.ndarray, found: Places, index: Index) -> np.ndarray:
  """Returns the share [Q] of its row that these n-grams cover, for each of their places.

  It is `shares`, but costs nothing for rows without a match.
  """
  ends = found.places + index.sizes[grams[found.matches]]
  order = np.argsort(found.places, kind="stable")
  reach = np.maximum.accumulate(ends[order])
  # No n-gram reaches over the end of its row, so what is behind `reach` is in the same row.
  new = ends[order] - np.maximum(found.places[order], np.append(0, reach[:-1]))
  rows, local = np.unique(found.rows, return_inverse=True)
  sums = np.bincount(local[order], np.maximum(new, 0), len(rows))
  return (sums / np.diff(index.rows)[rows])[local]


def _candidates(hashes: np.ndarray, table: Table) -> np.ndarray:
  """Returns (word, n-gram) [Q, 2] of equal hashes."""
  grams = words.grams(hashes, table.length)
  at = np.flatnonzero(table.sieve[grams >> table.shift])
  if not len(at):
    return _NONE
  keys = grams[at]
  low = np.searchsorted(table.grams, keys)
  counts = np.searchsorted(table.grams, keys, side="right") - low
  owner = np.repeat(np.arange(len(at)), counts)
  nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
  return np.stack([at[owner], table.ids[low[owner] + nth]], axis=1)


def _same(joined: str, found: words.Words, pairs: np.ndarray, index: Index) -> np.ndarray:
  """Returns whether the words of each pair are the same [Q]."""
  same = np.zeros(len(pairs), bool)
  for q, (at, gram) in enumerate(pairs.tolist()):
    part = slice(at, at + int(index.sizes[gram]))
    spans = zip(found.starts[part].tolist(), found.ends[part].tolist(), strict=True)
    same[q] = " ".join([joined[a:b] for a, b in spans]).encode() == index.gram(gram)
  return same
