"""Steps of a recipe that need the whole corpus: a map, a decision, a map that carries it out.

A step is a small class with three methods. `features` is a task's work on the documents of one
shard; `decide` sees what all shards left and writes a decision beside each; `apply` turns a shard's
documents and its decision into what stays, with a reason for what does not. The three meet only in
files, so every engine runs them. N documents of a shard, M of all.
"""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import xxhash

from llm_jax.data import crawl, dedup, jsonl
from llm_jax.data.dedup import records, table
from llm_jax.data.documents import SPLITS, Document
from llm_jax.data.pipeline import engines, inputs, shards
from llm_jax.errors import UserError

# (document, None) stays, perhaps edited; (document, facts) goes, with {"reason", ...}.
Judged = tuple[Document, dict[str, Any] | None]


class CorpusStep(Protocol):
  """What a step on a whole corpus does.

  It may have two methods more: `reads()`, the files that it reads besides the corpus, and
  `begin(work, engine)`, which is called before anything else, so that bad input is found early.
  """

  def features(self, out: str, path: str) -> None:
    """Writes files that start with `out` about the documents of the shard at `path`."""
    ...

  def decide(self, outs: Sequence[str], work: str, engine: engines.Engine) -> dict[str, int]:
    """Writes the decision for each shard; returns what there is to count besides drops.

    What it leaves as *.jsonl in `work` is kept with the corpus.
    """
    ...

  def apply(self, out: str, documents: Iterable[Document]) -> Iterator[Judged]:
    """Carries out the decision on the documents of a shard."""
    ...


@dataclasses.dataclass(frozen=True)
class SameAddress:
  """The first document of each id and of each address stays."""

  def features(self, out: str, path: str) -> None:
    """Writes the hashes [N, 2] of ids and addresses, 0 where there is no address."""
    keys = [(_hash(d.id), _hash(d.url) if d.url else 0) for d in shards.documents(path)]
    np.save(f"{out}.npy", np.array(keys, np.uint64).reshape(-1, 2))

  def decide(self, outs: Sequence[str], work: str, engine: engines.Engine) -> dict[str, int]:
    """Marks the first of each."""
    keys = [np.load(f"{out}.npy") for out in outs]
    ids, urls = (_first([own[:, column] for own in keys]) for column in (0, 1))
    stays = [a & (b | (own[:, 1] == 0)) for a, b, own in zip(ids, urls, keys, strict=True)]
    _save_split(outs, stays)
    return {}

  def apply(self, out: str, documents: Iterable[Document]) -> Iterator[Judged]:
    """Drops the others."""
    for document, first in zip(documents, np.load(f"{out}.first.npy").tolist(), strict=True):
      yield document, None if first else {"reason": "same address or id"}


@dataclasses.dataclass(frozen=True)
class Duplicates:
  """Exact and near duplicates: what LSH proposes and exact comparison confirms goes.

  Attributes:
    threshold: similarity of word 5-grams from which one of two documents goes; above 1 only exact
      duplicates go.
    measure: "jaccard" or "containment" (dedup/verify.py).
    against: another corpus, whose documents go from this one, and stay there.
  """

  threshold: float
  measure: str = "jaccard"
  against: str = ""

  def reads(self) -> list[pathlib.Path]:
    """The files of the other corpus."""
    found = sources(self.against) if self.against else []
    return [file for source in found for file in crawl.files(source)]

  def begin(self, work: str, engine: engines.Engine) -> None:
    """Reads the other corpus."""
    self._reference(work, engine)

  def features(self, out: str, path: str) -> None:
    """Writes the columns of `dedup.table`."""
    table.sign(out, jsonl.Range(path))

  def decide(self, outs: Sequence[str], work: str, engine: engines.Engine) -> dict[str, int]:
    """Writes who goes for whom."""
    names, reference = self._reference(work, engine)
    columns = table.Table([*outs, *names])
    found = dedup.decide(columns, work, engine, self.threshold, self.measure, reference)
    records.write(pathlib.Path(work), columns, found, self.against)
    bounds = columns.starts[: len(outs) + 1]
    for out, begin, end in zip(outs, bounds[:-1], bounds[1:], strict=True):
      rows = np.arange(begin, end)
      gone = rows[found.kept[rows] != rows]
      names = columns.ids(found.kept[gone])
      facts = [
        {"row": row, "kept": name, "score": score, "reason": f"{rule} duplicate{where}"}
        for row, name, score, rule, where in zip(
          (gone - begin).tolist(),
          names,
          found.scores[gone].tolist(),
          np.where(found.exact[gone], "exact", "near").tolist(),
          np.where(found.kept[gone] < found.own, "", f" in {self.against}").tolist(),
          strict=True,
        )
      ]
      engines.write_json(f"{out}.gone.json", facts)
    return {
      "pairs compared": found.counts["candidates"],
      "pairs alike": found.counts["edges"],
      "clusters": found.counts["clusters"],
      "members of the largest cluster": found.counts["largest_cluster"],
    }

  def apply(self, out: str, documents: Iterable[Document]) -> Iterator[Judged]:
    """Drops what goes, with who stays instead and how alike they are."""
    facts = {row.pop("row"): row for row in engines.read_json(f"{out}.gone.json")}
    for i, document in enumerate(documents):
      yield document, facts.get(i)

  def _reference(self, work: str, engine: engines.Engine) -> tuple[list[str], int]:
    """Names of the columns of the other corpus, and how many documents it has."""
    if not self.against:
      return [], 0
    parts = [part for source in sources(self.against) for part in inputs.plan(source)]
    names = engines.names(pathlib.Path(work) / "against", len(parts))
    tasks = [engines.Task(name, (part,)) for name, part in zip(names, parts, strict=True)]
    found = engines.results(engine, reference_columns, tasks)
    return names, sum(result["documents"] for result in found)


def sources(corpus: str) -> list[str]:
  """Returns what `crawl.read` reads of a corpus: itself, or the splits of a prepared run.

  Raises:
    UserError: if there is nothing to read.
  """
  found = [corpus]
  if not re.match(r"tfds|hf:", corpus) and not pathlib.Path(corpus).exists():
    raise UserError(f'there is no "{corpus}" to compare with; give a prepared run or a source')
  if (pathlib.Path(corpus) / "manifest.json").exists():
    written = next(pathlib.Path(corpus).glob("corpus/*/dataset_info.json"), None)
    if not written:
      raise UserError(f"{corpus}: a prepared run without its corpus/; prepare it again")
    found = [f"tfds_dir:{written.parent}#{split}" for split in SPLITS]
  for source in found:
    crawl.files(source)
  return found


def reference_columns(out: str, part: inputs.Part) -> engines.Result:
  """A task: writes the columns of a part of another corpus.

  Raises:
    UserError: if it cannot be read, or holds pages that are not extracted.
  """

  def documents() -> Iterator[tuple[str, str]]:
    for raw in inputs.read(part):
      if raw.html:
        raise UserError(
          f"{raw.source}: holds HTML pages; prepare them first, and give that run to `against`"
        )
      yield raw.id, raw.body

  return {"documents": table.write_columns(out, documents())}


@dataclasses.dataclass(frozen=True)
class CommonLines:
  """Lines that stand on many pages are boilerplate and are cut out of all of them.

  After C4's line deduplication (Raffel et al. 2020, arXiv:1910.10683, sec. 2.2), by pages instead
  of occurrences: a phrase that one page repeats is none.

  Attributes:
    fraction: of the pages, in (0, 1], above which a line goes; at least three pages.
    min_words: shorter lines stay: "Returns:" is frequent and means something.
  """

  fraction: float
  min_words: int

  def features(self, out: str, path: str) -> None:
    """Writes the hashes of lines [L] and on how many pages they stand [L]."""
    pages, counts = 0, Counter()
    for document in shards.documents(path):
      pages += 1
      counts.update({_hash(line) for line in self._lines(document.text)})
    np.save(f"{out}.keys.npy", np.fromiter(counts.keys(), np.uint64, len(counts)))
    np.save(f"{out}.counts.npy", np.fromiter(counts.values(), np.int64, len(counts)))
    np.save(f"{out}.pages.npy", np.array(pages))

  def decide(self, outs: Sequence[str], work: str, engine: engines.Engine) -> dict[str, int]:
    """Adds the counts up; every shard gets the lines that go."""
    keys, where = np.unique(
      np.concatenate([np.load(f"{out}.keys.npy") for out in outs]), return_inverse=True
    )
    counts = np.concatenate([np.load(f"{out}.counts.npy") for out in outs])
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, where, counts)
    pages = sum(int(np.load(f"{out}.pages.npy")) for out in outs)
    common = keys[total > max(self.fraction * pages, 2)]
    for out in outs:
      np.save(f"{out}.common.npy", common)
    return {"different lines cut out": len(common)}

  def apply(self, out: str, documents: Iterable[Document]) -> Iterator[Judged]:
    """Cuts them out."""
    common = set(np.load(f"{out}.common.npy").tolist())
    for document in documents:
      kept = [
        line
        for line in document.text.split("\n")
        if len(line.split()) < self.min_words or _hash(line.strip()) not in common
      ]
      yield dataclasses.replace(document, text="\n".join(kept).strip("\n")), None

  def _lines(self, text: str) -> Iterator[str]:
    stripped = (line.strip() for line in text.split("\n"))
    return (line for line in stripped if len(line.split()) >= self.min_words)


@dataclasses.dataclass(frozen=True)
class RepeatedParts:
  """Paragraphs or lines that stood before, in an earlier document or the same one, are cut out.

  Attributes:
    separator: what stands between the parts: a blank line, or a newline.
    min_chars: shorter parts stay.
  """

  separator: str
  min_chars: int

  def features(self, out: str, path: str) -> None:
    """Writes the hashes of all parts, one document's after the other's; short ones are none."""
    keys = [key for d in shards.documents(path) for _, key in self._parts(d.text) if key]
    np.save(f"{out}.npy", np.array(keys, np.uint64))

  def decide(self, outs: Sequence[str], work: str, engine: engines.Engine) -> dict[str, int]:
    """Marks the first of each."""
    first = _first([np.load(f"{out}.npy") for out in outs])
    _save_split(outs, first)
    return {"parts cut out": sum(int((~part).sum()) for part in first)}

  def apply(self, out: str, documents: Iterable[Document]) -> Iterator[Judged]:
    """Cuts the others out."""
    first = iter(np.load(f"{out}.first.npy").tolist())
    for document in documents:
      kept = [part for part, key in self._parts(document.text) if not key or next(first)]
      yield dataclasses.replace(document, text=self.separator.join(kept)), None

  def _parts(self, text: str) -> Iterator[tuple[str, int]]:
    for part in text.split(self.separator):
      long = len(part) >= self.min_chars
      yield part, _hash(" ".join(part.lower().split())) if long else 0


def _hash(text: str) -> int:
  """64 bits, never 0."""
  return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1


def _first(keys: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns, shard by shard, whether a key [N] stands for the first time in all of them."""
  everything = np.concatenate([np.zeros(0, np.uint64), *keys])
  first = np.zeros(len(everything), bool)
  first[np.unique(everything, return_index=True)[1]] = True
  return np.split(first, np.cumsum([len(own) for own in keys])[:-1])


def _save_split(outs: Sequence[str], parts: Sequence[np.ndarray]) -> None:
  for out, part in zip(outs, parts, strict=True):
    np.save(f"{out}.first.npy", part)
