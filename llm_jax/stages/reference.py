"""Reference models of preference optimisation: log-probs kept on disk, or a mean that follows."""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.data import batches
from llm_jax.data.posttraining import Tokens
from llm_jax.losses import objectives
from llm_jax.stages import answers, pairs, runs
from llm_jax.train import processes
from llm_jax.train.step import StepFn
from llm_jax.types import Apply, Batch, Mean, TrainState


def annotate(
  reference: runs.Run,
  rows: Sequence[dict[str, Tokens]],
  length: int,
  cache: pathlib.Path,
  sides: Sequence[str] = pairs.SIDES,
) -> list[dict[str, float]]:
  """Sequence log-probs of every answer under the reference: {"ref_chosen", "ref_rejected"}.

  Worked out once; the file at `cache` is used again only for the same answers and parameters.

  Args:
    reference: the model.
    rows: with (tokens, mask) of every side.
    length: T.
    cache: a .npz file.
    sides: names of a row's answers.
  """
  key = _fingerprint(reference, rows, length, sides)
  if cache.exists():
    with np.load(cache) as saved:
      if str(saved["key"]) == key:
        return _as_rows({side: saved[side] for side in sides})
  logps = answers.logps_fn(reference.model)
  sums = {}
  for side in sides:
    batch = batches.lm_batch([row[side] for row in rows], length)
    sums[side] = answers.in_rows(lambda part: logps(reference.params, part).sum(1), batch)
  if processes.primary():  # The others have worked out the same.
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(".tmp.npz")
    np.savez(temporary, key=key, **sums)
    os.replace(temporary, cache)
  return _as_rows(sums)


def annotate_splits(
  reference: runs.Run,
  splits: Mapping[str, Sequence[dict[str, Any]]],
  length: int,
  workdir: str,
  sides: Sequence[str] = pairs.SIDES,
) -> dict[str, list[dict[str, Any]]]:
  """Returns the rows of each split with what `annotate` gives, kept in a file of `workdir` each."""
  out = {}
  for split, rows in splits.items():
    path = pathlib.Path(workdir) / f"reference-{split}.npz"
    found = annotate(reference, rows, length, path, sides)
    out[split] = [row | ref for row, ref in zip(rows, found, strict=True)]
  return out


def _as_rows(sums: dict[str, np.ndarray]) -> list[dict[str, float]]:
  columns = zip(*sums.values(), strict=True)
  return [
    {f"ref_{side}": float(x) for side, x in zip(sums, values, strict=True)} for values in columns
  ]


def _fingerprint(
  reference: runs.Run, rows: Sequence[dict[str, Tokens]], length: int, sides: Sequence[str]
) -> str:
  digest = hashlib.sha256(str(length).encode())
  for row in rows:
    digest.update(repr(tuple(row[side] for side in sides)).encode())
  for leaf in jax.tree.leaves(reference.params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def following(apply: Apply, every: int, alpha: float, step: StepFn) -> StepFn:
  """Returns a step whose reference follows the policy: TR-DPO.

  Gorbatovski et al. 2024, arXiv:2404.09656, eq. 4 and 5: after every `every` updates the reference
  becomes alpha * policy + (1 - alpha) * reference; of alpha 1 the policy itself. Its log-probs of a
  batch are worked out in the step, before the update.

  Args:
    apply: of the policy, without dropout.
    every: updates between two changes.
    alpha: part of the policy.
    step: (state, batch with ref_chosen and ref_rejected) -> (state, metrics).
  """
  logps = objectives.sequence_logps(apply)

  def run(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
    key = jax.random.key(0)  # Not used: nothing is dropped.
    found = {f"ref_{side}": logps(state.reference, batch[side], key) for side in pairs.SIDES}
    new, metrics = step(state, {**batch, **found})
    due = new.step % every == 0
    moved = jax.tree.map(
      lambda old, own: jnp.where(due, alpha * own + (1 - alpha) * old, old),
      state.reference,
      new.params,
    )
    return new.replace(reference=moved), metrics

  return run
