"""Direct preference optimisation and its relatives, with cached reference log-probs."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.data.posttraining import Tokens
from llm_jax.losses import objectives
from llm_jax.stages import answers, pairs, runs, training
from llm_jax.train import loop, parallel, processes
from llm_jax.types import TrainState


def run(cfg: config.Dpo, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Trains the model of `cfg.init` on preference pairs; `loss` swaps the pair loss.

  The frozen reference is that same model: its log-probs of every answer are worked out once and
  kept in `reference-*.npz`, so no second model is in memory while training.
  """
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  tokenizer = runs.tokenizer(cfg.prepared)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
  found = zip(("train", "validation"), pairs.splits(cfg, tokenizer), strict=True)
  encoded = {split: [pair.row for pair in part] for split, part in found if part}
  with training.fitting(cfg):
    objective = objectives.logratio_pairs(
      training.decoder_apply(start.model), pair_loss, average=cfg.average
    )
  blank = [row | {"ref_chosen": 0.0, "ref_rejected": 0.0} for row in encoded["train"][:1]]
  training.check_fit(cfg, objective, start.params, pairs.collate(blank, cfg.length))
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  for split, rows in encoded.items():
    path = pathlib.Path(workdir) / f"reference-{split}.npz"
    reference = annotate(start, rows, cfg.length, path)
    encoded[split] = [row | ref for row, ref in zip(rows, reference, strict=True)]
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
    evaluate=training.metrics_on(
      objective,
      place,
      lambda: pairs.in_order(encoded["validation"], cfg.length, cfg.batch),
    )
    if "validation" in encoded
    else None,
    place=place,
    row_tokens=2 * cfg.length,
    adapter=cfg.lora,
  )


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
