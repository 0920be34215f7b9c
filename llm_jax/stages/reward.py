"""Reward model: a scalar head on an SFT model, trained to rank answers as the pairs do."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches, grouping, posttraining
from llm_jax.data.posttraining import Compared
from llm_jax.data.preferences import KINDS, Pair
from llm_jax.losses import objectives
from llm_jax.models import heads
from llm_jax.stages import answers, own, pairs, runs, scores, training
from llm_jax.train import feeds, parallel, processes
from llm_jax.types import Batch, Params, TrainState


def run(cfg: config.Reward, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Trains a reward model from the decoder of `cfg.init`; `loss` swaps the pair loss."""
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  tokenizer = runs.tokenizer(cfg.prepared)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
  scorer = heads.Scorer.from_config(start.shape)
  place = parallel.make(cfg.mesh)
  score = scores.reward_model(scorer)
  with own.intake(cfg, workdir) as taken:
    train, held_out = pairs.splits(cfg, taken, tokenizer, every_kind=True)
    if cfg.shuffle_labels:
      train = pairs.flip(train, cfg.seed)
    with training.fitting(cfg):
      objective = objectives.score_pairs(scores.scorer_apply(scorer), pair_loss, center=cfg.center)
    rows = pairs.numbered(train, cfg.soft_labels, cfg.margin)
    shapes = jax.eval_shape(training.initializer(scorer), jax.random.key(0))
    training.check_fit(cfg, objective, nn.unbox(shapes), pairs.collate(rows[:1], cfg.length))
  apart = [pair.row for pair in held_out]

  def evaluate(params: Params) -> dict[str, float]:
    chosen_N, rejected_N = _scores(score, place.unreplicate(params), apart, cfg.length)
    return measures(held_out, chosen_N - rejected_N)

  feed = feeds.IteratorFeed(_batches(cfg, train, rows))
  runs.save_shape(workdir, start.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=training.initializer(scorer),
    loaded={"decoder": start.params},
    feed=feed,
    evaluate=evaluate if held_out else None,
    place=place,
    row_tokens=2 * cfg.length,
  )


def _batches(cfg: config.Reward, train: Sequence[Compared], rows: list[dict]) -> Iterator[Batch]:
  """Batches of pairs, those of a group together if there are groups and `cfg.grouped`."""
  groups = [pair.group for pair in train]
  if not cfg.grouped or not any(groups):
    return batches.examples(
      rows, lambda x: pairs.collate(x, cfg.length), cfg.batch, cfg.seed, numbered=True
    )

  def collate(part: list[dict], weights: list[float]) -> Batch:
    weighed = [row | {"weight": weight} for row, weight in zip(part, weights, strict=True)]
    return pairs.filled(weighed, cfg.length, cfg.batch)

  stream = grouping.Grouped(rows, groups, collate, cfg.batch, cfg.seed)
  if stream.split:
    processes.say(f"{stream.split:,} groups have more pairs than config.batch and are split")
  return stream


def scores_fn(scorer: heads.Scorer) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """Returns (params, tokenizer, pairs, length) -> scores of the N chosen and the N rejected."""
  score = scores.reward_model(scorer)

  def both(params, tokenizer, held_out: Sequence[Pair], length: int):
    return _scores(score, params, pairs.encode(tokenizer, held_out, length), length)

  return both


def _scores(
  score: Callable, params: Params, rows: Sequence[dict], length: int
) -> tuple[np.ndarray, np.ndarray]:
  batch = batches.lm_batch([row[side] for side in pairs.SIDES for row in rows], length)
  chosen_N, rejected_N = np.split(answers.in_rows(lambda part: score(params, part), batch), 2)
  return chosen_N, rejected_N


def measures(held_out: Sequence[Compared], margin_N: np.ndarray) -> dict[str, float]:
  """What is said of a reward model on held-out pairs.

  Args:
    held_out: N pairs.
    margin_N: [N] score of chosen minus score of rejected.

  Returns:
    accuracy (a tie counts one half) and accuracy/<kind>, of the most frequent kinds; margin, the
    mean; calibration_error (`calibration_error`); length_correlation: Pearson's, of the margin with
    how many tokens the chosen answer has more than the rejected one (0 where either is constant).
  """
  named = posttraining.bounded([pair.kind for pair in held_out])
  kinds = [dataclasses.replace(p, kind=name) for p, name in zip(held_out, named, strict=True)]
  longer_N = longer(held_out)
  sure_N = np.array([pair.probability for pair in held_out])
  spread = margin_N.std() * longer_N.std()
  return {f"accuracy/{kind}": value for kind, value in accuracies(kinds, margin_N).items()} | {
    "accuracy": float(right(margin_N).mean()),
    "margin": float(margin_N.mean()),
    "calibration_error": calibration_error(margin_N, sure_N),
    "length_correlation": float(np.corrcoef(margin_N, longer_N)[0, 1]) if spread > 0 else 0.0,
  }


def calibration_error(margin_N: np.ndarray, probability_N: np.ndarray, bins: int = 10) -> float:
  """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 5) of sigmoid(margin).

  Which answer is called chosen says nothing, so the confidence is that of the answer with the
  higher score, sigmoid(|margin|); its bins cut [1/2, 1] into equal parts.

  Args:
    margin_N: [N] nats.
    probability_N: [N] that the chosen answer is the better one: 1 of a hard label.
    bins: their number.
  """
  sure_N = 1 / (1 + np.exp(-np.abs(margin_N.astype(np.float64))))
  right_N = probability_N * right(margin_N) + (1 - probability_N) * right(-margin_N)
  bin_N = np.minimum(((sure_N - 0.5) * 2 * bins).astype(int), bins - 1)
  gaps = np.bincount(bin_N, sure_N - right_N, bins)
  return float(np.abs(gaps).sum() / len(margin_N))


def longer(held_out: Sequence[Compared]) -> np.ndarray:
  """Returns [N], how many tokens the chosen answer has more than the rejected one."""
  return np.array([sum(p.row["chosen"][1]) - sum(p.row["rejected"][1]) for p in held_out])


def right(margin_N: np.ndarray) -> np.ndarray:
  """Returns [N], 1 where the chosen answer scores higher, one half where both score the same."""
  return (margin_N > 0) + 0.5 * (margin_N == 0)


def accuracies(held_out: Sequence[Pair | Compared], margin_N: np.ndarray) -> dict[str, float]:
  """Fraction of pairs ranked right, by kind of the rejected answer; a tie counts one half."""
  right_N = right(margin_N)
  kinds = np.array([pair.kind for pair in held_out])
  order = [k for k in KINDS if k in kinds] + sorted(set(kinds) - set(KINDS))
  return {kind: float(right_N[kinds == kind].mean()) for kind in order}
