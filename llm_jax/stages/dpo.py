"""Direct preference optimisation and its relatives, with cached reference log-probs."""

import functools
from collections.abc import Callable

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.losses import objectives
from llm_jax.stages import own, pairs, reference, runs, training, unpaired
from llm_jax.train import feeds, parallel, processes
from llm_jax.types import LossFn, Params, TrainState

_NOTED = 0.1  # Nats: less than this is noise.


def run(cfg: config.Dpo, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Trains the model of `cfg.init` on preference pairs; `loss` swaps the pair loss.

  With `cfg.labels` it is single answers that are wanted or not, and the loss is one on them.

  The frozen reference is that same model, or `cfg.reference`: its log-probs of every answer are
  worked out once and kept in `reference-*.npz`, so no second model is in memory while training. A
  reference that follows the policy (`cfg.sync_every`) is in the state instead.
  """
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  tokenizer = runs.tokenizer(cfg.prepared)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
  frozen = start
  if cfg.reference:
    frozen = runs.load(cfg.reference, "reference", vocab_size=tokenizer.vocab_size)
  if cfg.labels:
    return unpaired.run(cfg, workdir, pair_loss, start, frozen, tokenizer)
  apply = training.decoder_apply(start.model)
  with own.intake(cfg, workdir) as taken:
    train, held_out = pairs.splits(cfg, taken, tokenizer)
    encoded = {"train": pairs.numbered(train, cfg.soft_labels)}
    if held_out:
      encoded["validation"] = pairs.numbered(held_out, cfg.soft_labels)
    with training.fitting(cfg):
      objective = objectives.logratio_pairs(apply, pair_loss, average=cfg.average)
    blank = [row | {"ref_chosen": 0.0, "ref_rejected": 0.0} for row in encoded["train"][:1]]
    training.check_fit(cfg, objective, start.params, pairs.collate(blank, cfg.length))
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  # A reference that follows is read in the step: of the training rows nothing can be kept.
  kept = {name: rows for name, rows in encoded.items() if name != "train" or not cfg.sync_every}
  encoded |= reference.annotate_splits(frozen, kept, cfg.length, workdir)
  place = parallel.make(cfg.mesh)
  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=training.initializer(start.model),
    loaded=start.params,
    feed=feeds.IteratorFeed(
      batches.examples(
        encoded["train"],
        lambda rows: pairs.collate(rows, cfg.length),
        cfg.batch,
        cfg.seed,
        numbered=True,
      )
    ),
    evaluate=_evaluate(cfg, objective, place, encoded["validation"]) if held_out else None,
    place=place,
    row_tokens=2 * cfg.length,
    adapters=training.adapters(cfg.lora),
    wrap=functools.partial(reference.following, apply, cfg.sync_every, cfg.sync_alpha)
    if cfg.sync_every
    else None,
    follows=bool(cfg.sync_every),
  )


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
