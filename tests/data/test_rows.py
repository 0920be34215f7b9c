"""Packed rows on disk: nothing lost, nearly nothing padded, the same batches for any processes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import batches, mixture, packing, records, rows
from llm_jax.errors import UserError


def unique_documents(count, seed=0, mean=4.0, first=0):
  sizes = np.random.default_rng(seed).lognormal(mean, 1.2, count).astype(int)
  ends = first + np.cumsum(sizes)
  return [np.arange(b - n, b, dtype=np.int32) for n, b in zip(sizes, ends, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Token files "a" and "b" whose ids differ, and their rows of 64 predictions."""
  folder = tmp_path_factory.mktemp("rows")
  for i, name in enumerate("ab"):
    documents = unique_documents(600 - 300 * i, i, first=200_000 * i)
    packing.write_tokens(folder / name, documents, 500_000)
    rows.write_rows(folder / f"{name}_rows", packing.TokenSource(folder / name), 64)
  return folder


def transitions(batch):
  at = batch["mask"] > 0
  return np.stack([batch["tokens"][at], batch["targets"][at]], axis=1)


def assert_same(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("strategy", ["best_fit", "concat"])
@pytest.mark.parametrize("length", [3, 16, 64, 5000])
def test_every_token_but_the_first_is_a_target_once(tmp_path, strategy, length):
  documents = [np.array([5]), np.array([], np.int64), *unique_documents(150, 2, first=10)]
  packing.write_tokens(tmp_path / "t", documents, 100_000)
  source = packing.TokenSource(tmp_path / "t")
  meta = rows.write_rows(tmp_path / "r", source, length, strategy)
  made = rows.RowSource(tmp_path / "r")
  seen = np.concatenate([transitions(made[i]) for i in range(len(made))])
  expected = np.concatenate([np.stack([d[:-1], d[1:]], axis=1) for d in documents if len(d) > 1])
  np.testing.assert_array_equal(seen[np.argsort(seen[:, 1])], expected)
  assert len(made) == meta["rows"]
  assert made.predictions == meta["predictions"] == len(expected)
  assert meta["fill"] == len(expected) / (len(made) * length)
  if strategy == "concat":
    assert len(made) == -(-len(expected) // length)


def test_rows_are_lm_rows(folder):
  made = rows.RowSource(folder / "a_rows")
  for i in range(0, len(made), 7):
    row = made[i]
    assert {x.shape for x in row.values()} == {(64,)}
    dtypes = {name: x.dtype for name, x in row.items()}
    assert dtypes.pop("mask") == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}
    real = row["segments"] > 0
    assert real[: real.sum()].all()  # Padding is on the right.
    np.testing.assert_array_equal(real, row["mask"] > 0)
    for segment in range(1, row["segments"].max() + 1):
      at = row["segments"] == segment
      np.testing.assert_array_equal(row["positions"][at], np.arange(at.sum()))
      np.testing.assert_array_equal(row["tokens"][at][1:], row["targets"][at][:-1])
  with pytest.raises(IndexError):
    made[len(made)]


@settings(deadline=None, max_examples=200)
@given(
  sizes=st.lists(st.integers(1, 20), min_size=1, max_size=60),
  seed=st.integers(0, 5),
)
def test_best_fit_keeps_items_whole_and_opens_no_row_too_many(sizes, seed):
  sizes = np.array(sizes)
  order = np.random.default_rng(seed).permutation(len(sizes))
  packed = list(rows._best_fit(sizes, order, 20))
  assert sorted(item for row in packed for item, _, _ in row) == list(range(len(sizes)))
  for row in packed:
    assert all((start, stop) == (0, sizes[item]) for item, start, stop in row)
    assert sum(stop for _, _, stop in row) <= 20
  # Of two rows that are half empty, the one would have gone into the other.
  assert sum(sum(stop for _, _, stop in row) <= 10 for row in packed) <= 1


def test_offline_best_fit_pads_less_than_packing_as_it_goes(folder):
  source, made = folder / "a", rows.RowSource(folder / "a_rows")
  offline = batches.fill([{k: v[None] for k, v in row.items()} for row in made])
  online = batches.fill(batches.pack_documents(source, 64, 8, epochs=1, strategy="best_fit"))
  assert offline.real == online.real
  assert offline.share > online.share
  assert offline.share > 0.99


def test_writing_is_reproducible_and_leaves_nothing_half_done(folder, tmp_path):
  source = packing.TokenSource(folder / "a")
  for i, seed in enumerate((0, 0, 1)):
    rows.write_rows(tmp_path / str(i), source, 64, seed=seed)
  files = [(tmp_path / str(i)).read_bytes() for i in range(3)]
  assert files[0] == files[1] != files[2]
  with pytest.raises(UserError, match="best_fit, concat"):
    rows.write_rows(tmp_path / "x", source, 64, "first_fit")
  packing.write_tokens(tmp_path / "nothing", [[1], []])
  with pytest.raises(UserError, match="nothing to pack"):
    rows.write_rows(tmp_path / "x", packing.TokenSource(tmp_path / "nothing"), 64)
  assert not list(tmp_path.glob("x*"))


def test_parts_read_as_one_and_must_be_alike(folder, tmp_path):
  parts = [tmp_path / records.shard_name("train", i, 2) for i in range(2)]
  for part, name in zip(parts, "ab", strict=True):
    rows.write_rows(part, packing.TokenSource(folder / name), 64)
  whole = rows.RowSource(tmp_path)
  single = [rows.RowSource(part) for part in parts]
  assert len(whole) == sum(map(len, single))
  assert_same(whole[len(single[0]) + 3], single[1][3])
  rows.write_rows(parts[1], packing.TokenSource(folder / "b"), 32)
  with pytest.raises(UserError, match="several lengths"):
    rows.RowSource(tmp_path)
  with pytest.raises(UserError, match="no complete token file"):
    rows.RowSource(folder / "a")  # Documents, not rows.


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 3000), key=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_shuffles_are_permutations(size, key):
  places = rows.shuffled(np.arange(size), size, *key)
  np.testing.assert_array_equal(np.sort(places), np.arange(size))
  np.testing.assert_array_equal(rows.shuffled(np.arange(size)[3:9], size, *key), places[3:9])


def test_shuffles_differ_by_key_and_leave_no_order():
  size = 5000
  one, other = (
    rows.shuffled(np.arange(size), size, 1, 2),
    rows.shuffled(np.arange(size), size, 1, 3),
  )
  assert (one == other).mean() < 0.01
  assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 0.05
  assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.05


def test_epochs_read_every_row_once_in_another_order(folder):
  source = rows.RowSource(folder / "a_rows")
  stream = rows.RowStream(source, 1, seed=4)
  read = [int(stream.rows_at(step)[1][0]) for step in range(3 * len(source))]
  epochs = np.reshape(read, (3, len(source)))
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(len(source)))
  assert len({tuple(epoch) for epoch in epochs}) == 3


CURRICULUM = [(0, {"a": 1.0}), (5, {"a": 1.0, "b": 3.0}), (12, {"b": 1.0})]


def make(folder, processes=1, process=0, phases=CURRICULUM, seed=3, batch=12):
  sources = {name: rows.RowSource(folder / f"{name}_rows") for name in "ab"}
  schedule = mixture.Schedule([*phases[:-1], (12, {"a": 0.0, "b": 1.0})], batch, seed)
  return rows.RowStream(sources, batch, seed, schedule, process, processes)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_the_same_global_batch(folder, processes):
  whole = make(folder)
  parts = [make(folder, processes, i) for i in range(processes)]
  for step in [*range(8), 11, 12, 40]:
    shares = [part.at(step) for part in parts]
    assert {len(share["tokens"]) for share in shares} == {12 // processes}
    assert_same({n: np.concatenate([s[n] for s in shares]) for n in shares[0]}, whole.at(step))


@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_stream_resumes_on_another_number_of_processes(folder, before, after):
  whole = [make(folder).at(step) for step in range(20)]
  first = [make(folder, before, i) for i in range(before)]
  for _ in range(7):
    for stream in first:
      next(stream)
  states = [json.loads(json.dumps(stream.get_state())) for stream in first]
  assert all(state == states[0] for state in states)
  second = [make(folder, after, i) for i in range(after)]
  for stream in second:
    stream.set_state(states[-1])
  for step in range(7, 20):
    shares = [next(stream) for stream in second]
    assert_same({n: np.concatenate([s[n] for s in shares]) for n in shares[0]}, whole[step])


def test_mixed_rows_follow_the_schedule_and_read_each_source_in_turn(folder):
  stream = make(folder)
  read = [stream.rows_at(step) for step in range(30)]
  assert all((kinds == 0).all() for kinds, _ in read[:5])
  assert all((kinds == 1).all() for kinds, _ in read[12:])
  np.testing.assert_allclose(np.mean([kinds == 0 for kinds, _ in read[5:12]]), 0.25, atol=0.02)
  for k, name in enumerate("ab"):
    size = len(rows.RowSource(folder / f"{name}_rows"))
    places = np.concatenate([r[kinds == k] for kinds, r in read])[:size]
    assert len(np.unique(places)) == len(places)
  batch = stream.at(20)
  assert (batch["targets"][batch["mask"] > 0] >= 200_000).all()


def test_numbered_batches_name_the_row_and_the_source_of_each_row(folder):
  sources = {name: rows.RowSource(folder / f"{name}_rows") for name in "ab"}
  stream = rows.RowStream(sources, 12, 3, numbered=True)
  for _ in range(4):
    batch = next(stream)
    names = zip(batch["sources"], batch["documents"], batch["tokens"], strict=True)
    for source, number, tokens in names:
      np.testing.assert_array_equal(tokens, sources[source][int(number) - 1]["tokens"])


def test_states_of_other_streams_and_bad_shares_are_named(folder):
  state = make(folder).get_state()
  with pytest.raises(UserError, match="'seed': 3"):
    make(folder, seed=4).set_state(state)
  with pytest.raises(UserError, match="cannot share a batch of 12 rows"):
    make(folder, 5)
  with pytest.raises(UserError, match="cannot share"):
    make(folder, 2, 2)
  source = rows.RowSource(folder / "a_rows")
  with pytest.raises(UserError, match="schedule is of sources"):
    rows.RowStream(source, 12, schedule=mixture.Schedule(CURRICULUM, 12))
  with pytest.raises(UserError, match="6 rows a step"):
    rows.RowStream({"a": source}, 12, schedule=mixture.Schedule([(0, {"a": 1})], 6))
