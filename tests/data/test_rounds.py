"""Components in rounds over files: right for any graph, few rounds, never a half-done answer."""

import concurrent.futures
import math
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.dedup import rounds
from llm_jax.errors import UserError


def reference(edges):
  """[(node, smallest of its component)] by node, by union-find."""
  parent = {}

  def root(x):
    while parent.setdefault(x, x) != x:
      x = parent[x]
    return x

  for a, b in edges:
    low, high = sorted((root(a), root(b)))
    parent[high] = low
  return [(x, root(x)) for x in sorted(parent)]


def saved(folder, *files):
  """Paths of .npy files with these edges."""
  folder.mkdir(exist_ok=True)
  for i, edges in enumerate(files):
    np.save(folder / f"edges{i}.npy", np.array(edges, np.int64).reshape(-1, 2))
  return [folder / f"edges{i}.npy" for i in range(len(files))]


def chain(nodes):
  return np.stack([nodes[:-1], nodes[1:]], axis=1)


def as_pairs(result):
  return list(map(tuple, result.labels().tolist()))


small = st.integers(0, 12)
large = st.sampled_from([-(2**63), 2**63 - 1, -1, 0, 2**32, 2**32 + 1])
graphs = st.lists(st.tuples(small | large, small | large), max_size=30)


@settings(deadline=None, max_examples=120)
@given(st.lists(graphs, max_size=3), st.integers(1, 5), st.sampled_from([1, 3, 1000]))
def test_labels_are_those_of_union_find(tmp_path_factory, files, partitions, rows):
  folder = tmp_path_factory.mktemp("graph")
  with mock.patch.object(rounds, "_ROWS", rows):
    result = rounds.components(saved(folder / "in", *files), folder / "out", partitions)
  expected = reference([edge for edges in files for edge in edges])
  assert as_pairs(result) == expected
  assert result.nodes == len(expected)
  assert result.components == len({root for _, root in expected})
  edges = [row["edges"] for row in result.rounds]
  assert edges == sorted(edges, reverse=True)  # Never more than before.
  assert [row["moved"] == 0 for row in result.rounds] == [False] * (len(edges) - 1) + [True]


@pytest.mark.parametrize("shuffled", [False, True])
def test_rounds_grow_as_the_logarithm_of_a_chain(tmp_path, shuffled):
  for size in (100, 1000, 10_000):
    nodes = np.arange(size)
    if shuffled:
      nodes = np.random.default_rng(0).permutation(size)
    folder = tmp_path / str(size)
    result = rounds.components(saved(folder, chain(nodes)), folder / "out", 4)
    assert (result.nodes, result.components) == (size, 1)
    assert not result.labels()[:, 1].any()
    assert math.log2(size) / 2 < len(result.rounds) < math.log2(size) + 2


@pytest.mark.parametrize("centre", [0, 500, 10_000])
def test_a_star_needs_two_rounds_and_a_clique_three(tmp_path, centre):
  leaves = [x for x in range(1000) if x != centre]
  star = rounds.components(saved(tmp_path, [(centre, x) for x in leaves]), tmp_path / "star")
  assert star.components == 1
  assert len(star.rounds) <= 2
  clique = [(a + centre, b + centre) for a in range(40) for b in range(40)]
  result = rounds.components(saved(tmp_path, clique), tmp_path / "clique")
  assert as_pairs(result) == [(centre + a, centre) for a in range(40)]
  assert len(result.rounds) <= 3


def test_no_edges_and_no_files_have_no_components(tmp_path):
  for files in ([], [[]], [[], []]):
    result = rounds.components(saved(tmp_path, *files), tmp_path / str(len(files)))
    assert result.labels().shape == (0, 2)
    assert (result.nodes, result.components) == (0, 0)


def test_self_loops_and_repeats_are_nodes_and_nothing_more(tmp_path):
  edges = [(7, 7), (3, 5), (5, 3), (3, 5), (5, 5)]
  result = rounds.components(saved(tmp_path, edges), tmp_path / "out")
  assert as_pairs(result) == [(3, 3), (5, 3), (7, 7)]


def test_too_few_rounds_are_an_error_and_the_next_call_goes_on(tmp_path):
  files, out = saved(tmp_path, chain(np.arange(300))), tmp_path / "out"
  full = rounds.components(files, tmp_path / "full", 3)
  with pytest.raises(UserError, match="no connected components after 4 rounds") as error:
    rounds.components(files, out, 3, most_rounds=4)
  moved, edges = full.rounds[3]["moved"], full.rounds[3]["edges"]
  assert f"the last one still moved {moved}, with {edges} edges left" in str(error.value)
  assert not list(out.glob("labels*")) and not (out / "result.json").exists()
  done = []

  def run(step, tasks):
    done.extend(task.out for task in tasks)
    return map(step, tasks)

  assert rounds.components(files, out, 3, run=run).rounds == full.rounds
  assert all("round-" in name and "round-0004" not in name for name in done[:-3])
  assert len(done) == 2 * 3 * (len(full.rounds) - 4) + 3  # The fifth round and on, and labels.


@pytest.mark.parametrize("lives", [0, 1, 2, 3, 5, 7, 8, 20])
def test_a_killed_run_goes_on_and_runs_no_task_twice(tmp_path, lives):
  files = saved(tmp_path, chain(np.arange(40)), [(100, 101), (100, 100)])
  expected = rounds.components(files, tmp_path / "whole", 3)
  done, left = [], lives

  def run(step, tasks):
    nonlocal left
    for task in tasks:
      if not left:
        (tmp_path / "out" / "labels-00000.npy.0.part").write_bytes(b"half")
        raise KeyboardInterrupt
      left -= 1
      done.append(task.out)
      yield step(task)

  with pytest.raises(KeyboardInterrupt):
    rounds.components(files, tmp_path / "out", 3, run=run)
  left = 10**6
  result = rounds.components(files, tmp_path / "out", 3, run=run)
  np.testing.assert_array_equal(result.labels(), expected.labels())
  assert result.rounds == expected.rounds
  assert len(done) == len(set(done)) == 2 + 6 * len(result.rounds) + 3
  assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
    "labels-00000.npy", "labels-00001.npy", "labels-00002.npy", "plan.json", "result.json",
  ]  # fmt: skip
  again = rounds.components(files, tmp_path / "out", 3, run=None)  # Nothing is left to run.
  assert again == result


def test_a_task_that_fails_leaves_no_file(tmp_path):
  files, out = saved(tmp_path, chain(np.arange(40))), tmp_path / "out"
  with mock.patch.object(rounds._Writer, "add_both", side_effect=OSError("disk full")):
    with pytest.raises(OSError, match="disk full"):
      rounds.components(files, out, 2)
  assert not [file for file in out.iterdir() if "small" in file.name or ".part" in file.name]
  assert rounds.components(files, out, 2).components == 1


def test_a_pool_gives_the_same(tmp_path):
  rng = np.random.default_rng(0)
  files = saved(tmp_path, *rng.integers(0, 3000, (3, 700, 2)))
  alone = rounds.components(files, tmp_path / "alone", 5)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    pooled = rounds.components(files, tmp_path / "pooled", 5, run=pool.map)
  np.testing.assert_array_equal(pooled.labels(), alone.labels())
  assert pooled.rounds == alone.rounds
  expected = reference([tuple(e) for file in files for e in np.load(file).tolist()])
  assert as_pairs(pooled) == expected


def test_memory_is_for_a_partition_and_a_block_even_if_one_node_has_all_edges(tmp_path):
  # All edges pass through the partition of their centre; in memory they would need 20 MB.
  leaves = np.random.default_rng(0).permutation(np.arange(1, 200_001))
  files = saved(tmp_path, np.stack([leaves, np.zeros_like(leaves)], axis=1))
  peaks = []

  def run(step, tasks):
    for task in tasks:
      tracemalloc.reset_peak()
      yield step(task)
      peaks.append(tracemalloc.get_traced_memory()[1])

  with mock.patch.object(rounds, "_ROWS", 1 << 14):
    tracemalloc.start()
    result = rounds.components(files, tmp_path / "out", 16, run=run)
    tracemalloc.stop()
  assert result.components == 1
  assert max(peaks) < 100 * 200_000 / 16 + 150 * (1 << 14)


def test_bad_arguments_files_and_folders_are_named(tmp_path):
  files, out = saved(tmp_path / "in", [(1, 2)]), tmp_path / "out"
  for wrong in ({"partitions": 0}, {"most_rounds": 0}):
    with pytest.raises(ValueError, match="at least 1 of each"):
      rounds.components(files, out, **wrong)
  np.save(tmp_path / "flat.npy", np.zeros(4, np.int64))
  np.save(tmp_path / "float.npy", np.zeros((4, 2)))
  for name in ("flat", "float", "missing"):
    with pytest.raises(UserError, match=f"cannot read edges of .*{name}.npy .*: check the file"):
      rounds.components([tmp_path / f"{name}.npy"], out)
  rounds.components(files, out)
  with pytest.raises(UserError, match="out holds rounds of other edges or partitions"):
    rounds.components(files, out, partitions=3)
  saved(tmp_path / "in", [(1, 3)])
  with pytest.raises(UserError, match="out holds rounds of other edges or partitions"):
    rounds.components(files, out)
  with pytest.raises(UserError, match="in holds files of something else: name an empty folder"):
    rounds.components(files, tmp_path / "in")
  assert files[0].exists()


def test_a_damaged_file_between_rounds_is_named(tmp_path):
  files, out = saved(tmp_path, chain(np.arange(200))), tmp_path / "out"
  with pytest.raises(UserError, match="no connected components after 1 rounds"):
    rounds.components(files, out, 1, most_rounds=1)
  (pairs,) = out.glob("round-0001-large-*.pairs")
  pairs.write_bytes(pairs.read_bytes()[:-8])
  with pytest.raises(UserError, match=f"cannot read .*{pairs.name} .*too short.* run again"):
    rounds.components(files, out, 1)
