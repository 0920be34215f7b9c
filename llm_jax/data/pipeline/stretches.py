"""The corpus step that cuts exact repeats of many words (see data/dedup/substrings.py)."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llm_jax.data.dedup import substrings
from llm_jax.data.documents import Document
from llm_jax.data.pipeline import engines, shards
from llm_jax.data.pipeline.corpus_steps import Judged

_PARTITION = 20_000_000  # Windows that one task sorts out: about 250 MB.


@dataclasses.dataclass(frozen=True)
class RepeatedStretches:
  """Stretches of many words that stood before are cut out, or their documents go.

  Attributes:
    tokens: words of the shortest stretch.
    keep_first: the first occurrence stays.
    most: share of a document's words, in stretches that stood before, above which all of it goes
      instead of the stretches; 0: stretches are cut.
  """

  tokens: int
  keep_first: bool
  most: float

  def features(self, out: str, path: str) -> None:
    """Writes the hashes of all windows."""
    np.save(f"{out}.windows.npy", substrings.windows(_texts(path), self.tokens))

  def decide(self, outs: Sequence[str], work: str, engine: engines.Engine) -> dict[str, int]:
    """Finds the windows that occur twice, and what other shards need of a shard's words."""
    files = [f"{out}.windows.npy" for out in outs]
    total = sum(len(np.load(file, mmap_mode="r")) for file in files)
    count = -(-total // _PARTITION) or 1
    tasks = [
      engines.Task(name, (files, p, count))
      for p, name in enumerate(engines.names(pathlib.Path(work) / "repeated", count))
    ]
    found = engines.results(engine, find, tasks)
    repeats = [f"{task.out}.npy" for task in tasks]
    names = engines.names(pathlib.Path(work) / "quotes", len(outs))
    quotes = [
      engines.Task(name, (f"{out}.jsonl", repeats, i, self.tokens, self.keep_first))
      for i, (name, out) in enumerate(zip(names, outs, strict=True))
    ]
    engines.results(engine, quote, quotes)
    for i, out in enumerate(outs):
      engines.write_json(f"{out}.stretches.json", {"part": i, "repeats": repeats, "quotes": names})
    return {"repeated windows found": sum(result["rows"] for result in found)}

  def apply(self, out: str, documents: Iterable[Document]) -> Iterator[Judged]:
    """Cuts, or drops."""
    facts = engines.read_json(f"{out}.stretches.json")
    own = list(documents)
    texts = [document.text for document in own]
    rows = substrings.of_part(facts["repeats"], facts["part"])
    found = substrings.spans(
      texts, rows, lambda part: _quotes(facts["quotes"][part]), self.tokens, self.keep_first
    )
    for document, spans in zip(own, found, strict=True):
      if not spans:
        yield document, None
      elif self.most and substrings.share(document.text, spans) > self.most:
        yield document, {"reason": "repeated stretches"}
      elif self.most:
        yield document, None
      else:
        yield dataclasses.replace(document, text=substrings.cut(document.text, spans)), None


def find(out: str, files: list[str], partition: int, partitions: int) -> engines.Result:
  """A task: writes the repeated windows of one range of hashes."""
  rows = substrings.repeated(files, partition, partitions)
  np.save(f"{out}.npy", rows)
  return {"rows": len(rows)}


def quote(
  out: str, path: str, repeats: list[str], part: int, tokens: int, keep_first: bool
) -> engines.Result:
  """A task: writes the words of a shard that others are compared with."""
  rows = substrings.of_part(repeats, part)
  quotes = substrings.quote(_texts(path), rows, tokens, keep_first)
  for name, column in quotes._asdict().items():
    np.save(f"{out}.{name}.npy", column)
  return {"words": len(quotes.words)}


def _texts(path: str) -> list[str]:
  return [document.text for document in shards.documents(path)]


def _quotes(out: str) -> substrings.Quotes:
  columns = (np.load(f"{out}.{name}.npy", mmap_mode="r") for name in substrings.Quotes._fields)
  return substrings.Quotes(*columns)
