"""Adapters: nothing at first, the product they stand for, gradients of their own alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.generate import sample
from llm_jax.models import lora
from llm_jax.models.transformer import Transformer, stack, unstack
from llm_jax.train import optim

TINY = config.Model(vocab_size=19, dim=16, layers=2, heads=4, kv_heads=2, hidden=24)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 19)
KINDS = pytest.mark.parametrize("dora", [False, True])
SCANNED = pytest.mark.parametrize("scan", [False, True])


def made(**fields):
  model = Transformer.from_config(dataclasses.replace(TINY, **fields))
  return model, model.init(jax.random.key(0), TOKENS)["params"]


def moved(params):
  """Parameters whose adapter has learned something."""
  draw = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731

  def learn(path, leaf):
    return draw(leaf) if lora.trained(tuple(k.key for k in path)) else leaf

  return jax.tree_util.tree_map_with_path(learn, params)


@pytest.mark.long
@KINDS
@SCANNED
def test_a_new_adapter_changes_nothing(dora, scan):
  model, params = made(scan=scan, bias=True)
  whole = lora.attach(nn.unbox(params), config.Lora(rank=3, dora=dora), jax.random.key(2))
  np.testing.assert_allclose(model.apply(whole, TOKENS), model.apply(params, TOKENS), atol=1e-5)


@pytest.mark.long
@KINDS
@SCANNED
def test_it_is_the_merged_model(dora, scan):
  model, params = made(scan=scan, bias=True)
  whole = moved(lora.attach(nn.unbox(params), config.Lora(rank=3, dora=dora), jax.random.key(2)))
  own = model.apply(whole, TOKENS)
  assert np.abs(own - model.apply(params, TOKENS)).max() > 0.1
  merged = lora.merge(whole)
  assert jax.tree.structure(merged) == jax.tree.structure(nn.unbox(params))
  np.testing.assert_allclose(model.apply(merged, TOKENS), own, atol=2e-5)


def test_the_closed_form_of_one_layer():
  x, w, a, b, m = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(
    [(5, 4), (4, 3), (4, 2), (2, 3), (3,)]
  ))  # fmt: skip
  layer = lora.Dense(3, use_bias=False)
  own = {"a": a, "b": b, "scale": jnp.float32(2)}
  got = layer.apply({"params": {"kernel": w}, "lora": own}, x)
  np.testing.assert_allclose(got, x @ w + 2 * x @ a @ b, rtol=1e-5, atol=1e-5)
  got = layer.apply({"params": {"kernel": w}, "lora": own | {"magnitude": m}}, x)
  whole = w + 2 * a @ b
  np.testing.assert_allclose(got, x @ (m * whole / jnp.linalg.norm(whole, axis=0)), atol=2e-5)


@pytest.mark.long
def test_boxes_name_the_axes_of_both_factors():
  _, params = made(scan=True)
  own = lora.attach(params, config.Lora(rank=3), jax.random.key(2))["lora"]["blocks"]
  assert own["attention"]["q"]["a"].names == ("layers", "embed", "rank")
  assert own["attention"]["q"]["b"].names == ("layers", "rank", "heads")
  assert own["mlp"]["down"]["scale"].names == ("layers",)


@pytest.mark.long
def test_targets_and_scales():
  _, params = made()
  cfg = config.Lora(rank=4, alpha=8.0, targets=("q", "v"))
  own = dict(lora.adapted(lora.attach(params, cfg, jax.random.key(2))["lora"]))
  assert {path[-1] for path in own} == {"q", "v"} and len(own) == 4
  assert float(nn.unbox(own["blocks_0", "attention", "q"]["scale"])) == 2
  rooted = dataclasses.replace(cfg, rank_stabilized=True)
  own = dict(lora.adapted(lora.attach(params, rooted, jax.random.key(2))["lora"]))
  assert float(nn.unbox(own["blocks_1", "attention", "v"]["scale"])) == 4
  with pytest.raises(UserError, match='no layer "gat"; did you mean "gate"'):
    lora.attach(params, config.Lora(rank=4, targets=("gat",)), jax.random.key(2))


@pytest.mark.long
@KINDS
def test_the_sampler_draws_with_the_adapter_of_a_scanned_model(dora):
  model, params = made(scan=True)
  whole = moved(lora.attach(nn.unbox(params), config.Lora(rank=3, dora=dora), jax.random.key(2)))

  def greedy(params):
    keys = jax.random.split(jax.random.key(0), 2)
    return sample(
      model, params, TOKENS, jnp.ones_like(TOKENS), keys, max_new=12, temperature=0.0, end_id=-1
    ).tokens

  np.testing.assert_array_equal(greedy(whole), greedy(lora.merge(whole)))
  assert not np.array_equal(greedy(whole), greedy(nn.unbox(params)))
  np.testing.assert_array_equal(
    stack(unstack(whole, 2), 2)["lora"]["blocks"]["mlp"]["up"]["a"],
    whole["lora"]["blocks"]["mlp"]["up"]["a"],
  )


@pytest.mark.long
def test_an_adapter_that_fits_nothing_is_no_silent_base():
  model, params = made()
  own = {"a": jnp.ones((16, 2)), "b": jnp.ones((2, 16)), "scale": jnp.float32(1)}
  with pytest.raises(ValueError, match="blocks_0/atention/q has a, b, scale: it needs"):
    model.apply({**params, "lora": {"blocks_0": {"atention": {"q": own}}}}, TOKENS)
  del own["scale"]
  with pytest.raises(ValueError, match="blocks_0/attention/q has a, b: it needs"):
    model.apply({**params, "lora": {"blocks_0": {"attention": {"q": own}}}}, TOKENS)


@pytest.mark.long
def test_lengths_are_no_matrices():
  _, params = made(scan=True)
  whole = lora.attach(nn.unbox(params), config.Lora(rank=3, dora=True), jax.random.key(2))
  own = optim.matrices(whole)["lora"]["blocks"]["mlp"]["up"]
  assert own == {"a": True, "b": True, "scale": False, "magnitude": False}
  assert optim.muon_dimensions(whole)["lora"]["blocks"]["mlp"]["up"]["magnitude"] is None
