"""Reward model: a scalar head on an SFT model, trained to rank answers as the pairs do."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.data.preferences import KINDS, Pair
from llm_jax.losses import objectives
from llm_jax.models import heads
from llm_jax.stages import pairs, runs, training
from llm_jax.train import loop, parallel
from llm_jax.types import Apply, Batch, Outputs, Params, TrainState


def run(cfg: config.Reward, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Trains a reward model from the decoder of `cfg.init`; `loss` swaps the pair loss."""
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  tokenizer = runs.tokenizer(cfg.prepared)
  start = runs.load(cfg.init, "init")
  train = pairs.load(cfg.preferences, "train", cfg.kinds)
  if cfg.shuffle_labels:
    train = flip(train, cfg.seed)
  held_out = pairs.load(cfg.preferences, "validation")
  encoded = pairs.encode(tokenizer, train, cfg.length)
  scorer = heads.Scorer.from_config(start.shape)
  place = parallel.make(cfg.mesh)
  margins = margins_fn(scorer)

  def evaluate(params: Params) -> dict[str, float]:
    margin_N = margins(place.unreplicate(params), tokenizer, held_out, cfg.length)
    return {
      f"accuracy/{kind}": accuracy for kind, accuracy in accuracies(held_out, margin_N).items()
    }

  runs.save_shape(workdir, start.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.score_pairs(scorer_apply(scorer), pair_loss, center=cfg.center),
    make_params=training.initializer(scorer),
    loaded={"decoder": start.params},
    feed=loop.IteratorFeed(
      batches.examples(encoded, lambda rows: pairs.collate(rows, cfg.length), cfg.batch, cfg.seed)
    ),
    evaluate=evaluate,
    place=place,
    row_tokens=2 * cfg.length,
  )


def scorer_apply(scorer: heads.Scorer) -> Apply:
  """Binds a reward model for objectives on scores: one score a row, read at the turn's end."""

  def apply(params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    return Outputs(scores=scorer.apply({"params": params}, **whole(batch)))

  return apply


def whole(batch: Batch) -> Batch:
  """The rows of an LM batch [B, T] with their last targets as inputs too: [B, T + 1].

  An LM batch's inputs stop one short of its targets, so the token that ends an answer is in none
  of them; a reward model must see it. One segment a row, padded on either side.
  """
  real_BT, said_BT = batch["segments"] > 0, batch["mask"] > 0
  last_BT = jnp.pad(real_BT[:, 1:], ((0, 0), (0, 1))) | (real_BT & said_BT)
  real_BL = jnp.concatenate([real_BT[:, :1], last_BT], 1)
  return {
    "tokens": jnp.concatenate([batch["tokens"][:, :1], batch["targets"]], 1),
    "positions": jnp.maximum(jnp.cumsum(real_BL, 1) - 1, 0),
    "segments": real_BL.astype(jnp.int32),
  }


def margins_fn(scorer: heads.Scorer) -> Callable[..., np.ndarray]:
  """Returns (params, tokenizer, pairs, length) -> [N] score of chosen minus score of rejected."""
  apply = scorer_apply(scorer)

  @jax.jit
  def step(params: Params, batch: Batch) -> jax.Array:
    rng = jax.random.key(0)
    sides = (apply(params, batch[side], rng).scores for side in ("chosen", "rejected"))
    return jnp.stack(list(sides), 1)

  def margins(params, tokenizer, held_out: Sequence[Pair], length: int) -> np.ndarray:
    encoded = pairs.encode(tokenizer, held_out, length)
    scores = [step(params, batch) for batch in pairs.in_order(encoded, length, 64)]
    chosen_N, rejected_N = np.concatenate([np.asarray(s) for s in scores])[: len(held_out)].T
    return chosen_N - rejected_N

  return margins


def accuracies(held_out: Sequence[Pair], margin_N: np.ndarray) -> dict[str, float]:
  """Fraction of pairs ranked right, by kind of the rejected answer; a tie counts one half."""
  right_N = (margin_N > 0) + 0.5 * (margin_N == 0)
  kinds = np.array([pair.kind for pair in held_out])
  order = [k for k in KINDS if k in kinds] + sorted(set(kinds) - set(KINDS))
  return {kind: float(right_N[kinds == kind].mean()) for kind in order}


def flip(train: Sequence[Pair], seed: int) -> list[Pair]:
  """The negative control: each pair's label is decided by a fair coin."""
  coin = np.random.default_rng(seed).random(len(train)) < 0.5
  return [
    dataclasses.replace(
      pair,
      chosen=pair.rejected,
      rejected=pair.chosen,
      gold_chosen=pair.gold_rejected,
      gold_rejected=pair.gold_chosen,
    )
    if heads_up
    else pair
    for pair, heads_up in zip(train, coin, strict=True)
  ]
