"""A trained quality model: a weight per bucket, a calibration, and what held-out text says of it.

N texts, S documents of the calibration sample.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.data import artifacts, words
from llm_jax.data.quality.features import BUCKETS, features
from llm_jax.errors import UserError

NAME = "model"
VERSION = 1
_ARRAYS = {"weights": "float32", "line": "float64", "sample": "float64"}
_REMEDY = "train it with python -m tools.train_quality"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """Logistic regression on hashed features, and a Platt scaling of its logits.

  Attributes:
    weights: [BUCKETS] float32.
    bias: of a passage.
    slope: score = sigmoid(slope * logit + offset), the probability that a document is curated if
      curated and raw ones were equally many.
    offset: see `slope`.
    sample: [S] float64, ascending logits of raw documents that were not trained on.
    facts: what model.json says besides: features, sources, held-out metrics.
  """

  weights: np.ndarray
  bias: float
  slope: float
  offset: float
  sample: np.ndarray
  facts: dict[str, Any]

  def logits(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the mean [N] float64 of the logits of each text's passages."""
    parts = [np.zeros(0)]
    for batch in words.batches(texts):
      found = features(batch)
      sums_K = np.bincount(
        found.rows, found.values * self.weights[found.columns], int(found.firsts[-1])
      )
      parts.append(np.add.reduceat(sums_K, found.firsts[:-1]) / np.diff(found.firsts) + self.bias)
    return np.concatenate(parts)

  def scores(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the probability [N] float64 that each text is curated, at equal shares."""
    return self.calibrated(self.logits(texts))

  def calibrated(self, logits: np.ndarray) -> np.ndarray:
    """Returns the scores of these logits."""
    return 0.5 * (1 + np.tanh(0.5 * (self.slope * logits + self.offset)))

  def bound(self, fraction: float) -> float:
    """Returns the logit that this fraction of the calibration sample reaches.

    Raises:
      UserError: unless `fraction` is in (0, 1] and at least one document of the sample.
    """
    size = len(self.sample)
    if not 0 < fraction <= 1 or round(fraction * size) < 1:
      raise UserError(
        f"quality: fraction={fraction} must be between 1/{size} and 1: "
        f"the model's calibration sample has {size} raw documents"
      )
    return float(self.sample[size - round(fraction * size)])


def save(directory: str | os.PathLike[str], model: Model) -> None:
  """Writes `directory`/model.npz and model.json.

  Raises:
    UserError: if the folder cannot be written.
  """
  line = np.array([model.bias, model.slope, model.offset])
  arrays = {"weights": model.weights, "line": line, "sample": model.sample}
  artifacts.save(directory, NAME, VERSION, model.facts, arrays)


def load(directory: str | os.PathLike[str]) -> Model:
  """Reads a model, once per process as long as its files do not change.

  Raises:
    UserError: if there is none, or its files are damaged or of another version.
  """
  return _load(os.fspath(directory), artifacts.stamp(directory, NAME))


@functools.lru_cache(maxsize=8)
def _load(directory: str, _: int) -> Model:
  facts, arrays = artifacts.load(directory, NAME, VERSION, _ARRAYS, _REMEDY)
  weights, line, sample = (arrays[name] for name in _ARRAYS)
  shapes = (len(weights) == BUCKETS, len(line) == 3, len(sample) > 0)
  finite = all(np.isfinite(array).all() for array in (weights, line, sample))
  if not (all(shapes) and finite and line[1] >= 0 and (np.diff(sample) >= 0).all()):
    raise UserError(f"{directory}: these are not the arrays of a quality model; {_REMEDY}")
  bias, slope, offset = line.tolist()
  return Model(weights, bias, slope, offset, sample, facts)
