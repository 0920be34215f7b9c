"""Shards of a corpus on the way: documents and drops as JSON lines, a file each."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from llm_jax.data import jsonl
from llm_jax.data.documents import Document

_SAMPLE_CHARS = 600


def documents(path: str) -> Iterator[Document]:
  """Yields the documents of a file that `write` wrote."""
  for _, row in jsonl.rows(jsonl.Range(path)):
    yield Document(**row)


def write(path: str, rows: Iterable[Document | dict[str, Any]]) -> None:
  """Writes one JSON object a line; the file appears when it is complete."""
  with open(f"{path}.tmp", "w", encoding="utf-8", errors="surrogatepass", newline="\n") as f:
    for row in rows:
      value = dataclasses.asdict(row) if isinstance(row, Document) else row
      f.write(json.dumps(value, ensure_ascii=False) + "\n")
  os.replace(f"{path}.tmp", path)


def drop(document: Document, step: str, reason: str, **facts: Any) -> dict[str, Any]:
  """The record of a document that goes: who, at which step, why, and how it began."""
  return {
    "id": document.id,
    "url": document.url,
    "step": step,
    "reason": reason,
    "sample": document.text[:_SAMPLE_CHARS],
    **facts,
  }


def size(text: str) -> int:
  """Returns the length of `text` in UTF-8 bytes."""
  return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
