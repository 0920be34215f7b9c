"""Tiny models and losses for the tests of training. Shape letters: B rows, T positions, D width."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import Mean, masked_mean

VOCAB, LENGTH, ROWS = 16, 4, 32


class Toy(nn.Module):
  """An embedding, one hidden matrix and a head, with the logical axes of a decoder."""

  dropout: float = 0.0
  width: int = 8

  @nn.compact
  def __call__(self, tokens_BT):
    def init(*axes):
      return nn.with_logical_partitioning(nn.initializers.normal(0.5), axes)

    x_BTD = nn.Embed(VOCAB, self.width, embedding_init=init("vocab", "embed"), name="embedding")(
      tokens_BT
    )
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", None, None))
    up = nn.Dense(2 * self.width, use_bias=False, kernel_init=init("embed", "mlp"), name="up")
    x_BTF = nn.tanh(up(x_BTD))
    x_BTF = nn.Dropout(self.dropout, deterministic=not self.dropout)(x_BTF)
    return nn.Dense(VOCAB, kernel_init=init("mlp", "vocab"), name="head")(x_BTF)


def _rngs(model, rng):
  return {"dropout": rng} if model.dropout else None


def loss_of(model):
  """Masked-mean cross-entropy."""

  def loss_fn(params, batch, rng):
    logits_BTV = model.apply({"params": params}, batch["tokens"], rngs=_rngs(model, rng))
    nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
    hit_BT = (logits_BTV.argmax(-1) == batch["targets"]).astype(jnp.float32)
    loss = masked_mean(nll_BT, batch["mask"])
    return loss, {"accuracy": masked_mean(hit_BT, batch["mask"])}

  return loss_fn


def two_terms(model):
  """Cross-entropy per token plus a penalty per row: two normalisers."""

  def loss_fn(params, batch, rng):
    logits_BTV = model.apply({"params": params}, batch["tokens"], rngs=_rngs(model, rng))
    nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
    token = masked_mean(nll_BT, batch["mask"])
    row = masked_mean(jnp.square(logits_BTV).mean((1, 2)), batch["row_mask"])
    total = jnp.stack([token.total, 0.3 * row.total])
    return Mean(total, jnp.stack([token.weight, row.weight])), {"penalty": row}

  return loss_fn


def make_batch(seed=0, rows=ROWS):
  """A batch whose masks are very unequal between rows; some rows have none."""
  rng = np.random.default_rng(seed)
  length_B = rng.integers(0, LENGTH + 1, rows) * (np.arange(rows) % 3 > 0)
  return {
    "tokens": rng.integers(0, VOCAB, (rows, LENGTH)).astype(np.int32),
    "targets": rng.integers(0, VOCAB, (rows, LENGTH)).astype(np.int32),
    "mask": (np.arange(LENGTH) < length_B[:, None]).astype(np.float32),
    "row_mask": (rng.random(rows) < 0.3).astype(np.float32),
  }


def make_params(model):
  """Returns key -> boxed params."""
  return lambda key: model.init(key, jnp.zeros((1, LENGTH), jnp.int32))["params"]


def train(place, loss_fn, tx, *, model=None, accum=1, steps=2, rows=ROWS):
  """Trains a few steps; returns (params, metrics of each step) as numpy."""
  state = place.init(state_maker(make_params(model or Toy()), tx), jax.random.key(0))
  step = place.compile(make_train_step(loss_fn, tx, accum=accum, axis_name=place.axis_name))
  rows_of_metrics = []
  for n in range(steps):
    state, metrics = step(state, place.batch(make_batch(n, rows)))
    fetched = place.fetch(metrics)
    rows_of_metrics.append({k: float(np.asarray(v.value)) for k, v in fetched.items()})
  return place.fetch(state.params), rows_of_metrics
