"""What a corpus looks like: lengths, languages, sources and frequent phrases, shard by shard."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llm_jax.data import words
from llm_jax.data.documents import Document, identity
from llm_jax.data.filters import languages
from llm_jax.data.pipeline import engines, shards

GRAMS = (1, 3, 5)  # Words of the phrases that are counted.
SHOWN = 20  # Phrases and sources of each table.
_DETECTED = 200  # Documents of a shard whose language is looked at: those of the smallest hashes.
_KEPT = 2000  # Phrases of each size that a shard reports.
_BATCH = 64  # Texts whose words are split at once.


def shard(out: str, path: str) -> engines.Result:
  """A task: counts what is in a shard of documents.

  Returns:
    {"lengths": {bin: documents}, "sources": {name: {"documents", "bytes"}},
    "languages": {code: documents of a sample}, "grams": {n: {phrase: times}}}; a bin k holds
    documents of 2^k to 2^(k + 1) - 1 words. Phrases are counted in the shard's most frequent ones
    only, so the count of a rare one is a lower bound.
  """
  lengths: Counter[int] = Counter()
  sources: dict[str, dict[str, int]] = {}
  grams = {n: _Grams(n) for n in GRAMS}
  documents: list[Document] = []
  sample: list[tuple[str, str]] = []
  for document in shards.documents(path):
    own = sources.setdefault(document.source or "-", {"documents": 0, "bytes": 0})
    own["documents"] += 1
    own["bytes"] += shards.size(document.text)
    sample.append((identity(document.id), document.text))
    if len(sample) > 4 * _DETECTED:
      sample = sorted(sample)[:_DETECTED]
    documents.append(document)
    if len(documents) == _BATCH:
      _count([d.text for d in documents], lengths, grams)
      documents = []
  _count([d.text for d in documents], lengths, grams)
  detected = Counter(languages.detect(text)[0] for _, text in sorted(sample)[:_DETECTED])
  return {
    "lengths": {str(k): n for k, n in sorted(lengths.items())},
    "sources": sources,
    "languages": dict(detected),
    "grams": {str(n): own.most() for n, own in grams.items()},
  }


def total(results: Iterable[engines.Result]) -> dict[str, Any]:
  """Adds the shards up, the most frequent first."""
  lengths: Counter[int] = Counter()
  documents: Counter[str] = Counter()
  sizes: Counter[str] = Counter()
  detected: Counter[str] = Counter()
  grams: dict[str, Counter[str]] = {str(n): Counter() for n in GRAMS}
  for result in results:
    lengths.update({int(k): n for k, n in result["lengths"].items()})
    documents.update({name: own["documents"] for name, own in result["sources"].items()})
    sizes.update({name: own["bytes"] for name, own in result["sources"].items()})
    detected.update(result["languages"])
    for n, own in result["grams"].items():
      grams[n].update(own)
  return {
    "lengths": [{"words": 2**k, "documents": lengths[k]} for k in sorted(lengths)],
    "languages": [{"language": code, "documents": n} for code, n in _ranked(detected)],
    "sources": [
      {"source": name, "documents": documents[name], "bytes": n}
      for name, n in _ranked(sizes)[:SHOWN]
    ],
    "other_sources": max(len(sizes) - SHOWN, 0),
    "grams": {
      n: [{"phrase": phrase, "times": times} for phrase, times in _ranked(own)[:SHOWN]]
      for n, own in grams.items()
    },
  }


class _Grams:
  """Counts of phrases of n words; each is spelt as it first stood."""

  def __init__(self, n: int):
    self._n = n
    self._counts: Counter[int] = Counter()
    self._spelt: dict[int, str] = {}

  def add(self, joined: str, found: words.Words) -> None:
    """Counts the phrases of a batch of texts."""
    keys = words.grams(found.hashes, self._n)
    if not len(keys):
      return
    inside = np.ones(len(keys), bool)  # Phrases that reach over the end of a text are none.
    for back in range(1, self._n):
      ends = found.bounds[1:-1] - back
      inside[ends[(ends >= 0) & (ends < len(keys))]] = False
    keys, at = keys[inside], np.flatnonzero(inside)
    kinds, first, counts = np.unique(keys, return_index=True, return_counts=True)
    often = np.flatnonzero(counts > 1) if len(kinds) > _KEPT else np.arange(len(kinds))
    for i in often.tolist():
      key = int(kinds[i])
      self._counts[key] += int(counts[i])
      if key not in self._spelt:
        begin = int(at[first[i]])
        text = joined[found.starts[begin] : found.ends[begin + self._n - 1]]
        self._spelt[key] = " ".join(text.split())[:80]
    if len(self._counts) > 8 * _KEPT:
      self._counts = Counter(dict(self._counts.most_common(2 * _KEPT)))
      self._spelt = {key: self._spelt[key] for key in self._counts}

  def most(self) -> dict[str, int]:
    """The most frequent phrases."""
    out: Counter[str] = Counter()
    for key, n in self._counts.most_common(_KEPT):
      out[self._spelt[key]] += n
    return dict(out)


def _count(texts: Sequence[str], lengths: Counter[int], grams: dict[int, _Grams]) -> None:
  if not texts:
    return
  lower = [text.lower() for text in texts]
  found = words.split(lower)
  for size in np.diff(found.bounds).tolist():
    lengths[max(int(size).bit_length() - 1, 0)] += 1
  for own in grams.values():
    own.add("\n".join(lower), found)


def _ranked(counts: Counter) -> list[tuple[Any, int]]:
  return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
