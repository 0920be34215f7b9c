"""Trains, calibrates and tests a quality model, each on documents that the others never see.

N documents, M of them in a part, B bins of scores. Label 1 is curated, 0 is raw.
"""

import dataclasses
import hashlib
import heapq
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data import words
from llm_jax.data.dedup import components, signatures
from llm_jax.data.documents import Document
from llm_jax.data.quality.features import BITS, BUCKETS, KIND, PASSAGE, features
from llm_jax.data.quality.model import Model
from llm_jax.errors import UserError

PARTS = {"train": 0.7, "calibration": 0.15, "test": 0.15}
LEAST = 10  # Documents of each class in each part.
PASSAGES = 16  # Of one document trained on: a book must not outweigh a hundred pages.
BINS = 10

_TOP = (0.01, 0.05, 0.1, 0.2, 0.5)  # Fractions whose thresholds are written down.
_PACKAGES = ("numpy", "scipy", "scikit-learn")


class _Data(NamedTuple):
  """What is learnt from: texts [N], labels [N], keys [N] uint64 that name the normalised texts."""

  texts: list[str]
  labels: np.ndarray
  keys: np.ndarray
  counts: dict[str, dict[str, int]]


def train(
  good: Iterable[Document],
  raw: Iterable[Document],
  seed: int = 0,
  most: int = 50_000,
  penalty: float = 1e-5,
  epochs: int = 20,
  provenance: Mapping[str, Any] | None = None,
  log: Callable[[str], None] = lambda line: None,
) -> Model:
  """Returns a model that tells `good` from `raw` documents, and how well it did on held-out ones.

  The same documents in any order and the same seed give the same model. Documents without a word
  and exact duplicates (after normalisation) are left out; a raw one that is also curated counts as
  curated. 70 % train the weights, 15 % the calibration and the thresholds, 15 % are the test; near
  duplicates (candidates of MinHash, Jaccard 0.8 and more) are in the same part. In all of this
  both classes weigh the same, however many documents they have.

  Args:
    good: curated documents: books, an encyclopedia, pages that people recommend.
    raw: what the documents to be judged are like, cleaned by the steps that come before.
    seed: of the sample, the parts and the order of training.
    most: documents of each class; of more, the sample with the smallest hashes is taken.
    penalty: factor of the squared weights.
    epochs: passes over the training part.
    provenance: written into the model's facts.
    log: gets a line per step.

  Raises:
    UserError: if a class has too few documents, or scikit-learn is not installed.
  """
  data = _collect(good, raw, seed, most)
  log(
    ", ".join(f"{n:,} {name}" for name, n in zip(("raw", "good"), _sizes(data.labels), strict=True))
  )
  part_N, largest = _parts(data, seed)
  _check(part_N, data.labels)
  train_N, calibration_N, test_N = (part_N == i for i in range(3))
  weights, bias, passages = _fit(
    _pick(data.texts, train_N), data.labels[train_N], penalty, epochs, seed
  )
  log(f"trained on {passages:,} passages")
  model = Model(weights, bias, 1.0, 0.0, np.zeros(1), {})
  labels = data.labels[calibration_N]
  logits = model.logits(_pick(data.texts, calibration_N))
  slope, offset = _platt(logits, labels)
  sample = np.sort(logits[labels == 0])
  model = Model(weights, bias, slope, offset, sample, {})
  logits = model.logits(_pick(data.texts, test_N))
  parts = {name: _counted(data.labels[part_N == i]) for i, name in enumerate(PARTS)}
  facts = {
    "kind": "quality model",
    "features": {"kind": KIND, "bits": BITS, "passage_words": PASSAGE},
    "training": {"seed": seed, "penalty": penalty, "epochs": epochs, "passages": passages},
    "documents": data.counts | {"parts": parts, "largest_group": largest},
    "thresholds": _thresholds(model),
    "test": _test(model, logits, data.labels[test_N]),
    "provenance": _provenance(data, provenance or {}),
  }
  return dataclasses.replace(model, facts=facts)


def transfer(model: Model, documents: Iterable[Document]) -> float:
  """Returns the AUC of documents from elsewhere against the raw documents of `model`'s calibration.

  A classifier may learn its sources instead of what they have in common. Trained without one
  curated source, it should still rank that one above raw text: 0.5 is chance.

  Args:
    model: trained without these documents and what they come from.
    documents: curated.
  """
  logits = model.logits([document.text for document in documents])
  below, above = (np.searchsorted(model.sample, logits, side) for side in ("left", "right"))
  return float(np.mean(below + above) / (2 * len(model.sample)))


def _collect(good: Iterable[Document], raw: Iterable[Document], seed: int, most: int) -> _Data:
  """Returns the sample of both classes, curated first, ascending by key."""
  seen: set[int] = set()
  counts: dict[str, dict[str, int]] = {}
  chosen: list[tuple[int, str]] = []
  sizes = []
  for name, documents in (("good", good), ("raw", raw)):
    own = counts[name] = {"read": 0, "empty": 0, "duplicates": 0, "used": 0}
    sample = heapq.nsmallest(most, _distinct(documents, seed, seen, own), key=lambda item: item[0])
    own["used"] = len(sample)
    sizes.append(len(sample))
    chosen += sample
  keys = np.array([key for key, _ in chosen], np.uint64)
  labels = np.repeat(np.array([1, 0]), sizes)
  return _Data([text for _, text in chosen], labels, keys, counts)


def _distinct(
  documents: Iterable[Document], seed: int, seen: set[int], counts: dict[str, int]
) -> Iterator[tuple[int, str]]:
  """Yields (key, text) of the first document of each normalised text."""
  for document in documents:
    counts["read"] += 1
    plain = signatures.normalise(document.text)
    if not any(map(str.isalnum, plain)):
      counts["empty"] += 1
      continue
    name = f"{seed}:{plain}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
    if key in seen:
      counts["duplicates"] += 1
      continue
    seen.add(key)
    yield key, document.text


def _parts(data: _Data, seed: int) -> tuple[np.ndarray, int]:
  """Returns the part [N] of each document, and the size of the largest group of near duplicates."""
  size = len(data.texts)
  bands_NB = np.concatenate(
    [signatures.signatures(b).bands for b in words.batches(data.texts)] or []
  )
  edges = []
  for keys in bands_NB.T:
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    edges.append(np.stack([first[group], np.arange(size)], axis=1))
  group_N = components.labels(np.concatenate(edges), size)
  least = np.full(size, 2**64 - 1, np.uint64)
  np.minimum.at(least, group_N, data.keys)
  # The keys are the smallest of a larger set: mixed, they are uniform again.
  draw_N = words.mix(least[group_N]) / 2.0**64
  part_N = np.searchsorted(np.cumsum(list(PARTS.values()))[:-1], draw_N, side="right")
  return part_N, int(np.bincount(group_N).max())


def _check(part_N: np.ndarray, labels: np.ndarray) -> None:
  for label, name in ((1, "good"), (0, "raw")):
    found = np.bincount(part_N[labels == label], minlength=len(PARTS)).tolist()
    for part, count in zip(PARTS, found, strict=True):
      if count < LEAST:
        raise UserError(
          f"{name}: {count} different documents for the {part} part, {LEAST} are the least; "
          f"give more documents (of {sum(found)} there were {found} for {', '.join(PARTS)})"
        )


def _fit(
  texts: list[str], labels: np.ndarray, penalty: float, epochs: int, seed: int
) -> tuple[np.ndarray, float, int]:
  """Returns weights [BUCKETS] float32, the bias, and the number of passages learnt from."""
  linear = _sklearn()
  from scipy import sparse

  matrices, owners = [], []
  begin = 0
  for batch in words.batches(texts):
    found = features(batch)
    parts_N = np.diff(found.firsts)
    text_K = np.repeat(np.arange(len(batch)), parts_N)
    nth_K, of_K = np.arange(len(text_K)) - found.firsts[text_K], parts_N[text_K]
    spread_K = nth_K * PASSAGES // of_K != (nth_K - 1) * PASSAGES // of_K
    bounds = np.searchsorted(found.rows, np.arange(len(text_K) + 1))
    shape = (len(text_K), BUCKETS)
    matrix = sparse.csr_matrix((found.values, found.columns, bounds), shape=shape)
    matrices.append(matrix[np.flatnonzero(spread_K)])
    owners.append(begin + text_K[spread_K])
    begin += len(batch)
  owner_K = np.concatenate(owners)
  model = linear.SGDClassifier(
    loss="log_loss",
    alpha=penalty,
    max_iter=epochs,
    tol=None,
    average=True,
    class_weight="balanced",
    random_state=seed,
  )
  model.fit(sparse.vstack(matrices, format="csr"), labels[owner_K])
  return model.coef_[0].astype(np.float32), float(model.intercept_[0]), len(owner_K)


def _platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
  """Returns slope and offset of P(label 1) = sigmoid(slope * logit + offset), at equal shares.

  Platt 1999: maximum likelihood, with targets (n + 1) / (n + 2) and 1 / (n + 2), so that classes
  which the sample separates do not make the slope infinite. A model that ranks the sample worse
  than chance gets slope 0: it knows nothing.
  """
  linear = _sklearn()
  raw, good = _sizes(labels)
  target_M = np.where(labels == 1, (good + 1) / (good + 2), 1 / (raw + 2))
  balance_M = balanced(labels) * len(labels)
  scale = float(np.std(logits)) + 1e-12
  model = linear.LogisticRegression(C=1e6, max_iter=1000).fit(
    np.tile(logits / scale, 2)[:, None],
    np.repeat([1, 0], len(logits)),
    np.concatenate([balance_M * target_M, balance_M * (1 - target_M)]),
  )
  slope = float(model.coef_[0, 0]) / scale
  return (slope, float(model.intercept_[0])) if slope > 0 else (0.0, 0.0)


def balanced(labels: np.ndarray) -> np.ndarray:
  """Returns weights [M] that add up to 1/2 in each class."""
  return 0.5 / np.bincount(labels, minlength=2)[labels]


def _provenance(data: _Data, given: Mapping[str, Any]) -> dict[str, Any]:
  digest = hashlib.sha256(data.keys.tobytes()).hexdigest()
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {**given, "documents_sha256": digest, "versions": versions}


def _thresholds(model: Model) -> dict[str, dict[str, float]]:
  fractions = [f for f in _TOP if f * len(model.sample) >= 1]
  bounds = {f: model.bound(f) for f in fractions}
  return {
    f"top {f:g}": {"logit": x, "score": float(model.calibrated(np.array(x)))}
    for f, x in bounds.items()
  }


def _test(model: Model, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Returns what held-out documents say of the model; both classes weigh the same."""
  from sklearn import metrics

  scores = model.calibrated(logits)
  weights = balanced(labels)
  bins = _bins(scores, labels, weights)
  gap = sum(b["weight"] * abs(b["score"] - b["curated"]) for b in bins)
  stays = {"pareto 9": (2 - scores) ** -9.0, "threshold 0.5": scores >= 0.5}
  for fraction in (f for f in _TOP if f * len(model.sample) >= 1):
    stays[f"top {fraction:g}"] = logits >= model.bound(fraction)
  kept = {
    rule: {name: float(np.mean(s[labels == i])) for i, name in ((1, "good"), (0, "raw"))}
    for rule, s in stays.items()
  }
  likely = np.clip(np.where(labels == 1, scores, 1 - scores), 1e-15, 1)
  return {
    **_counted(labels),
    "accuracy": float(np.sum(weights * ((scores >= 0.5) == labels))),
    "auc": float(metrics.roc_auc_score(labels, logits)),
    "brier": float(np.sum(weights * (scores - labels) ** 2)),
    "log_loss": float(-np.sum(weights * np.log(likely))),
    "calibration_error": float(gap),
    "kept": kept,
    "calibration": bins,
  }


def _bins(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
  """Returns the reliability table: what was said in each bin of scores, and what was so."""
  nth_M = np.minimum((scores * BINS).astype(int), BINS - 1)
  rows = []
  for b in range(BINS):
    own = nth_M == b
    weight = float(weights[own].sum())
    if weight:
      rows.append(
        {
          "low": b / BINS,
          "high": (b + 1) / BINS,
          **_counted(labels[own]),
          "weight": weight,
          "score": float(np.sum(weights[own] * scores[own]) / weight),
          "curated": float(np.sum(weights[own] * labels[own]) / weight),
        }
      )
  return rows


def _pick(texts: list[str], chosen: np.ndarray) -> list[str]:
  return [texts[i] for i in np.flatnonzero(chosen)]


def _sizes(labels: np.ndarray) -> list[int]:
  return np.bincount(labels, minlength=2).tolist()


def _counted(labels: np.ndarray) -> dict[str, int]:
  raw, good = _sizes(labels)
  return {"good": good, "raw": raw}


def _sklearn() -> Any:
  try:
    from sklearn import linear_model
  except ImportError as e:
    raise UserError("training a quality model needs scikit-learn: pip install scikit-learn") from e
  return linear_model
