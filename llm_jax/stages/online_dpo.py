"""Online DPO: the policy answers, a score or a judge picks the best and the worst, DPO learns."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from llm_jax import config, spec
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.stages import answers, asking, runs, training
from llm_jax.stages.online import OnlineFeed
from llm_jax.train import parallel, processes
from llm_jax.types import Batch, Params, TrainState

_TRIES = 4  # Draws of other prompts, where one gave no pair.
_LM = ("tokens", "targets", "mask", "positions", "segments")


def run(
  cfg: config.OnlineDpo,
  workdir: str,
  *,
  loss: Callable | None = None,
  score: Callable | None = None,
) -> TrainState:
  """Trains the model of `cfg.init` on pairs of its own answers, which it draws as it learns.

  Dong et al. 2024 (arXiv:2405.07863, RLHFlow): of several answers to a prompt the best and the
  worst by a score are a pair, of equal ones there is none. Log-probs are those of temperature 1, as
  DPO has them, whatever temperature answers are drawn at.

  Args:
    cfg: the configuration.
    workdir: where the run goes.
    loss: swaps the pair loss.
    score: swaps the score: (rewards.Answered) -> [B].

  Raises:
    UserError: if something is missing or does not fit, or all answers are worth the same.
  """
  cfg.validate()
  pair_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.preference")
  place = parallel.make(cfg.mesh)
  asker, reference = asking.Asker.load(cfg, workdir, place, score)
  apply = training.decoder_apply(asker.model)
  with training.fitting(cfg):
    objective = objectives.logratio_pairs(apply, pair_loss, average=cfg.average)
  training.check_fit(cfg, objective, reference, _blank(cfg))
  runs.save_shape(workdir, asker.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objective,
    make_params=training.initializer(asker.model),
    loaded=reference,
    feed=OnlineFeed(
      Collector(cfg, asker, reference), rows=cfg.batch, epochs=cfg.epochs, seed=cfg.seed
    ),
    evaluate=asker.measurer(),
    place=place,
    row_tokens=2 * (cfg.prompt_length + cfg.sampling.max_new - 1),
  )


def extremes(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (best [P], worst [P]), numbers of rows, of the prompts whose answers are no tie.

  Args:
    scores: [Q, n] of the answers of Q prompts; row q * n + i is answer i to prompt q.
  """
  first = np.arange(len(scores)) * scores.shape[1]
  untied = scores.max(1) > scores.min(1)
  return (first + scores.argmax(1))[untied], (first + scores.argmin(1))[untied]


@dataclasses.dataclass(frozen=True)
class Collector:
  """One iteration's pairs: sample with the policy, score, take the best and the worst.

  Attributes:
    cfg: the configuration.
    asker: draws and scores.
    reference: the frozen parameters of `cfg.init`, as placed.
  """

  cfg: config.OnlineDpo
  asker: asking.Asker
  reference: Params

  def __call__(self, state: TrainState, iteration: int, carried: dict) -> tuple[Batch, dict]:
    """Returns (host batch of pairs, metrics).

    Raises:
      UserError: if no prompt of several draws has two answers of different scores.
    """
    params = self.asker.place.unreplicate(state.params)
    for attempt in range(_TRIES):
      seeds = [iteration, attempt]
      numbers = self.asker.choose(seeds, self.cfg.prompts)
      rows = [self.asker.asked[i] for i in numbers]
      said = self.asker.ask(params, rows, seeds)
      chosen, rejected = extremes(said.scores)
      if len(chosen):
        pairs, metrics = self._labelled(params, said, chosen, rejected)
        pairs["documents"] = np.asarray(numbers)[chosen // self.cfg.samples] + 1
        return _whole(pairs, self.cfg.batch), metrics
      processes.say(f"online_dpo: no pairs of {len(rows)} prompts, all answers are ties")
    raise UserError(
      f"config.score={self.cfg.score} gives no pairs: the {self.cfg.samples} answers to each of "
      f"{_TRIES} times {self.cfg.prompts} prompts are worth the same; use a score that tells them "
      "apart, more config.samples or a higher config.sampling.temperature"
    )

  def _labelled(
    self, params: Params, said: asking.Said, chosen: np.ndarray, rejected: np.ndarray
  ) -> tuple[Batch, dict]:
    batch = {name: said.drawn.batch[name] for name in _LM}
    policy_B, fixed_B = self._logps(params, batch), self._logps(self.reference, batch)
    frozen_B = policy_B if self.cfg.reference == "iteration" else fixed_B
    pairs = {
      "chosen": {name: x[chosen] for name, x in batch.items()},
      "rejected": {name: x[rejected] for name, x in batch.items()},
      "ref_chosen": frozen_B[chosen],
      "ref_rejected": frozen_B[rejected],
    }
    scores_B = said.scores.reshape(-1)
    metrics = {
      "objective/scores": float(scores_B.mean()),
      "objective/score_gap": float((scores_B[chosen] - scores_B[rejected]).mean()),
      "objective/kl": float((policy_B - fixed_B).mean()),
      "objective/entropy": float(-policy_B.mean()),
      "rollout/end_rate": float(said.drawn.ended.mean()),
      "rollout/length": float(batch["mask"].sum(1).mean()),
      "pairs/tied": 1 - len(chosen) / len(said.scores),
    }
    return pairs, metrics | said.means

  def _logps(self, params: Params, batch: Batch) -> np.ndarray:
    """[B] float32 log-probs of answers, in nats, summed over their tokens."""
    rows = self.cfg.prompts  # As many at a time as the sampler reads.
    place = self.asker.place
    return answers.in_rows(
      lambda part: self._token_logps(params, place.rows(part)).sum(1), batch, rows
    )

  @functools.cached_property
  def _token_logps(self) -> Callable[[Params, Batch], jax.Array]:
    return self.asker.place.under(answers.logps_fn(self.asker.model))


def _whole(pairs: Batch, rows: int) -> Batch:
  """Returns pairs and as many empty ones, which weigh nothing, as fill their last minibatch."""
  missing = -len(pairs["ref_chosen"]) % rows
  return jax.tree.map(
    lambda x: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]), pairs
  )


def _blank(cfg: config.OnlineDpo) -> Batch:
  """A batch of the shapes that are to come."""
  shape = (cfg.batch, cfg.prompt_length + cfg.sampling.max_new - 1)
  side = {name: np.zeros(shape, np.float32 if name == "mask" else np.int32) for name in _LM}
  ref_B = np.zeros(cfg.batch, np.float32)
  return {"chosen": side, "rejected": side, "ref_chosen": ref_B, "ref_rejected": ref_B}
