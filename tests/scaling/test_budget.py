"""Closed forms of a device's memory, of hours, and of the network."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from llm_jax import config
from llm_jax.models import backends, presets
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import budget, flops, network

SEVEN = presets.llama2("7b")


def plan(mesh, devices, **fields):
  return budget.memory(SEVEN, mesh, devices, rows=fields.pop("rows", 64), length=4096, **fields)


def test_parameters_gradients_and_moments_are_split_over_fsdp_and_tensor():
  count = flops.parameters(SEVEN)
  whole = plan(config.Mesh(data=1), 1)
  assert (whole.parameters, whole.gradients, whole.moments) == (4 * count, 4 * count, 8 * count)
  split = plan(config.Mesh(data=1, fsdp=4, tensor=2), 8)
  assert split.parameters == pytest.approx(whole.parameters / 8, abs=8)
  assert plan(config.Mesh(data=8), 8).moments == whole.moments
  assert plan(config.Mesh(data=8, zero=True), 8).moments == whole.moments // 8
  assert plan(config.Mesh(data=1), 1, optimizer="lion").moments == 4 * count


def test_ppo_has_four_models():
  one, four = plan(config.Mesh(), 1), plan(config.Mesh(), 1, roles=budget.Roles(2, 2), cached=4096)
  assert (four.parameters, four.moments) == (2 * one.parameters, 2 * one.moments)
  assert four.frozen == 2 * one.parameters
  assert four.cache == 4096 * SEVEN.layers * 2 * SEVEN.dim * 2


def test_activations_fall_with_every_axis_of_the_mesh():
  at = lambda **mesh: plan(config.Mesh(data=1, **mesh), math.prod(mesh.values()))  # noqa: E731
  whole = plan(config.Mesh(data=1), 1)
  for axis in ("fsdp", "sequence", "tensor"):
    assert at(**{axis: 4}).kept == whole.kept // 4
  assert whole.kept == 64 * 4096 * SEVEN.layers * 2 * SEVEN.dim  # Layers' inputs alone.


def test_activations_are_within_a_factor_two_of_the_compilers_plan():
  cfg, rows, length = config.Model(vocab_size=128, dim=64, layers=4, heads=4), 8, 128
  model, tokens = Transformer.from_config(cfg), jnp.zeros((rows, length), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
  gradient = jax.jit(jax.grad(lambda v, t: jnp.sum(model.apply(v, t))))
  temporary = gradient.lower(variables, tokens).compile().memory_analysis().temp_size_in_bytes
  planned = budget.memory(cfg, config.Mesh(data=1), 1, rows=rows, length=length)
  assert 0.5 < planned.kept / temporary < 2.0
  saved = dataclasses.replace(cfg, remat="full")
  less = budget.memory(saved, config.Mesh(data=1), 1, rows=rows, length=length)
  assert less.kept < planned.kept / 4 and less.total == sum(less)


def test_long_rows_go_by_blocks_where_the_model_takes_them_so():
  assert budget.LONG == backends.LONG
  long = lambda how: budget.memory(  # noqa: E731
    dataclasses.replace(SEVEN, attention=how), config.Mesh(data=1), 1, rows=1, length=4096
  )
  assert long("auto") == long("xla_chunked") and long("xla").working > 4 * long("auto").working


def test_sizes_work_out_what_is_left_and_refuse_the_rest():
  assert budget.sizes(config.Mesh(fsdp=4, tensor=2), 32) == (4, 4, 1, 2)
  with pytest.raises(ValueError, match="do not make up 9 devices"):
    budget.sizes(config.Mesh(fsdp=2), 9)


def test_hours_are_work_over_rate():
  assert budget.hours(1e15, 3600, devices=2, peak=1e15, mfu=0.5) == pytest.approx(1.0)


def test_a_group_within_a_node_is_fast_and_messages_take_their_time():
  net = network.Network()
  inside, outside = tuple(range(8)), tuple(range(0, 64, 8))
  assert not net.leaves_node(inside) and net.leaves_node(outside)
  assert net.seconds(450e9, 0, inside) == 1.0 and net.seconds(50e9, 0, outside) == 1.0
  assert net.seconds(0, 10, outside) == pytest.approx(10 * 3 * 10e-6)


def test_scaling_is_the_share_of_compute():
  step = network.Scaling(compute=3.0, inside=1.0, outside=2.0)
  assert (step.hidden, step.shown) == (0.75, 0.5)
  assert network.Scaling(1.0, 0.0, 4.0).hidden == 0.25
