"""Decontamination: no document may give an evaluation set away.

`build` makes an index of the n-grams of evaluation sets, `decontaminate` drops documents that have
some, `without_overlap` cuts them out, and `report` says which rows of which set a corpus has. The
13-grams and the cut are GPT-3's (Brown et al. 2020, arXiv:2005.14165, appendix C), the share of a
row that must be covered is Llama 2's (Touvron et al. 2023, arXiv:2307.09288, A.6) and PaLM's
(Chowdhery et al. 2022, arXiv:2204.02311, section 8).
"""

import re

import numpy as np

from llm_jax.data import words
from llm_jax.data.decontaminate import overlap
from llm_jax.data.decontaminate.index import Index, build, load, normalise
from llm_jax.data.decontaminate.sources import Source, expand
from llm_jax.data.decontaminate.survey import count, report
from llm_jax.data.documents import Document
from llm_jax.errors import UserError

__all__ = [
  "Index", "Source", "build", "count", "decontaminate", "expand", "load", "report",
  "without_overlap",
]  # fmt: skip
_CHUNK = re.compile(r"\S+")


def decontaminate(
  document: Document, index: str, most: int = 0, share: float = 0.0, frequent: int = 0
) -> str | None:
  """Drops a document that has n-grams of an evaluation set, and names the set.

  Args:
    document: to judge.
    index: folder of the index that `build` wrote.
    most: the document stays with so many n-grams, counted by the words at which they start: a
      quotation of k words more than n has k + 1. GPT-3 first took 0, which drops whole books for
      one quoted line; `without_overlap` is what it did instead.
    share: only rows count of which the document has at least this share of the words, in n-grams.
      Llama 2 calls a row dirty from 0.8 on, PaLM from 0.7.
    frequent: n-grams in more documents than this of the corpus that was counted do not count
      (GPT-3: 10); 0: all count.

  Raises:
    UserError: if there is no such index, a number is out of its range, or `frequent` is given and
      no corpus was counted.
  """
  if most < 0 or not 0 <= share <= 1:
    raise UserError(f"decontaminate: want most >= 0 and share in [0, 1], got {most} and {share}")
  protected = load(index)
  found = overlap.find([document.text], protected, frequent)
  if len(found.words) <= most:
    return None
  hits = overlap.places(found.grams, protected)
  if share:
    enough = overlap.covered(found.grams, hits, protected) >= share
    hits = overlap.Places(*(part[enough] for part in hits))
  word_Q = found.words[hits.matches]
  if len(np.unique(word_Q)) <= most:
    return None
  sets = np.unique(np.stack([protected.sets[hits.rows], word_Q], axis=1), axis=0)[:, 0]
  return f"contaminated: {protected.facts['sets'][int(np.bincount(sets).argmax())]['name']}"


def without_overlap(
  text: str, index: str, window: int = 200, piece: int = 200, pieces: int = 10, frequent: int = 0
) -> str:
  """Cuts the n-grams of evaluation sets out of a text, and what stands around them.

  GPT-3's way, except that the pieces stay one document, with a blank line where text was cut.

  Args:
    text: of a document.
    index: folder of the index that `build` wrote.
    window: characters cut before and after an n-gram, and to the end of the word there.
    piece: a piece that is shorter goes.
    pieces: nothing is left of a text that falls into more pieces.
    frequent: see `decontaminate`.

  Raises:
    UserError: if there is no such index, or as `decontaminate`.
  """
  protected = load(index)
  found = overlap.find([text], protected, frequent)
  if not len(found.words):
    return text
  # Normalisation moves characters, but never over white space: chunks tell where words were.
  chunks = [match.span() for match in _CHUNK.finditer(text)]
  bounds = words.split([normalise(text[a:b]) for a, b in chunks]).bounds
  last = found.words + protected.sizes[found.grams] - 1
  first_M, last_M = (np.searchsorted(bounds, w, side="right") - 1 for w in (found.words, last))
  kept, begin = [], 0
  for i, j in sorted(zip(first_M.tolist(), last_M.tolist(), strict=True)):
    kept.append(text[begin : max(_edge(text, chunks[i][0] - window, -1), begin)])
    begin = max(begin, _edge(text, chunks[j][1] + window, 1))
  kept = [part.strip() for part in (*kept, text[begin:])]
  kept = [part for part in kept if part]
  if len(kept) > pieces:
    return ""
  return "\n\n".join(part for part in kept if len(part) >= piece)


def _edge(text: str, at: int, step: int) -> int:
  """Returns the nearest place from `at` on, in the direction of `step`, that parts no word."""
  while 0 < at < len(text) and not (text[at - 1].isspace() or text[at].isspace()):
    at += step
  return min(max(at, 0), len(text))
