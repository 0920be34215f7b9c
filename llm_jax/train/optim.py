"""Optimizers and learning-rate schedules, by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.train import guard, muon
from llm_jax.types import Params

SCHEDULES = ("constant", "linear", "cosine", "wsd", "inverse_sqrt")
OPTIMIZERS = ("adamw", "muon", "lion", "adafactor", "schedule_free")


def make(cfg: config.Optimizer, steps: int) -> optax.GradientTransformation | guard.Guard:
  """Returns the optimizer: clip by global norm, then the named one, with decoupled weight decay.

  Lion (Chen et al. 2023, arXiv:2302.06675) has one moment and moves by signs: its rate is about a
  tenth of AdamW's. Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) keeps a matrix' second moment
  as a row and a column, where both have 128 entries, and no first; its rate is a fraction of a
  parameter's root mean square (algorithm 5), 1e-2 for one.

  Muon (Jordan et al. 2024; scaled to AdamW's root mean square as in Liu et al. 2025,
  arXiv:2502.16982, section 2.2) takes the hidden matrices; embeddings, heads, norms and biases
  go to AdamW. Stacked layers [L, in, out] are orthogonalised each on its own.

  Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, algorithm 1) averages its iterates
  instead of decaying the rate. The parameters that it trains are y, where gradients are taken;
  `averaged` gives x, the ones to use.

  Args:
    cfg: names and numbers.
    steps: the length of the schedule, in updates.

  Returns:
    The optimizer, in a guard if `cfg` skips bad updates.

  Raises:
    UserError: if a name is unknown or a number is out of range.
  """
  try:
    cfg.validate()
  except UserError as error:  # A launcher calls it with this prefix, too.
    raise UserError(str(error).replace("config.", "config.optimizer.")) from error
  rate = schedule(cfg, steps)
  if cfg.name == "adamw":
    core = optax.adamw(
      rate, cfg.beta1, cfg.beta2, cfg.eps, weight_decay=cfg.weight_decay, mask=matrices
    )
  elif cfg.name == "muon":
    core = _muon(cfg, rate, schedule(cfg, steps, peak=cfg.adam_lr or cfg.lr))
  elif cfg.name == "lion":
    core = optax.lion(rate, cfg.beta1, cfg.beta2, weight_decay=cfg.weight_decay, mask=matrices)
  elif cfg.name == "adafactor":
    core = _adafactor(cfg, rate)
  else:
    core = _schedule_free(cfg, rate)
  tx = optax.chain(optax.clip_by_global_norm(cfg.clip), core) if cfg.clip else core
  skips = cfg.skip_sigma or cfg.skip_limit
  return guard.Guard(tx, cfg.skip_sigma, cfg.skip_limit) if skips else tx


def averaged(params: Params, opt_state: Any) -> Params:
  """Returns the parameters to evaluate and to keep: x of a schedule-free run, else `params`.

  Args:
    params: of the train state.
    opt_state: of the same state.
  """

  def is_average(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)

  nodes = jax.tree.leaves(opt_state, is_leaf=is_average)
  for node in filter(is_average, nodes):
    return optax.contrib.schedule_free_eval_params(node, params)
  return params


def schedule(cfg: config.Optimizer, steps: int, peak: float | None = None) -> optax.Schedule:
  """Returns rate(step), float32: a linear warmup to the peak, then the named decay.

    constant: the peak. linear, cosine: down to final * peak at `steps`.
    wsd: the peak, then linear over the last `decay` of the steps (Hu et al. 2024,
    arXiv:2404.06395, warmup-stable-decay).
    inverse_sqrt: the peak times sqrt(warmup / step), for runs of no fixed length (Vaswani et al.
    2017, arXiv:1706.03762, eq. 3).

  Step 0 uses peak / warmup, so that no update is wasted; the last update is step `steps - 1`.

  Args:
    cfg: names and numbers.
    steps: the length, in updates.
    peak: the highest rate; None: `cfg.lr`.

  Raises:
    UserError: if the name is unknown or a number is out of range.
  """
  if cfg.schedule not in SCHEDULES:
    raise UserError(
      f'config.optimizer.schedule="{cfg.schedule}" is unknown{nearest(cfg.schedule, SCHEDULES)}'
    )
  if not 0 <= cfg.decay <= 1 or not 0 <= cfg.final <= 1:
    raise UserError(
      f"config.optimizer.decay and final are fractions in [0, 1], got {cfg.decay} and {cfg.final}"
    )
  if cfg.warmup < 0 or cfg.lr < 0 or cfg.adam_lr < 0:
    raise UserError("config.optimizer.warmup, lr and adam_lr must not be negative")
  return functools.partial(_rate, cfg, steps, cfg.lr if peak is None else peak)


def learning_rate(cfg: config.Optimizer, steps: int) -> Callable[[int], float]:
  """Returns step -> the rate of that update as a Python float, for logs."""
  rate = schedule(cfg, steps)
  return lambda step: float(rate(step))


def matrices(params: Params) -> Any:
  """Returns a tree of bools: True where weight decay applies: on whatever has two axes."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.ndim >= 2 and not _is_vector(path), params
  )


def muon_dimensions(params: Params) -> Any:
  """Returns Muon's dimension numbers for hidden matrices (the last two axes), None elsewhere."""

  def of(path: tuple, x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    if x.ndim < 2 or _is_vector(path) or _is_table(path):
      return None
    return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

  return jax.tree_util.tree_map_with_path(of, params)


def _muon(
  cfg: config.Optimizer, rate: optax.Schedule, adam_rate: optax.Schedule
) -> optax.GradientTransformation:
  others = optax.adamw(adam_rate, cfg.beta1, cfg.beta2, cfg.eps, weight_decay=0.0, nesterov=True)
  return muon.make(
    rate,
    others,
    muon_dimensions,
    eps=cfg.eps,
    weight_decay=cfg.weight_decay,
    precision=cfg.matmul_precision,
  )


def _adafactor(cfg: config.Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
  def scale(path: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
    clipped = update / jnp.maximum(1.0, _rms(path, update))
    return clipped * jnp.maximum(1e-3, _rms(path, param))

  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.stateless(functools.partial(jax.tree_util.tree_map_with_path, scale)),
    optax.add_decayed_weights(cfg.weight_decay, matrices),
    optax.scale_by_learning_rate(rate),
  )


def _rms(path: tuple, x: jax.Array) -> jax.Array:
  """The root mean square of each matrix or vector: of a stack of layers, of each layer."""
  axes = tuple(range(x.ndim))[-1 if _is_vector(path) else -2 :]
  return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))


def _schedule_free(cfg: config.Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
  def gamma(count: jax.Array) -> jax.Array:  # Section 4.4: with Adam's correction.
    return rate(count) * jnp.sqrt(1 - cfg.beta2 ** (count + 1))

  base = optax.chain(
    optax.scale_by_rms(cfg.beta2, cfg.eps, eps_in_sqrt=False),
    optax.add_decayed_weights(cfg.weight_decay, matrices),
    optax.scale_by_learning_rate(gamma),
  )
  # Optax counts updates from 1 in the average, from 0 in the base; both must see one rate.
  return optax.contrib.schedule_free(base, lambda count: gamma(count - 1), cfg.beta1)


def _rate(cfg: config.Optimizer, steps: int, peak: float, step: jax.Array | int) -> Any:
  xp = jnp if isinstance(step, jax.Array) else np  # The host's logs need no compiler.
  step = xp.asarray(step, np.float32)
  warm = xp.minimum(1.0, (step + 1) / max(cfg.warmup, 1))
  if cfg.schedule == "inverse_sqrt":
    return peak * warm * xp.sqrt(max(cfg.warmup, 1) / xp.maximum(step + 1, max(cfg.warmup, 1)))
  length = cfg.decay * steps if cfg.schedule == "wsd" else max(steps - cfg.warmup, 1)
  done = xp.clip((step - (steps - length)) / max(length, 1e-8), 0.0, 1.0)
  if cfg.schedule == "constant":
    done = 0.0 * done
  elif cfg.schedule == "cosine":
    done = 0.5 * (1 - xp.cos(np.pi * done))
  return peak * warm * (1 - (1 - cfg.final) * done)


def _is_vector(path: tuple) -> bool:
  # Scan-stacked norms, biases and DoRA's lengths are [L, D]: their names tell them from matrices.
  parts = ("norm", "scale", "bias", "magnitude")
  return any(part in name for name in _names(path) for part in parts)


def _is_table(path: tuple) -> bool:
  # Embeddings and heads: their rows are looked up one by one, or their outputs are logits.
  return any("embed" in name or name.endswith("head") for name in _names(path))


def _names(path: tuple) -> list[str]:
  return jax.tree_util.keystr(path, simple=True, separator="/").lower().split("/")
