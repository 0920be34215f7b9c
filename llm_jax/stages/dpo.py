"""Direct preference optimisation and its relatives, with cached reference log-probs."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.data.posttraining import Tokens
from llm_jax.losses import objectives
from llm_jax.stages import answers, pairs, runs, training
from llm_jax.train import loop, parallel, processes
from llm_jax.train.step import StepFn
from llm_jax.types import Apply, Batch, LossFn, Mean, Params, TrainState

_NOTED = 0.1  # Nats: less than this is noise.


def run(cfg: config.Dpo, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Trains the model of `cfg.init` on preference pairs; `loss` swaps the pair loss.

  The frozen reference is that same model, or `cfg.reference`: its log-probs of every answer are
  worked out once and kept in `reference-*.npz`, so no second model is in memory while training. A
  reference that follows the policy (`cfg.sync_every`) is in the state instead.
  """
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  tokenizer = runs.tokenizer(cfg.prepared)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
  reference = start
  if cfg.reference:
    reference = runs.load(cfg.reference, "reference", vocab_size=tokenizer.vocab_size)
  train, held_out = pairs.splits(cfg, tokenizer)
  encoded = {"train": pairs.numbered(train, cfg.soft_labels)}
  if held_out:
    encoded["validation"] = pairs.numbered(held_out, cfg.soft_labels)
  apply = training.decoder_apply(start.model)
  with training.fitting(cfg):
    objective = objectives.logratio_pairs(apply, pair_loss, average=cfg.average)
  blank = [row | {"ref_chosen": 0.0, "ref_rejected": 0.0} for row in encoded["train"][:1]]
  training.check_fit(cfg, objective, start.params, pairs.collate(blank, cfg.length))
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  for split, rows in encoded.items():
    if cfg.sync_every and split == "train":
      continue
    path = pathlib.Path(workdir) / f"reference-{split}.npz"
    found = annotate(reference, rows, cfg.length, path)
    encoded[split] = [row | ref for row, ref in zip(rows, found, strict=True)]
  place = parallel.make(cfg.mesh)
  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=training.initializer(start.model),
    loaded=start.params,
    feed=loop.IteratorFeed(
      batches.examples(
        encoded["train"], lambda rows: pairs.collate(rows, cfg.length), cfg.batch, cfg.seed
      )
    ),
    evaluate=_evaluate(cfg, objective, place, encoded["validation"]) if held_out else None,
    place=place,
    row_tokens=2 * cfg.length,
    adapter=cfg.lora,
    wrap=functools.partial(following, apply, cfg.sync_every, cfg.sync_alpha)
    if cfg.sync_every
    else None,
  )


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


def _evaluate(cfg: config.Dpo, objective: LossFn, place: parallel.Placement, rows: list):
  """Metrics on held-out pairs; says once what looks like a mistake and is none."""
  measure = training.metrics_on(
    objective, place, lambda: pairs.in_order(rows, cfg.length, cfg.batch)
  )
  told = False

  def evaluate(params: Params) -> dict[str, float]:
    nonlocal told
    metrics = measure(params)
    down, margin = -metrics["rewards/chosen"], metrics["rewards/margins"]
    if not told and min(down, margin) > _NOTED:
      told = True
      processes.say(
        f"normal for DPO: chosen answers are {down:.1f} nats less likely than under the reference "
        f"while the margin is {margin:.1f}, for the loss sees their difference alone; "
        "+ 0.2*nll_chosen in config.loss holds them"
      )
    return metrics

  return evaluate


def annotate(
  reference: runs.Run, rows: Sequence[dict[str, Tokens]], length: int, cache: pathlib.Path
) -> list[dict[str, float]]:
  """Sequence log-probs of every answer under the reference: {"ref_chosen", "ref_rejected"}.

  Worked out once; the file at `cache` is used again only for the same answers and parameters.
  """
  key = _fingerprint(reference, rows, length)
  if cache.exists():
    with np.load(cache) as saved:
      if str(saved["key"]) == key:
        return _as_rows(saved["chosen"], saved["rejected"])
  logps = answers.logps_fn(reference.model)
  sums = {}
  for side in ("chosen", "rejected"):
    batch = batches.lm_batch([row[side] for row in rows], length)
    sums[side] = answers.in_rows(lambda part: logps(reference.params, part).sum(1), batch)
  if processes.primary():  # The others have worked out the same.
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(".tmp.npz")
    np.savez(temporary, key=key, **sums)
    os.replace(temporary, cache)
  return _as_rows(sums["chosen"], sums["rejected"])


def _as_rows(chosen_N: np.ndarray, rejected_N: np.ndarray) -> list[dict[str, float]]:
  return [
    {"ref_chosen": float(c), "ref_rejected": float(r)}
    for c, r in zip(chosen_N, rejected_N, strict=True)
  ]


def _fingerprint(reference: runs.Run, rows: Sequence[dict[str, Tokens]], length: int) -> str:
  digest = hashlib.sha256(str(length).encode())
  for row in rows:
    digest.update(repr((row["chosen"], row["rejected"])).encode())
  for leaf in jax.tree.leaves(reference.params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
