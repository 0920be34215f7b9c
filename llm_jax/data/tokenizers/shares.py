"""Shares of a tokenizer's sample, by patterns of the files that documents come from.

Patterns are those of a shell ("books/*", "*.jsonl"; "*" matches "/" too). The first one that
matches a file's name counts, so "*=1" as the last entry is all the rest.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llm_jax.data.documents import Document
from llm_jax.errors import UserError

_FIELD = "config.tokenizer.weights"


def parse(entries: Sequence[str]) -> dict[str, float]:
  """Returns pattern -> weight of entries such as "books/*=2", in their order.

  Raises:
    UserError: naming the entry that is none, or has a pattern of an earlier one.
  """
  weights: dict[str, float] = {}
  for entry in entries:
    pattern, _, number = str(entry).rpartition("=")
    try:
      weight = float(number)
    except ValueError:
      weight = math.nan
    if not pattern or not 0 < weight < math.inf:
      raise UserError(f'{_FIELD}: want "pattern=weight" with a weight above 0, got "{entry}"')
    if pattern in weights:
      raise UserError(f'{_FIELD}: "{pattern}" has two weights')
    weights[pattern] = weight
  return weights


def check(weights: Mapping[str, float], files: Iterable[str]) -> None:
  """Checks that every file has a pattern and every pattern a file, before anything is read.

  Raises:
    UserError: naming the file or the pattern.
  """
  first, used = "", set()
  for file in files:
    used.add(_pattern(file, weights))
    first = first or file
  for pattern in weights:
    if pattern not in used:
      raise UserError(
        f'{_FIELD}: no file is left for "{pattern}"; files are named as "{first}", and the first '
        "pattern that matches counts"
      )


def grouped(documents: Iterable[Document], weights: Mapping[str, float]) -> Iterator[Document]:
  """Yields the documents with their pattern as `source`, as `tokenizer.train` takes them.

  Raises:
    UserError: naming the source of a document that no pattern matches.
  """
  known: dict[str, str] = {}
  for document in documents:
    if document.source not in known:
      known[document.source] = _pattern(document.source, weights)
    yield Document(document.id, document.text, document.url, known[document.source])


def _pattern(source: str, weights: Mapping[str, float]) -> str:
  for pattern in weights:
    if fnmatch.fnmatchcase(source, pattern):
      return pattern
  raise UserError(f'{_FIELD}: no pattern matches "{source}"; add one, or "*=1" for all the rest')
