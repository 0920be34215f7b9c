"""What language a text is in: py3langid's model (BSD), which comes with the package.

The model is naive Bayes over strings of up to six UTF-8 bytes in 139 languages (Lui and Baldwin
2011, IJCNLP, "Cross-domain Feature Selection for Language Identification"; retrained for py3langid
0.4). It takes 100 MB in every process that uses it. The package walks its automaton byte by byte,
at 1.4 MB/s; here many places of a text are walked at once, for what the automaton knows after six
bytes does not depend on what was before. The answers are the package's own.

B bytes, K places, S states, R rows, F strings, L languages.
"""

import functools
import math
import unicodedata
from typing import NamedTuple

import numpy as np

from llm_jax.data.documents import Document
from llm_jax.errors import UserError

SAMPLE = 1500  # Characters of a text that are looked at.

_STRIDE = 16  # Bytes walked from each place.
_REACH = 6  # Bytes of the longest string of the model.
_NEVER = 0xFF  # A byte that UTF-8 does not have, and that no string of the model has.


class _Model(NamedTuple):
  """The automaton and the weights.

  Attributes:
    moves: [R * 256] next state, by row and byte.
    rows: [S] int64, 256 times the row of each state.
    strings: [S] int32, the string that ends in a state, -1: none.
    weights: [F, L] float32, log-likelihoods.
    prior: [L] float32.
    codes: L codes; two columns may have the same.
    columns: [L] int64, the first column with the same code.
  """

  moves: np.ndarray
  rows: np.ndarray
  strings: np.ndarray
  weights: np.ndarray
  prior: np.ndarray
  codes: tuple[str, ...]
  columns: np.ndarray


def language(
  document: Document, code: str = "en", least: float = 0.65, sample: int = SAMPLE
) -> str | None:
  """Keeps documents in one language.

  RefinedWeb and FineWeb want fastText's 0.65 for English, C4 langdetect's 0.99, CCNet fastText's
  0.5. Those are probabilities of other models. This one is sure of prose: of 161 English articles
  from the web 160 have more than 0.99. Lists and code may be "zxx" (no language) to it.

  Args:
    document: to judge.
    code: ISO 639 code, such as "en", "de", "zh".
    least: probability that the model gives it, at least.
    sample: characters looked at; see `detect`.

  Raises:
    UserError: py3langid is not there, or its model does not know `code`.
  """
  if code not in _model().codes:
    known = ", ".join(sorted(set(_model().codes)))
    raise UserError(f"language: the model does not know {code!r}; it knows {known}")
  found, probability = detect(document.text, sample)
  if found != code:
    return f"language: {found}"
  return f"language: unsure of {code}" if probability < least else None


def detect(text: str, sample: int = SAMPLE) -> tuple[str, float]:
  """Returns (ISO 639 code, probability) of the likeliest language.

  ("und", 0.0) where nothing speaks for any language; "zxx" is the model's class for what is none.

  Args:
    text: any.
    sample: a longer text is judged by so many of its characters, a third each of its start, middle
      and end; 0: by all.

  Raises:
    UserError: py3langid is not there.
  """
  model = _model()
  data = np.frombuffer(_encoded(sampled(text, sample)), np.uint8)
  strings = _strings(model, data)
  if not len(strings):
    return "und", 0.0
  strings.sort()
  firsts = np.flatnonzero(np.append(True, strings[1:] != strings[:-1]))
  counts = np.diff(firsts, append=len(strings)).astype(np.float32)
  scores = np.log1p(counts) @ model.weights[strings[firsts]] + model.prior
  scores = np.exp((scores - scores.max()) / math.sqrt(len(data)))
  sums = np.bincount(model.columns, scores)
  best = int(sums.argmax())
  return model.codes[best], float(sums[best] / sums.sum())


def sampled(text: str, size: int) -> str:
  """Returns a text, or where it is longer than `size` a third each of its start, middle and end."""
  if not size or len(text) <= size:
    return text
  third = max(size // 3, 1)
  middle = (len(text) - third) // 2
  return "\n".join((text[:third], text[middle : middle + third], text[-third:]))


def _encoded(text: str) -> bytes:
  if text.isupper():
    text = text.lower()
  return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")


def _strings(model: _Model, data: np.ndarray) -> np.ndarray:
  """Returns the strings of the model that end in `data` [B], once for each time."""
  places = -(-len(data) // _STRIDE)
  lead = _REACH - 1
  padded = np.full(lead + places * _STRIDE, _NEVER, np.uint8)
  padded[lead : lead + len(data)] = data
  states = np.zeros(places, np.int64)
  visited = np.empty((_STRIDE, places), np.int64)
  for step in range(lead + _STRIDE):
    bytes_K = padded[step::_STRIDE][:places]
    states = model.moves[model.rows[states] + bytes_K]
    if step >= lead:
      visited[step - lead] = states
  found = model.strings[visited.ravel()]
  return found[found >= 0]


@functools.cache
def _model() -> _Model:
  try:
    from py3langid.langid import MODEL_DIR, MODEL_FILE
    from py3langid.modelio import load_model
  except ImportError as e:
    raise UserError("language: py3langid is not installed; pip install 'py3langid>=0.4'") from e
  weights, prior, codes, moves, rows, strings = load_model(MODEL_DIR / MODEL_FILE)
  return _Model(
    np.asarray(moves),
    np.asarray(rows).astype(np.int64) * 256,
    np.asarray(strings, np.int32),
    np.asarray(weights, np.float32),
    np.asarray(prior),
    tuple(codes),
    np.array([codes.index(code) for code in codes]),
  )
