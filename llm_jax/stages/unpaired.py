"""Preference optimisation on single answers that are wanted or not (KTO).

The baseline of KTO is an estimate of KL(policy || reference): the mean log-ratio of answers to
prompts that they do not belong to (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1). Each row
keeps one such answer, so the reference's log-probs of them are data like all others; the policy's
are worked out on the whole batch at the start of each step, without gradient.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.data import batches, posttraining
from llm_jax.data.intake import Intake
from llm_jax.data.posttraining import Tokens
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.stages import own, pairs, reference, runs, training
from llm_jax.train import feeds, parallel, processes
from llm_jax.train.step import StepFn
from llm_jax.types import Apply, Batch, LossFn, Mean, Params, TrainState, masked_mean

_SIDES = ("answer", "mismatched")


def run(
  cfg: config.Dpo,
  workdir: str,
  loss: Callable,
  start: runs.Run,
  frozen: runs.Run,
  tokenizer: Tokenizer,
) -> TrainState:
  """Trains a model on the labelled answers of the files of `cfg.labels`.

  Args:
    cfg: of the stage.
    workdir: of the run.
    loss: on single answers.
    start: the policy at the start.
    frozen: the reference.
    tokenizer: of both.
  """
  apply, place = training.decoder_apply(start.model), parallel.make(cfg.mesh)
  with own.intake(cfg, workdir) as taken:
    encoded = _encoded(cfg, taken, tokenizer)
    with training.fitting(cfg):
      objective = objectives.logratio_labels(apply, loss, average=cfg.average)
    blank = collate([row | _refs(0.0, 0.0) for row in encoded["train"][:1]], cfg.length)
    blank |= {"baseline": np.zeros(1, np.float32)}
    training.check_fit(cfg, objective, start.params, blank)
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  encoded = reference.annotate_splits(frozen, encoded, cfg.length, workdir, _SIDES)
  drift = functools.partial(mismatch, apply, average=cfg.average)
  held_out = encoded.get("validation")
  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=training.initializer(start.model),
    loaded=start.params,
    feed=feeds.IteratorFeed(
      batches.examples(
        encoded["train"],
        lambda rows: collate(rows, cfg.length),
        cfg.batch,
        cfg.seed,
        numbered=True,
      )
    ),
    evaluate=_evaluate(cfg, objective, drift, place, held_out) if held_out else None,
    place=place,
    row_tokens=2 * cfg.length,
    adapters=training.adapters(cfg.lora),
    wrap=functools.partial(anchored, drift, place.axis_name),
  )


def mismatch(apply: Apply, params: Params, batch: Batch, average: bool = False) -> Mean:
  """The mean log-ratio of answers to other prompts, of one batch (or of a device's part of it)."""
  other = batch["mismatched"]
  logps_B = objectives.sequence_logps(apply)(params, other, jax.random.key(0))
  lengths_B = jnp.sum(other["mask"], axis=1, dtype=jnp.float32)
  ratio_B = jax.lax.stop_gradient(logps_B) - batch["ref_mismatched"]
  ratio_B = ratio_B / jnp.maximum(lengths_B, 1.0) if average else ratio_B
  return masked_mean(ratio_B, (lengths_B > 0).astype(jnp.float32))


def anchored(drift: Callable[[Params, Batch], Mean], axis_name: str | None, step: StepFn) -> StepFn:
  """Returns a step that puts the baseline into the batch: over all devices and microbatches.

  Args:
    drift: (parameters, batch) -> the mean log-ratio of answers to other prompts.
    axis_name: as in `make_train_step`.
    step: (state, batch with baseline) -> (state, metrics).
  """

  def run(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
    mean = drift(state.whole, batch)
    mean = jax.lax.psum(mean, axis_name) if axis_name else mean
    baseline_B = jnp.broadcast_to(mean.value, batch["desirable"].shape)
    rest = {name: value for name, value in batch.items() if name != "mismatched"}
    return step(state, rest | {"baseline": baseline_B})

  return run


def mismatched(
  rows: Sequence[Tokens], donors: Sequence[Tokens], length: int, seed: int
) -> list[Tokens]:
  """Returns for each row its prompt with the answer of a donor of another prompt.

  Args:
    rows: (tokens, mask) of prompts and answers.
    donors: the same, of other rows or the rows themselves; of these all prompts being different,
      each gives its answer once.
    length: a longer one loses the end of the answer; it has at most `length` + 1 tokens.
    seed: decides whose answer it is.

  Raises:
    UserError: if all prompts of the donors are the same.
  """
  given = [(tuple(tokens[: (at := mask.index(1))]), tokens[at:]) for tokens, mask in donors]
  if len({prompt for prompt, _ in given}) < 2:
    raise UserError(
      "config.labels: all rows have one prompt, and the baseline needs answers to others: give "
      "more data"
    )
  order = np.random.default_rng(seed).permutation(len(donors))
  own, order = np.argsort(order).tolist(), order.tolist()
  out = []
  for i, (tokens, mask) in enumerate(rows):
    prompt = tokens[: mask.index(1)]
    place = own[i] + 1 if rows is donors else i
    while given[order[place % len(order)]][0] == tuple(prompt):
      place += 1
    said = given[order[place % len(order)]][1]
    both, learned = [*prompt, *said], [0] * len(prompt) + [1] * len(said)
    out.append((both[: length + 1], learned[: length + 1]))
  return out


def collate(rows: Sequence[Mapping[str, Any]], length: int) -> Batch:
  """One LM batch of answers, with "mismatched", an LM batch too, and numbers [B]."""
  numbers = {
    key: np.array([row[key] for row in rows], np.float32) for key in rows[0].keys() - {*_SIDES}
  }
  answers, others = (batches.lm_batch([row[side] for row in rows], length) for side in _SIDES)
  return answers | {"mismatched": others} | numbers


def _encoded(
  cfg: config.Dpo, taken: Intake, tokenizer: Tokenizer
) -> dict[str, list[dict[str, Any]]]:
  """Returns rows of each split that there is."""
  data = posttraining.load(
    "labels",
    [name.strip() for name in cfg.labels.split(",") if name.strip()],
    functools.partial(posttraining.labelled, tokenizer, length=cfg.length),
    validation=cfg.validation,
    seed=cfg.seed,
    field="config.labels",
    intake=taken,
  )
  own.report(data)
  good = sum(row["desirable"] for row in data.train)
  bad = len(data.train) - good
  if not good or not bad:
    word = "desirable" if good else "undesirable"
    raise UserError(f"config.labels: all answers are {word}; KTO learns from both kinds")
  processes.say(f"{good:,.0f} desirable and {bad:,.0f} other answers are trained on")
  train, apart = ([row["answer"] for row in part] for part in (data.train, data.validation))
  others = {
    "train": (data.train, mismatched(train, train, cfg.length, cfg.seed)),
    "validation": (data.validation, mismatched(apart, train, cfg.length, cfg.seed)),
  }
  return {
    split: [row | {"mismatched": other} for row, other in zip(*both, strict=True)]
    for split, both in others.items()
    if both[0]
  }


def _evaluate(
  cfg: config.Dpo, objective: LossFn, drift: Callable, place: parallel.Placement, rows: list
) -> Callable[[Params], dict[str, float]]:
  """Metrics on held-out answers, with one baseline over all of them."""
  first = training.measurer(lambda params, batch, rng: (drift(params, batch), {}), place)
  second = training.measurer(objective, place)

  def stream(baseline: float | None) -> Iterator[Batch]:
    for start in range(0, len(rows), cfg.batch):
      part = rows[start : start + cfg.batch]
      empty = {key: ([], []) if key in _SIDES else 0.0 for key in part[0]}
      batch = collate([*part, *[empty] * (cfg.batch - len(part))], cfg.length)
      yield (
        batch
        if baseline is None
        else batch | {"baseline": np.full(cfg.batch, baseline, np.float32)}
      )

  def evaluate(params: Params) -> dict[str, float]:
    baseline = float(first(params, stream(None))["loss"].value)
    found = second(params, stream(baseline))
    metrics = {name: float(mean.value) for name, mean in found.items()}
    if min(float(found[f"rewards/{side}"].weight) for side in pairs.SIDES) == 0:
      return metrics  # All that is held out is of one kind.
    return metrics | {"rewards/margins": metrics["rewards/chosen"] - metrics["rewards/rejected"]}

  return evaluate


def _refs(answer: float, other: float) -> dict[str, float]:
  return {"ref_answer": answer, "ref_mismatched": other}
