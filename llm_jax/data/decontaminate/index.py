"""The n-grams of evaluation sets: built once, then looked up in documents, word by word.

R rows, V words of all of them, E different n-grams, P places where they stand, W words of a
document. Hashes propose, the words themselves decide.
"""

import dataclasses
import functools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data import artifacts, words
from llm_jax.data.decontaminate.sources import Source, rows
from llm_jax.errors import UserError

NAME = "index"
VERSION = 1
_REMEDY = "build it with python -m tools.decontaminate build"
_ARRAYS = {
  "text": "uint8", "rows": "int64", "grams": "uint64", "sizes": "uint8", "bounds": "int32",
  "places": "int32", "counts": "int64",
}  # fmt: skip
_CHARS = 1 << 20  # Characters of rows whose words are found at once.
_MOST = 2**31 - 1  # Bytes of all rows; 32 bits count them.


class Table(NamedTuple):
  """A part of the n-grams, those that are looked up by a hash of as many words.

  Attributes:
    length: so many words are hashed.
    grams: their hashes, ascending uint64.
    ids: which n-grams they are, int64.
    sieve: whether there is a hash with these top bits, bool.
    shift: how many bits of a hash are below them.
  """

  length: int
  grams: np.ndarray
  ids: np.ndarray
  sieve: np.ndarray
  shift: np.uint64


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """What is protected.

  Attributes:
    facts: "n", "least", "sets" (name, path, fields and counts of each), "counted".
    text: the words of all rows in UTF-8, each followed by a space.
    words: [V + 1] int64, the byte at which each word starts, and the end.
    rows: [R + 1] int64: row r has the words rows[r] to rows[r + 1].
    sets: [R] int64, the evaluation set of each row.
    sizes: [E] uint8 words of each n-gram.
    bounds: [E + 1] int32: n-gram e stands at places[bounds[e] : bounds[e + 1]].
    places: [P] int32, the first word of each place; of one n-gram ascending.
    counts: [E] int64 documents of the counted corpus that have the n-gram; empty if none was.
    tables: the n-grams by hash.
  """

  facts: dict[str, Any]
  text: bytes
  words: np.ndarray
  rows: np.ndarray
  sets: np.ndarray
  sizes: np.ndarray
  bounds: np.ndarray
  places: np.ndarray
  counts: np.ndarray
  tables: tuple[Table, ...]

  def row_of(self, places: np.ndarray) -> np.ndarray:
    """Returns the rows of places."""
    return np.searchsorted(self.rows, places, side="right") - 1

  def gram(self, e: int) -> bytes:
    """Returns the words of an n-gram, in UTF-8 with a space between them."""
    place = self.places[self.bounds[e]]
    return self.text[self.words[place] : self.words[place + self.sizes[e]] - 1]


def normalise(text: str) -> str:
  """Returns `text` without differences that do not count: case, compatible characters, underscores.

  An underscore marks emphasis in plain text and joins words in code; here it separates them.
  """
  if not text.isascii():
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode("utf-8"))
  return text.casefold().replace("_", " ")


def build(
  sources: Sequence[Source],
  out: str | os.PathLike[str],
  n: int = 13,
  least: int = 8,
  numbers: bool = False,
) -> dict[str, Any]:
  """Writes the index of evaluation sets: `out`/index.npz and index.json. Returns the latter.

  GPT-3 takes 13 words (Brown et al. 2020, arXiv:2005.14165, appendix C). Words are runs of letters
  and digits, without case (`normalise`); a character of a script without spaces is a word.
  Protected are all runs of n words of a row, whose texts follow each other in their order. A text
  of fewer than n words, and a row of fewer, is protected as a whole if it has at least `least`
  words: a document must have exactly these words in a row. GPT-3 goes down to 8 words as well.
  Runs of numbers alone ("0 0 0 ...", "1 2 3 ...") are not protected: every table has them. Rows of
  which nothing is protected are counted as "unprotected".

  Args:
    sources: evaluation sets, of different names.
    out: folder, made if missing.
    n: words of an n-gram, 2 to 255.
    least: words of a short text that is still protected, at most n.
    numbers: protect runs of numbers too.

  Raises:
    UserError: if a source cannot be read or has no row, a number is out of its range, or there are
      two gigabytes of text or more.
  """
  names = [source.name for source in sources]
  if not 2 <= n <= 255 or least < 1 or not names or len(set(names)) < len(names):
    raise UserError(
      f"decontaminate: want n from 2 to 255, least >= 1 and sets of different names, "
      f"got n={n}, least={least} and {', '.join(names) or 'no set'}"
    )
  least = min(least, n)
  found = [_read(source) for source in sources]
  arrays = _arrays(found, n, least, numbers)
  facts = {
    "kind": "evaluation n-grams",
    "n": n,
    "least": least,
    "numbers": numbers,
    "sets": _sets(sources, found, arrays, n),
    "counted": None,
  }
  artifacts.save(out, NAME, VERSION, facts, arrays)
  return facts


def load(directory: str | os.PathLike[str]) -> Index:
  """Reads an index, once per process as long as its files do not change.

  Raises:
    UserError: if there is none, or its files are damaged or of another version.
  """
  return _load(os.fspath(directory), artifacts.stamp(directory, NAME))


def store_counts(
  directory: str | os.PathLike[str], counts: np.ndarray, counted: dict[str, Any]
) -> None:
  """Writes the documents [E] that have each n-gram, and of which corpus, into an index."""
  facts, arrays = artifacts.load(directory, NAME, VERSION, _ARRAYS, _REMEDY)
  arrays["counts"] = counts.astype(np.int64)
  artifacts.save(directory, NAME, VERSION, facts | {"counted": counted}, arrays)


class _Set(NamedTuple):
  """The words of one evaluation set: their hashes, bytes, and whether they are no number.

  `texts` and `rows` are the numbers of words of each text and of each row.
  """

  hashes: np.ndarray
  lengths: np.ndarray
  spoken: np.ndarray
  text: bytes
  texts: np.ndarray
  rows: np.ndarray


def _read(source: Source) -> _Set:
  hashes, lengths, spoken, texts, sizes = [], [], [], [], []
  body: list[bytes] = []
  for batch in _batches(rows(source)):
    plain = [normalise(text) for row in batch for text in row]
    found = words.split(plain)
    joined = "\n".join(plain)
    spans = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
    tokens = [joined[a:b] for a, b in spans]
    encoded = [token.encode() for token in tokens]
    hashes.append(found.hashes)
    spoken.append(np.array([not token.isnumeric() for token in tokens], bool))
    lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    body.append(b"".join(word + b" " for word in encoded))
    texts.append(np.diff(found.bounds))
    ends = np.append(0, np.cumsum([len(row) for row in batch]))
    sizes.append(np.diff(found.bounds[ends]))
  if not sizes:
    raise UserError(f"{source.path}: the evaluation set has no rows; give another file")
  return _Set(
    hashes=np.concatenate(hashes),
    lengths=np.concatenate(lengths),
    spoken=np.concatenate(spoken),
    text=b"".join(body),
    texts=np.concatenate(texts),
    rows=np.concatenate(sizes),
  )


def _arrays(found: Sequence[_Set], n: int, least: int, numbers: bool) -> dict[str, np.ndarray]:
  """Returns what index.npz holds."""
  text = b"".join(f.text for f in found)
  if len(text) > _MOST:
    raise UserError(
      f"decontaminate: {len(text):,} bytes of words in the sets, at most {_MOST:,} fit"
    )
  hashes = np.concatenate([f.hashes for f in found])
  starts = np.append(0, np.cumsum(np.concatenate([f.lengths for f in found]) + 1))
  row_bounds = _joined([f.rows for f in found])
  keys, places, sizes = _grams(hashes, _joined([f.texts for f in found]), row_bounds, n, least)
  if not numbers:
    spoken = np.append(0, np.cumsum(np.concatenate([f.spoken for f in found])))
    own = spoken[places + sizes] > spoken[places]
    keys, places, sizes = keys[own], places[own], sizes[own]
  return {
    "text": np.frombuffer(text, np.uint8),
    "rows": row_bounds,
    **_grouped(keys, places, sizes, text, starts),
    "counts": np.zeros(0, np.int64),
  }


def _batches(found: Iterable[list[str]]) -> Iterator[list[list[str]]]:
  batch: list[list[str]] = []
  size = 0
  for row in found:
    batch.append(row)
    size += sum(map(len, row))
    if size >= _CHARS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _joined(sizes: Sequence[np.ndarray]) -> np.ndarray:
  return np.append(0, np.cumsum(np.concatenate(sizes))).astype(np.int64)


def _grams(
  hashes: np.ndarray, text_bounds: np.ndarray, row_bounds: np.ndarray, n: int, least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (hash looked up, first word, words) of everything that is protected, each [P]."""
  row_V = np.repeat(np.arange(len(row_bounds) - 1), np.diff(row_bounds))
  long = words.grams(hashes, n)
  inside = np.flatnonzero(row_V[: len(long)] == row_V[n - 1 :]) if len(long) else np.zeros(0, int)
  short = np.zeros((0, 2), np.int64)
  for bounds in (text_bounds, row_bounds):
    whole = np.stack([bounds[:-1], np.diff(bounds)], axis=1)
    short = np.concatenate([short, whole[(whole[:, 1] >= least) & (whole[:, 1] < n)]])
  short = np.unique(short, axis=0)
  keys = np.concatenate([long[inside], words.grams(hashes, least)[short[:, 0]]])
  sizes = np.concatenate([np.full(len(inside), n, np.int64), short[:, 1]])
  return keys, np.concatenate([inside, short[:, 0]]), sizes


def _grouped(
  keys: np.ndarray, places: np.ndarray, sizes: np.ndarray, text: bytes, starts: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the arrays of the different n-grams, ascending by hash."""
  order = np.lexsort((places, sizes, keys))
  keys, places, sizes = keys[order], places[order], sizes[order]
  first = np.ones(len(keys), bool)
  first[1:] = (keys[1:] != keys[:-1]) | (sizes[1:] != sizes[:-1])
  begins, ends = starts[places], starts[places + sizes] - 1
  for i in np.flatnonzero(~first).tolist():
    # The same hash of other words is an n-gram of its own.
    first[i] = text[begins[i] : ends[i]] != text[begins[i - 1] : ends[i - 1]]
  return {
    "grams": keys[first],
    "sizes": sizes[first].astype(np.uint8),
    "bounds": np.append(np.flatnonzero(first), len(keys)).astype(np.int32),
    "places": places.astype(np.int32),
  }


def _sets(
  sources: Sequence[Source], found: Sequence[_Set], arrays: dict[str, np.ndarray], n: int
) -> list[dict[str, Any]]:
  sizes_P = np.repeat(arrays["sizes"], np.diff(arrays["bounds"]))
  row_P = np.searchsorted(arrays["rows"], arrays["places"], side="right") - 1
  protected = np.bincount(row_P, minlength=len(arrays["rows"]) - 1) > 0
  long = np.bincount(row_P[sizes_P == n], minlength=len(protected)) > 0
  facts, begin = [], 0
  for source, own in zip(sources, found, strict=True):
    part = slice(begin, begin + len(own.rows))
    begin += len(own.rows)
    facts.append(
      {
        **dataclasses.asdict(source),
        "rows": len(own.rows),
        "words": int(own.rows.sum()),
        "short": int((protected & ~long)[part].sum()),
        "unprotected": int((~protected)[part].sum()),
      }
    )
  return facts


@functools.lru_cache(maxsize=8)
def _load(directory: str, _: int) -> Index:
  facts, arrays = artifacts.load(directory, NAME, VERSION, _ARRAYS, _REMEDY)
  text, row_bounds, grams, sizes, bounds, places, counts = (arrays[k] for k in _ARRAYS)
  starts = np.append(0, np.flatnonzero(text == ord(" ")) + 1)
  try:
    set_rows = [int(s["rows"]) for s in facts["sets"]]
    n, least = int(facts["n"]), int(facts["least"])
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(f"{directory}/{NAME}.json is damaged; {_REMEDY}") from e
  shapes = (
    len(row_bounds) == sum(set_rows) + 1,
    len(sizes) == len(grams) == len(bounds) - 1,
    len(counts) in (0, len(grams)),
    bounds[-1] == len(places),
    row_bounds[-1] == len(starts) - 1,
    starts[-1] == len(text),
    not len(places) or 0 <= places.min() <= places.max() < len(starts),
  )
  if not all(shapes):
    raise UserError(f"{directory}: the arrays of this index do not fit each other; {_REMEDY}")
  parts = ((n, sizes == n), (least, sizes < n))
  tables = tuple(_table(k, grams, np.flatnonzero(own)) for k, own in parts if own.any())
  sets = np.repeat(np.arange(len(set_rows)), set_rows)
  own = (starts, row_bounds, sets, sizes, bounds, places, counts)
  return Index(facts, text.tobytes(), *own, tables)


def _table(length: int, grams: np.ndarray, ids: np.ndarray) -> Table:
  own = grams[ids]
  # Sixteen places per hash or more: few words pass by chance, and only those are searched for.
  bits = min(int(len(own)).bit_length() + 4, 26)
  shift = np.uint64(64 - bits)
  sieve = np.zeros(1 << bits, bool)
  sieve[own >> shift] = True
  return Table(length, own, ids, sieve, shift)
