"""Reward model: a scalar head on an SFT model, trained to rank answers as the pairs do."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.data.preferences import KINDS, Pair
from llm_jax.losses import objectives
from llm_jax.models import heads
from llm_jax.stages import answers, pairs, runs, scores, training
from llm_jax.train import loop, parallel
from llm_jax.types import Params, TrainState


def run(cfg: config.Reward, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Trains a reward model from the decoder of `cfg.init`; `loss` swaps the pair loss."""
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  tokenizer = runs.tokenizer(cfg.prepared)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
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
    loss_fn=objectives.score_pairs(scores.scorer_apply(scorer), pair_loss, center=cfg.center),
    make_params=training.initializer(scorer),
    loaded={"decoder": start.params},
    feed=loop.IteratorFeed(
      batches.examples(encoded, lambda rows: pairs.collate(rows, cfg.length), cfg.batch, cfg.seed)
    ),
    evaluate=evaluate,
    place=place,
    row_tokens=2 * cfg.length,
  )


def margins_fn(scorer: heads.Scorer) -> Callable[..., np.ndarray]:
  """Returns (params, tokenizer, pairs, length) -> [N] score of chosen minus score of rejected."""
  score = scores.reward_model(scorer)

  def margins(params, tokenizer, held_out: Sequence[Pair], length: int) -> np.ndarray:
    encoded = pairs.encode(tokenizer, held_out, length)
    batch = batches.lm_batch([row[side] for side in pairs.SIDES for row in encoded], length)
    scores_2N = answers.in_rows(lambda part: score(params, part), batch)
    chosen_N, rejected_N = np.split(scores_2N, 2)
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
