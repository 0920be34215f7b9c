"""One optimizer step for every stage.

Shape letters: B batch rows, A microbatches, K terms of a loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from llm_jax.errors import UserError
from llm_jax.train.guard import Guard
from llm_jax.types import Batch, LossFn, Mean, Params, TrainState, join

StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]


def state_maker(
  make_params: Callable[[jax.Array], Params],
  tx: optax.GradientTransformation | Guard,
  trained: Callable[[tuple[str, ...]], bool] | None = None,
  extend: Callable[[Params, jax.Array], Params] | None = None,
) -> Callable[..., TrainState]:
  """Returns make_state(rng, loaded=None) for `placement.init`.

  Args:
    make_params: key -> parameters as the model makes them, still in their boxes of axis names.
    tx: the optimizer.
    trained: path of a parameter -> whether it is trained; the others are frozen. None: all are.
    extend: (parameters, the loaded ones in place, key) -> these and more, such as an adapter.

  Returns:
    make_state(rng, loaded): a new state. `loaded` is a nested dict of parameters that replace the
    new ones; a whole top-level entry may be missing (a reward model's new head), nothing else.
  """

  def make_state(rng: jax.Array, loaded: Params | None = None) -> TrainState:
    params_key, train_key = jax.random.split(rng)
    params = make_params(params_key)
    if loaded is not None:
      params = _overlay(params, loaded)
    if extend is not None:
      params = extend(params, jax.random.fold_in(params_key, 1))
    params, frozen = (params, {}) if trained is None else _split_tree(params, trained)
    opt_state = tx.init(nn.unbox(params))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, train_key, frozen)

  return make_state


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation | Guard,
  *,
  accum: int = 1,
  axis_name: str | None = None,
) -> StepFn:
  """Returns step(state, batch) -> (state, metrics), one update of the parameters.

  The gradient is that of sum_k total_k / W_k, where total_k is summed over all microbatches and
  devices and W_k is the global weight of term k. So the update is the same for any `accum` and any
  number of devices, whatever the masks are. The weights are summed first, in a pass that does not
  depend on the parameters: the compiler removes the forward computation from it.

  Args:
    loss_fn: (params, batch, rng) -> (Mean, metrics).
    tx: the optimizer; the state's `opt_state` is its own. A guard's bad updates are not applied.
    accum: A, the number of microbatches, each of B / A rows.
    axis_name: the axis to sum over under `jax.pmap`; None under `jax.jit`.

  Returns:
    step: the batch's leaves are [B, ...]. Metrics are the loss's own, plus "loss", "grad_norm"
    (before clipping), "param_norm" (after the update) and, of a guard, "skipped".

  Raises:
    UserError: while tracing, if B is not a multiple of `accum`.
  """

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
    rng = jax.random.fold_in(state.rng, state.step)
    if axis_name:
      rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))

    def loss_of(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, dict[str, Mean]]:
      return loss_fn(join(params, state.frozen), batch, rng)

    grads, loss, metrics = _gradients(loss_of, state.params, batch, rng, accum, axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    one = jnp.ones((), jnp.float32)
    metrics = metrics | {
      "loss": loss,
      "grad_norm": Mean(optax.tree.norm(grads), one),
      "param_norm": Mean(optax.tree.norm(params), one),
    }
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return tx.judge(state, new, metrics) if isinstance(tx, Guard) else (new, metrics)

  return step


def make_eval_step(
  loss_fn: LossFn, axis_name: str | None = None
) -> Callable[[Params, Batch], dict[str, Mean]]:
  """Returns eval_step(params, batch) -> metrics as Means, "loss" included, to be added up.

  Each evaluation uses the same key, so two evaluations of the same parameters agree.
  """

  def eval_step(params: Params, batch: Batch) -> dict[str, Mean]:
    loss, metrics = loss_fn(params, batch, jax.random.key(0))
    sums = metrics | {"loss": loss}
    return jax.lax.psum(sums, axis_name) if axis_name else sums

  return eval_step


def _gradients(
  loss_fn: LossFn,
  params: Params,
  batch: Batch,
  rng: jax.Array,
  accum: int,
  axis_name: str | None,
) -> tuple[Params, Mean, dict[str, Mean]]:
  """Returns the gradient of the global loss, with the loss and the metrics summed everywhere."""

  def over_devices(tree: Any) -> Any:
    return jax.lax.psum(tree, axis_name) if axis_name else tree

  def grad_sum(batch: Batch, rng: jax.Array, weight: jax.Array | None) -> tuple:
    def scalar(p: Params) -> tuple[jax.Array, tuple[Mean, dict[str, Mean]]]:
      loss, metrics = loss_fn(p, batch, rng)
      # A single microbatch needs no pass of its own: its weight is at hand.
      total_weight = over_devices(loss.weight) if weight is None else weight
      safe = jax.lax.stop_gradient(jnp.maximum(total_weight, 1e-8))
      return jnp.sum(loss.total / safe), (loss, metrics)

    return jax.grad(scalar, has_aux=True)(params)

  if accum == 1:
    sums = grad_sum(batch, rng, None)
  else:
    micro = jax.tree.map(lambda x: _split(x, accum), batch)
    xs = (micro, jax.random.split(rng, accum))
    weight = over_devices(_scan_sum(lambda b, r: loss_fn(params, b, r)[0].weight, xs))
    sums = _scan_sum(lambda b, r: grad_sum(b, r, weight), xs)
  grads, (loss, metrics) = over_devices(sums)
  return grads, loss, metrics


def _split(x: jax.Array, accum: int) -> jax.Array:
  """Splits [B, ...] into [A, B/A, ...], strided: each device keeps its own rows."""
  if x.shape[0] % accum:
    raise UserError(
      f"{x.shape[0]} rows per device cannot be split into accum={accum} microbatches; make "
      "config.batch a multiple of config.accum (times the devices, under pmap)"
    )
  x = x.reshape(-1, accum, *x.shape[1:]).swapaxes(0, 1)
  return nn.with_logical_constraint(x, (None, "batch") + (None,) * (x.ndim - 2))


def _scan_sum(fn: Callable, xs: tuple) -> Any:
  """Sum of fn(*x) over the leading axis of `xs`."""
  first = jax.tree.map(lambda x: x[0], xs)
  shapes = jax.eval_shape(fn, *first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(carry: Any, x: tuple) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, carry, fn(*x)), None

  return jax.lax.scan(body, zeros, xs)[0]


def _split_tree(
  tree: Params, trained: Callable[[tuple[str, ...]], bool], path: tuple[str, ...] = ()
) -> tuple[Params, Params]:
  """Returns the trained and the frozen part of a nested dict."""
  parts: tuple[dict, dict] = {}, {}
  for name, node in tree.items():
    at = (*path, name)
    if not isinstance(node, Mapping):
      parts[0 if trained(at) else 1][name] = node
      continue
    for part, inner in zip(parts, _split_tree(node, trained, at), strict=True):
      if inner:
        part[name] = inner
  return parts


def _overlay(params: Params, loaded: Params) -> Params:
  """Puts `loaded` into the boxes of `params`; only whole top-level entries may be missing."""
  known = {name: params[name] for name in loaded if name in params}
  wanted, got = _shapes(known), _shapes(loaded)
  for path in sorted(wanted.keys() | got.keys()):
    if wanted.get(path) != got.get(path):
      raise UserError(
        f"parameter {path}: the model has {wanted.get(path, 'none')}, the checkpoint has "
        f"{got.get(path, 'none')}; use the model's config that the checkpoint was trained with"
      )
  boxed = nn.meta.replace_boxed(known, jax.tree.map(jnp.asarray, dict(loaded)))
  return dict(params) | boxed


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }
