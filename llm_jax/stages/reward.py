"""Reward model: a scalar head on an SFT model, trained to rank answers as the pairs do."""

from collections.abc import Callable, Sequence

import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches
from llm_jax.data.posttraining import Compared
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
  train, held_out = pairs.splits(cfg, tokenizer, every_kind=True)
  if cfg.shuffle_labels:
    train = pairs.flip(train, cfg.seed)
  encoded = [pair.row for pair in train]
  scorer = heads.Scorer.from_config(start.shape)
  place = parallel.make(cfg.mesh)
  score = scores.reward_model(scorer)
  apart = [pair.row for pair in held_out]

  def evaluate(params: Params) -> dict[str, float]:
    margin_N = _margins(score, place.unreplicate(params), apart, cfg.length)
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
    evaluate=evaluate if held_out else None,
    place=place,
    row_tokens=2 * cfg.length,
  )


def margins_fn(scorer: heads.Scorer) -> Callable[..., np.ndarray]:
  """Returns (params, tokenizer, pairs, length) -> [N] score of chosen minus score of rejected."""
  score = scores.reward_model(scorer)

  def margins(params, tokenizer, held_out: Sequence[Pair], length: int) -> np.ndarray:
    return _margins(score, params, pairs.encode(tokenizer, held_out, length), length)

  return margins


def _margins(score: Callable, params: Params, rows: Sequence[dict], length: int) -> np.ndarray:
  batch = batches.lm_batch([row[side] for side in pairs.SIDES for row in rows], length)
  scores_2N = answers.in_rows(lambda part: score(params, part), batch)
  chosen_N, rejected_N = np.split(scores_2N, 2)
  return chosen_N - rejected_N


def accuracies(held_out: Sequence[Pair | Compared], margin_N: np.ndarray) -> dict[str, float]:
  """Fraction of pairs ranked right, by kind of the rejected answer; a tie counts one half."""
  right_N = (margin_N > 0) + 0.5 * (margin_N == 0)
  kinds = np.array([pair.kind for pair in held_out])
  order = [k for k in KINDS if k in kinds] + sorted(set(kinds) - set(KINDS))
  return {kind: float(right_N[kinds == kind].mean()) for kind in order}
