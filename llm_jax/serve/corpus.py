"""What a page shows of a prepared corpus: the funnel, what was dropped and why, duplicates."""

import itertools
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from llm_jax.data import corpus, jsonl
from llm_jax.data.dedup.differing import differing
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.serve.spelling import pieces
from llm_jax.serve.workdirs import read_json

_SHOWN = 600  # Characters of a document.
_PAGES = 4  # Documents shown before and after extraction,
_PAGE = 4000  # with so many characters.
_CLUSTERS = 200  # Listed; the largest come first.
_SEARCHED = 300_000  # Documents of a corpus among which the one that stays is looked for.
_FEW = ("config", "inputs", "references", "versions")  # What a page has no use for.


class Corpus:
  """One prepared corpus, read when it is asked for."""

  def __init__(self, prepared: str | pathlib.Path):
    self._path = pathlib.Path(prepared)
    self._lock = threading.Lock()
    self._texts: dict[str, str] = {}  # Of documents that stay, by id, as they were looked up.

  def overview(self) -> dict[str, Any]:
    """The manifest: funnel, tokenizer, splits, statistics; {} while there is none.

    "funnel" rows have "seconds" too; of "before_after" there are few.
    """
    manifest = read_json(self._path / "manifest.json")
    steps = read_json(self._path / "timing.json").get("steps", {})
    found = {k: v for k, v in manifest.items() if k not in (*_FEW, "drop_samples", "duplicates")}
    if "funnel" in found:
      found["funnel"] = [row | {"seconds": steps.get(row["step"])} for row in found["funnel"]]
    pages = found.get("before_after", [])[:_PAGES]
    found["before_after"] = [
      page | {side: page.get(side, "")[:_PAGE] for side in ("before", "after")} for page in pages
    ]
    return found

  def dropped(self, step: str, reason: str, first: int, count: int) -> dict[str, Any]:
    """Documents that a step dropped for a reason, `count` of them from number `first` on.

    Returns:
      {"rows": [{"id", "url", "sample", "kept", "score"}], "more": whether there are more}.
    """
    own = (row for row in self._dropped() if row.get("step") == step)
    own = (row for row in own if row.get("reason") == reason)
    rows = list(itertools.islice(own, first, first + count + 1))
    return {"rows": [_short(row) for row in rows[:count]], "more": len(rows) > count}

  def clusters(self) -> dict[str, Any]:
    """Clusters of duplicates: {"count", "members", "largest": [{"step", "cluster", "size"}]}."""
    found = [
      {"step": folder.name, "cluster": str(row["cluster"]), "size": len(row["members"])}
      for folder in self._folders()
      for row in _rows(folder / "clusters.jsonl")
    ]
    found.sort(key=lambda row: (-row["size"], row["cluster"]))
    members = sum(row["size"] for row in found)
    return {"count": len(found), "members": members, "largest": found[:_CLUSTERS]}

  def cluster(self, step: str, name: str, most: int = 12) -> dict[str, Any]:
    """The members of a cluster that went, each beside the one that stays.

    Returns:
      {"kept": {"id", "text"}, "gone": [{"id", "rule", "score", "text", "groups"}], "more": number
      of others}; "groups" are lists of ["same" | "kept" | "gone", words], [] where the words are
      the same. The recipe keeps the beginning of what it drops, so only beginnings are compared.

    Raises:
      KeyError: if there is no such cluster.
    """
    folder = next((f for f in self._folders() if f.name == step), None)
    if folder is None:
      raise KeyError(step)
    rows = (row for row in _rows(folder / "clusters.jsonl") if str(row["cluster"]) == name)
    found = next(rows, None)
    if found is None:
      raise KeyError(name)
    wanted = set(map(str, found["members"]))
    facts = [row for row in _rows(folder / "removed.jsonl") if str(row.get("id")) in wanted]
    shown = facts[:most]
    texts = self._find({str(row["id"]) for row in shown} | {str(row["kept"]) for row in shown})
    gone = [_beside(row, texts) for row in shown]
    kept = str(facts[0]["kept"]) if facts else ""
    return {
      "kept": {"id": kept, "text": texts.get(kept, "")[:_SHOWN]},
      "gone": gone,
      "more": len(facts) - len(shown),
    }

  def _dropped(self) -> Iterator[dict[str, Any]]:
    return _rows(self._path / "dropped" / "dropped.jsonl")

  def _folders(self) -> list[pathlib.Path]:
    return sorted(p.parent for p in (self._path / "dropped").glob("*/clusters.jsonl"))

  def _find(self, wanted: set[str]) -> dict[str, str]:
    """Texts by id: of what was dropped its beginning, of what stays all."""
    found = {
      str(row["id"]): str(row.get("sample", ""))
      for row in self._dropped()
      if str(row.get("id")) in wanted
    }
    with self._lock:
      if not wanted <= {*found, *self._texts}:
        self._look_up(wanted - {*found})
      return found | {name: self._texts[name] for name in wanted if name in self._texts}

  def _look_up(self, wanted: set[str]) -> None:
    try:
      for split in ("train", "validation"):
        for document in itertools.islice(corpus.read(self._path, split), _SEARCHED):
          if document.id in wanted:
            self._texts[document.id] = document.text
    except UserError:
      return  # No such corpus or split: its texts are not shown.


def tokenized(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
  """A text as its tokens: {"tokens", "bytes", "words", "pieces": [{"id", "text", "name"}]}."""
  ids = tokenizer.encode(text)
  return {
    "tokens": len(ids),
    "bytes": len(text.encode("utf-8", "replace")),
    "words": len(text.split()),
    "vocabulary": tokenizer.vocab_size,
    "pieces": pieces(tokenizer, ids),
  }


def _beside(row: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
  gone, kept = texts.get(str(row["id"]), ""), texts.get(str(row["kept"]), "")
  # What was dropped is known up to some character; what stays is cut at the same word count.
  cut = " ".join(kept.split()[: len(gone.split())])
  groups = [list(map(list, group)) for group in differing(cut, gone)] if kept and gone else []
  return {
    "id": str(row["id"]), "kept": str(row["kept"]), "rule": row.get("rule", ""),
    "score": row.get("score"), "text": gone[:_SHOWN], "groups": groups,
    "known": bool(kept and gone),
  }  # fmt: skip


def _short(row: dict[str, Any]) -> dict[str, Any]:
  keys = ("id", "url", "sample", "kept", "score")
  return {k: row[k][:_SHOWN] if isinstance(row[k], str) else row[k] for k in keys if k in row}


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  if path.exists():
    for _, row in jsonl.rows(jsonl.Range(str(path))):
      if isinstance(row, dict):
        yield row
