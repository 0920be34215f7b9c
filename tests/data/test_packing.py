"""Token files and packing: every token is predicted once, nothing crosses a document."""

import collections

import numpy as np
import pytest

from llm_jax.data import batches, packing, records
from llm_jax.errors import UserError

BOS, EOS = 2, 3
STRATEGIES = ["first_fit", "best_fit", "concat"]


@pytest.fixture
def documents():
  rng = np.random.default_rng(1)
  sizes = [0, 1, 2, 15, 16, 17, 18, 33, 500, *rng.integers(2, 70, size=60)]
  # All pairs of neighbours are unique, so that a target tells its place.
  ids = np.cumsum([0, *sizes])
  return [np.arange(10 + a, 10 + b) for a, b in zip(ids, ids[1:], strict=False)]


@pytest.fixture
def path(documents, tmp_path):
  path = tmp_path / "tokens" / "train.array_record"
  packing.write_tokens(path, documents)
  return path


def transitions(batch):
  """(input, target) of every place that counts."""
  at = batch["mask"] > 0
  return zip(batch["tokens"][at].tolist(), batch["targets"][at].tolist(), strict=True)


@pytest.mark.parametrize("vocab_size", [4096, 65_536, 65_537, 200_000])
def test_token_file_round_trip(tmp_path, vocab_size):
  documents = [[0, vocab_size - 1, 7], [], [5]]
  counts = packing.write_tokens(tmp_path / "t", iter(documents), vocab_size)
  source = packing.TokenSource(tmp_path / "t")
  assert counts == {"documents": 3, "tokens": 4}
  assert [source[i].tolist() for i in range(len(source))] == documents
  assert source[0].dtype == np.int32
  assert source.lengths.tolist() == [3, 0, 1]
  with pytest.raises(IndexError):
    source[3]


def test_ids_beyond_the_vocabulary_are_refused_and_leave_no_file(tmp_path):
  for bad in (300, -1):
    with pytest.raises(ValueError, match="document 1 has ids outside"):
      packing.write_tokens(tmp_path / "t", [[1], [bad]], 300)
  assert list(tmp_path.iterdir()) == []


def test_damaged_token_files_are_named(path, tmp_path):
  with pytest.raises(UserError, match="no token file"):
    packing.TokenSource(tmp_path / "none")
  for name, content in (
    ("short", path.read_bytes()[:-70_000]),
    ("empty", b""),
    ("text", b"hello\n" * 20_000),
  ):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="experiments.prepare"):
      packing.TokenSource(tmp_path / name)
  packing.write_tokens(tmp_path / "nothing", [])
  with pytest.raises(UserError, match="nothing to train on"):
    batches.pack_documents(tmp_path / "nothing", 8, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_token_but_the_first_is_a_target_once(path, documents, strategy, shuffle):
  expected = collections.Counter()
  for document in documents:
    expected.update(zip(document[:-1].tolist(), document[1:].tolist(), strict=True))
  got = collections.Counter()
  for batch in batches.pack_documents(path, 16, 4, 0, 1, shuffle, strategy):
    got.update(transitions(batch))
  assert got == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_segments_positions_and_padding(path, strategy):
  for batch in batches.pack_documents(path, 16, 4, epochs=1, strategy=strategy):
    assert {x.shape for x in batch.values()} == {(4, 16)}
    padding = batch["segments"] == 0
    np.testing.assert_array_equal(padding, batch["mask"] == 0)
    for name in ("tokens", "targets", "positions"):
      assert not batch[name][padding].any()
    for b in range(4):
      segments = batch["segments"][b]
      real = segments[segments > 0]
      np.testing.assert_array_equal(segments[: len(real)], real)  # Padding is on the right.
      np.testing.assert_array_equal(np.unique(real), np.arange(1, len(set(real)) + 1))
      for segment in np.unique(real):
        at = segments == segment
        np.testing.assert_array_equal(batch["positions"][b][at], np.arange(at.sum()))
        # Inside a segment the next input is the last target.
        np.testing.assert_array_equal(batch["tokens"][b][at][1:], batch["targets"][b][at][:-1])


def test_epochs_differ_in_order_but_not_in_content(path, documents):
  total = sum(max(len(d) - 1, 0) for d in documents)
  once = [list(transitions(b)) for b in batches.pack_documents(path, 16, 4, epochs=1)]
  twice = [list(transitions(b)) for b in batches.pack_documents(path, 16, 4, epochs=2)]
  assert sum(map(len, once)) == total
  counts = collections.Counter(t for batch in twice for t in batch)
  assert set(counts.values()) == {2}
  other = [list(transitions(b)) for b in batches.pack_documents(path, 16, 4, seed=1, epochs=1)]
  assert other != once
  assert sorted(sum(other, [])) == sorted(sum(once, []))


def test_padding_is_small_and_best_fit_is_no_worse(tmp_path):
  rng = np.random.default_rng(0)
  documents = [np.arange(size) for size in rng.integers(3, 120, size=2000)]
  packing.write_tokens(tmp_path / "t", documents)
  fill = {}
  for strategy in STRATEGIES:
    stream = list(batches.pack_documents(tmp_path / "t", 128, 16, epochs=1, strategy=strategy))
    fill[strategy] = np.mean([b["mask"] for b in stream[:-1]])
  assert fill["concat"] == 1.0
  assert fill["best_fit"] >= fill["first_fit"] - 1e-3
  assert fill["first_fit"] > 0.9


def test_unknown_strategy(path):
  with pytest.raises(ValueError, match="first_fit"):
    batches.pack_documents(path, 16, 4, strategy="worst_fit")


def test_items_too_long_for_a_row_are_refused():
  item = {"tokens": np.arange(9), "targets": np.arange(9)}
  with pytest.raises(ValueError, match="max"):
    next(packing.pack(packing.shuffled([item], 0, 1), 8, 1))


def unique_documents(count, seed):
  """Documents whose tokens are all different, so that a target tells its place in the corpus."""
  rng = np.random.default_rng(seed)
  sizes = np.minimum(rng.lognormal(5.0, 1.6, count).astype(int) + rng.integers(0, 2, count), 40_000)
  ends = np.cumsum(sizes)
  return [np.arange(b - n, b, dtype=np.int32) for n, b in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_token_but_the_first_is_a_target_once_at_scale(tmp_path, strategy):
  documents = unique_documents(2500, seed=3)
  total = sum(map(len, documents))
  assert total > 1_000_000
  packing.write_tokens(tmp_path / "t", documents, total)
  seen = np.zeros(total, np.int64)
  stream = batches.pack_documents(tmp_path / "t", 1024, 16, epochs=1, strategy=strategy)
  for batch in stream:
    at = batch["mask"] > 0
    targets = batch["targets"][at]
    np.add.at(seen, targets, 1)
    # The input is the token before it, which is of the same document.
    np.testing.assert_array_equal(batch["tokens"][at], targets - 1)
  expected = np.ones(total, np.int64)
  expected[[d[0] for d in documents if len(d)]] = 0
  np.testing.assert_array_equal(seen, expected)


def test_fill_counts_rows_segments_and_padding(path, documents):
  sizes = [max(len(d) - 1, 0) for d in documents]
  stream = list(batches.pack_documents(path, 16, 4, epochs=1))
  fill = batches.fill(stream)
  assert fill.positions == 64 * len(stream)
  assert fill.real == fill.counted == sum(sizes)
  assert fill.segments == sum(-(-n // 16) for n in sizes)
  assert fill.share == sum(sizes) / fill.positions
  rows = [([2, 5, 6, 7], [0, 0, 1, 1]), ([2, 9], [0, 1])]
  assert batches.fill([batches.lm_batch(rows, 5)]) == (10, 4, 3, 2, 2, 0.4)
  assert batches.fill([]) == (0, 0, 0, 0, 0, 0.0)


def shards(folder, documents, count, name=lambda i, n: records.shard_name("train", i, n)):
  for i in range(count):
    packing.write_tokens(folder / name(i, count), documents[i * 12 : (i + 1) * 12], 200_000)


@pytest.mark.parametrize("name", ["named", "numbered"])
def test_shards_read_as_one_file(tmp_path, documents, name):
  whole, parts = tmp_path / "whole.array_record", tmp_path / "parts"
  shards_of = {"numbered": lambda i, n: f"{i:05d}.array_record"}
  packing.write_tokens(whole, documents[:72], 200_000)
  shards(parts, documents, 6, **({"name": shards_of[name]} if name in shards_of else {}))
  one = packing.TokenSource(whole)
  ways = [parts, sorted(parts.iterdir()), str(parts)]
  ways += [parts / "train", parts / "train.array_record"] if name == "named" else []
  for way in ways:
    many = packing.TokenSource(way)
    np.testing.assert_array_equal(many.lengths, one.lengths)
    for i in range(len(one)):
      np.testing.assert_array_equal(many[i], one[i])
    np.testing.assert_array_equal(many.part(8, 3, 7), one[8][3:7])
  left, right = (list(batches.pack_documents(p, 16, 4, epochs=1)) for p in (whole, parts))
  for a, b in zip(left, right, strict=True):
    np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_shards_of_other_widths_and_without_documents(tmp_path):
  packing.write_tokens(tmp_path / "00000.array_record", [[1, 2]], 300)
  packing.write_tokens(tmp_path / "00001.array_record", [], 300)
  packing.write_tokens(tmp_path / "00002.array_record", [[70_000], []], 100_000)
  source = packing.TokenSource(tmp_path)
  assert [source[i].tolist() for i in range(3)] == [[1, 2], [70_000], []]
  assert source.dtype == np.dtype("<u4")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda f: (f / "train-00002-of-00004.array_record").unlink(), "lacks file 2 of 4"),
    (lambda f: (f / "train-00003-of-00004.array_record").unlink(), "lacks file 3 of 4"),
    (lambda f: packing.write_tokens(f / "train-00000-of-00002.array_record", []), "holds 5 files"),
    (
      lambda f: packing.write_tokens(f / "train-0-of-4.array_record", []),
      "holds 5 files of a set of 4",
    ),
    (lambda f: (f / "train-00001-of-00004.array_record.partial").touch(), "still being written"),
    (lambda f: packing.write_tokens(f / "other.array_record", []), "several splits .*other, train"),
  ],
)
def test_folders_that_are_not_one_whole_split_are_named(tmp_path, documents, damage, message):
  shards(tmp_path, documents, 4)
  packing.TokenSource(tmp_path)
  damage(tmp_path)
  with pytest.raises(UserError, match=message) as error:
    packing.TokenSource(tmp_path)
  assert "\n" not in str(error.value)


def test_numbered_files_must_be_there_from_0_on(tmp_path):
  for i in (0, 2):
    packing.write_tokens(tmp_path / f"{i:05d}.array_record", [[1]])
  with pytest.raises(UserError, match="lacks file 1 of 2"):
    packing.TokenSource(tmp_path)


def test_splits_of_one_folder_are_told_apart(tmp_path, documents):
  shards(tmp_path, documents, 4)
  packing.write_tokens(tmp_path / "validation.array_record", [[1, 2, 3]])
  assert len(packing.TokenSource(tmp_path / "train")) == 48
  packing.write_tokens(tmp_path / "crawl-2024.array_record", [[1], [2]])
  assert len(packing.TokenSource(tmp_path / "validation")) == 1
  assert len(packing.TokenSource(tmp_path / "crawl-2024")) == 2
  with pytest.raises(UserError, match="no token file"):
    packing.TokenSource(tmp_path / "tra")
  with pytest.raises(UserError, match="empty list"):
    packing.TokenSource([])


@pytest.mark.parametrize("length", [1, 7, 16, 1000])
def test_chunks_tell_their_sizes_without_being_read(path, documents, length):
  chunks = packing.Chunks(packing.TokenSource(path), length)
  sizes = [len(chunks[i]["tokens"]) for i in range(len(chunks))]
  assert chunks.sizes().tolist() == sizes
  assert sum(sizes) == chunks.predictions == sum(max(len(d) - 1, 0) for d in documents)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numbered_batches_name_the_document_of_every_token(path, documents, strategy):
  where = {int(token): n for n, ids in enumerate(documents, 1) for token in ids}
  order = {"seed": 3, "epochs": 1, "strategy": strategy}
  plain = batches.pack_documents(path, 16, 4, **order)
  for batch, same in zip(
    batches.pack_documents(path, 16, 4, numbered=True, **order), plain, strict=True
  ):
    numbers = batch.pop("documents")
    at = batch["segments"] > 0
    assert numbers[at].tolist() == [where[int(token)] for token in batch["tokens"][at]]
    assert not numbers[~at].any()
    for name, x in same.items():
      np.testing.assert_array_equal(batch[name], x)


def test_numbered_examples_name_themselves():
  items = [f"item {n}" for n in range(1, 8)]

  def collate(part):
    return {"items": np.array(part)}

  stream = batches.examples(items, collate, 3, seed=5, numbered=True)
  plain = batches.examples(items, collate, 3, seed=5)
  for _ in range(6):
    batch = next(stream)
    assert batch["items"].tolist() == [f"item {n}" for n in batch["documents"]]
    assert batch["items"].tolist() == next(plain)["items"].tolist()
