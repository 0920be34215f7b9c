"""What every training stage does around its objective: state, step, loop, evaluation."""

import contextlib
import functools
import pathlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from llm_jax import config, losses
from llm_jax.errors import UserError
from llm_jax.models import lora
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.transformer import Transformer
from llm_jax.stages import attention
from llm_jax.train import feeds, loop, optim, parallel
from llm_jax.train.step import StepFn, make_eval_step, make_train_step, state_maker
from llm_jax.types import Apply, Batch, LossFn, Mean, Outputs, Params, TrainState

_LOSSES = str(pathlib.Path(losses.__file__).parent)


def decoder_apply(model: Transformer, train: bool = False, neftune: float = 0.0) -> Apply:
  """Binds a decoder for objectives on its next-token distribution.

  Dropout, and noise of the alpha `neftune` on the embeddings, act only if `train`.
  """

  def apply(params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    rngs, more = {"dropout": rng} if train and model.cfg.dropout else {}, {}
    if train and neftune:
      rngs["noise"], more = jax.random.fold_in(rng, 1), {"neftune": neftune}
    hidden_BTD = model.apply(
      params, batch["tokens"], batch["positions"], batch["segments"], rngs=rngs or None, **more
    )
    return Outputs(hidden_BTD, model.head(params), logit_cap=model.cfg.logit_cap)

  return apply


class Adapters(NamedTuple):
  """What training with adapters changes.

  Attributes:
    trained: path of a parameter -> whether it is trained.
    attach: (parameters in their boxes, key) -> these with adapters.
  """

  trained: Callable[[tuple[str, ...]], bool]
  attach: Callable[[Params, jax.Array], Params]


def adapters(cfg: config.Lora) -> Adapters | None:
  """Returns an adapter on a language model; None if it has no rank."""
  return Adapters(lora.trained, lambda p, key: lora.attach(p, cfg, key)) if cfg.rank else None


def train(
  cfg: config.Stage,
  workdir: str | pathlib.Path,
  *,
  loss_fn: LossFn,
  make_params: Callable[[jax.Array], Params],
  feed: feeds.Feed,
  place: parallel.Placement,
  loaded: Params | None = None,
  evaluate: Callable[[Params], dict[str, float]] | None = None,
  row_tokens: int = 0,
  adapters: Adapters | None = None,
  wrap: Callable[[StepFn], StepFn] | None = None,
  follows: bool = False,
) -> TrainState:
  """Trains on `feed`; returns the final state (its params are y of a schedule-free run).

  Args:
    cfg: of the stage.
    workdir: where checkpoints and metrics go; a run that is there is continued.
    loss_fn: (params, batch, rng) -> (loss, metrics).
    make_params: key -> new parameters, in their boxes of axis names.
    feed: where batches come from.
    place: where arrays live.
    loaded: parameters of an earlier stage, which replace the new ones.
    evaluate: parameters as placed -> metrics, every `cfg.eval_every` steps.
    row_tokens: places in a row of a batch, for the throughput; 0: `cfg.length`.
    adapters: trained alone, on frozen parameters.
    wrap: the step -> a step that adds to the batch, or changes more of the state.
    follows: whether the state has a reference, at first a copy of the trained parameters.

  Raises:
    UserError: if a loss does not fit the objective or the batch.
  """
  tx = optim.make(cfg.optimizer, cfg.steps)
  step = make_train_step(loss_fn, tx, accum=cfg.accum, axis_name=place.axis_name)
  step = place.compile(wrap(step) if wrap else step)
  step, feed = attention.watched(step, feed, pathlib.Path(workdir).name)
  make_state = state_maker(make_params, tx, *(adapters or ()))
  state = place.init(make_state, jax.random.key(cfg.seed), *filter(None, [loaded]))
  if follows:
    state = state.replace(reference=jax.tree.map(jnp.copy, state.params))
  with fitting(cfg):
    return loop.fit(
      step,
      state,
      feed,
      place=place,
      workdir=workdir,
      steps=cfg.steps,
      log_every=cfg.log_every,
      eval_every=cfg.eval_every,
      evaluate=_judging(evaluate, evaluated(cfg.optimizer, place)),
      checkpoint_every=cfg.checkpoint_every,
      care=loop.Care(cfg.keep, cfg.keep_every, cfg.hang_after),
      tokens_per_step=cfg.batch * (row_tokens if row_tokens else cfg.length),
      name=pathlib.Path(workdir).name,
      schedule=optim.learning_rate(cfg.optimizer, cfg.steps),
      rows=cfg.batch,
    )


def _judging(evaluate: Callable | None, judged: Callable) -> Callable | None:
  return evaluate and (lambda state: evaluate(judged(state)))


def evaluated(cfg: config.Optimizer, place: parallel.Placement) -> Callable[[TrainState], Params]:
  """Returns state -> the parameters to evaluate, as placed: those that later stages load."""
  if cfg.name != "schedule_free":
    return lambda state: state.whole
  average = place.compile(optim.averaged, donate=False)
  return lambda state: state.replace(params=average(state.params, state.opt_state)).whole


@contextlib.contextmanager
def fitting(cfg: config.Stage) -> Iterator[None]:
  """Turns the loss library's complaint about a loss that does not fit into the user's error."""
  try:
    yield
  except ValueError as error:
    if traceback.extract_tb(error.__traceback__)[-1].filename.startswith(_LOSSES):
      raise UserError(f"config.loss={cfg.loss}: {error}") from error
    raise


def check_fit(cfg: config.Stage, loss_fn: LossFn, params: Params, batch: Batch) -> None:
  """Traces a loss on one batch, so that a misfit is found before anything is written.

  Raises:
    UserError: if the loss does not fit the objective or the batch.
  """
  with fitting(cfg):
    jax.eval_shape(loss_fn, params, batch, jax.random.key(0))


def initializer(module: nn.Module) -> Callable[[jax.Array], Params]:
  """Returns key -> new parameters of `module`, in their boxes of axis names."""
  ids = jnp.zeros((1, 8), jnp.int32)
  given = (ids, ids) if isinstance(module, EncoderDecoder) else (ids,)
  return lambda key: module.init(key, *given)["params"]


def placed(place: parallel.Placement, module: nn.Module, params: Params) -> Params:
  """Returns parameters of `module` that are not trained where `place` has those that are."""
  make_state = state_maker(initializer(module), optax.identity())
  return place.unreplicate(place.init(make_state, jax.random.key(0), params).params)


def evaluator(
  loss_fn: LossFn, place: parallel.Placement, batches: Callable[[], Iterable[Batch]]
) -> Callable[[Params], dict[str, Mean]]:
  """Returns params -> {metric: Mean over all of `batches()`}, compiled once."""
  measure = measurer(loss_fn, place)
  return lambda params: measure(params, batches())


def measurer(
  loss_fn: LossFn, place: parallel.Placement
) -> Callable[[Params, Iterable[Batch]], dict[str, Mean]]:
  """Returns (params, batches) -> {metric: Mean over all of them}, compiled once."""
  step = place.compile(make_eval_step(loss_fn, place.axis_name), donate=False)

  def measure(params: Params, batches: Iterable[Batch]) -> dict[str, Mean]:
    total: dict[str, Mean] = {}
    for batch in batches:
      metrics = place.fetch(step(params, place.batch(batch)))
      total = jax.tree.map(lambda a, b: a + b, total, metrics) if total else metrics
    return total

  return measure


def losses_on(
  loss_fn: LossFn, place: parallel.Placement, sources: Mapping[str, Callable[[], Iterable[Batch]]]
) -> Callable[[Params], dict[str, float]]:
  """Returns params -> nats per token over all sources, and of each if there are several.

  Args:
    loss_fn: of `objectives.next_token`.
    place: where arrays live.
    sources: for each source its batches.

  Returns:
    A function to {"loss", "loss/<source>", ...}.
  """
  measure = measurer(loss_fn, place)

  def evaluate(params: Params) -> dict[str, float]:
    means = {name: measure(params, batches())["nll"] for name, batches in sources.items()}
    total = functools.reduce(
      lambda a, b: Mean(a.total + b.total, a.weight + b.weight), means.values()
    )
    parts = {f"loss/{name}": float(mean.value) for name, mean in means.items()}
    return {"loss": float(total.value)} | (parts if len(parts) > 1 else {})

  return evaluate


def metrics_on(
  loss_fn: LossFn, place: parallel.Placement, batches: Callable[[], Iterable[Batch]]
) -> Callable[[Params], dict[str, float]]:
  """Like `evaluator`, as plain numbers."""
  measure = evaluator(loss_fn, place, batches)

  def evaluate(params: Params) -> dict[str, float]:
    return {name: float(mean.value) for name, mean in measure(params).items()}

  return evaluate
