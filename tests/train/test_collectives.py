"""Collectives in compiled text: kinds, bytes, groups, how often a loop runs them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.train import collectives

WHOLE = P()


def over(fn, axes, *shapes, out=WHOLE):
  """The collectives of fn over a mesh of 2 x 4 devices; arrays are split by rows over `axes`."""
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  rows = NamedSharding(mesh, P(axes))
  given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows) for shape in shapes]
  mapped = jax.shard_map(fn, mesh=mesh, in_specs=P(axes), out_specs=out, check_vma=False)
  return collectives.collectives_of(jax.jit(mapped).lower(*given).compile().as_text())


def test_a_gather_and_a_sum_have_the_bytes_of_the_whole_array():
  (gather,) = over(lambda x: jax.lax.all_gather(x, "b", tiled=True), "b", (16, 8))
  assert gather[:4] == ("all-gather", 1, 16 * 8 * 4, (0, 1, 2, 3))
  assert gather.sent == 16 * 8 * 4 * 3 / 4
  (total,) = over(lambda x: jax.lax.psum(x, "a"), "a", (16, 8))
  assert total[:4] == ("all-reduce", 1, 8 * 8 * 4, (0, 4))
  assert total.sent == 8 * 8 * 4


def test_a_loop_counts_as_often_as_it_runs():
  def looped(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(jax.lax.psum(c, "b")), None), x, None, length=7)[0]

  (total,) = over(looped, "b", (16, 8))
  assert (total.kind, total.count, total.bytes) == ("all-reduce", 7, 4 * 8 * 4)


def test_a_sum_of_which_a_part_is_kept_is_a_scattered_one():
  def scattered(x):
    return jax.lax.psum_scatter(x, "b", tiled=True)

  def cut(x):
    place = jax.lax.axis_index("b")
    return 2.0 * jax.lax.dynamic_slice_in_dim(jax.lax.psum(x, "b"), place * 2, 2)

  for fn in (scattered, cut):
    (found,) = over(fn, "a", (16, 8), out=P("b"))
    assert (found.kind, found.bytes, len(found.group)) == ("reduce-scatter", 8 * 8 * 4, 4)
    assert found.sent == 8 * 8 * 4 * 3 / 4


@pytest.mark.parametrize(
  ("text", "group"),
  [
    ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
    ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
    ("replica_groups=mesh['x'=2,'y'=4] {'x'}, x", (0, 4)),
    ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}, x", (0, 4)),
    ("source_target_pairs={{0,1},{1,0}}, x", (0, 1)),
  ],
)
def test_groups_are_read_however_they_are_written(text, group):
  line = f"  %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {text}"
  program = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n{line}\n}}"
  (found,) = collectives.collectives_of(program)
  assert found.group == group and found.bytes == 32


def test_an_unknown_group_is_an_error():
  line = "  %r = f32[8]{0} all-reduce(%p), replica_groups=what"
  with pytest.raises(ValueError, match="unknown form"):
    collectives.collectives_of(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}")
