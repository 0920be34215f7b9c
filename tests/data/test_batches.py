"""Batches: shifts, masks, padding sides, and streams that resume exactly."""

import json

import numpy as np
import pytest

from llm_jax.data import batches

ROWS = [([2, 5, 6, 7], [0, 0, 1, 1]), ([2, 9], [0, 1]), ([2, 3, 4, 5, 6], [0, 1, 1, 1, 1])]


def take(stream, count):
  return [next(stream) for _ in range(count)]


def assert_same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_lm_batch_in_closed_form():
  batch = batches.lm_batch(ROWS, 5, pad_id=1)
  np.testing.assert_array_equal(batch["tokens"][0], [2, 5, 6, 1, 1])
  np.testing.assert_array_equal(batch["targets"][0], [5, 6, 7, 1, 1])
  np.testing.assert_array_equal(batch["mask"][0], [0, 1, 1, 0, 0])
  np.testing.assert_array_equal(batch["positions"][0], [0, 1, 2, 0, 0])
  np.testing.assert_array_equal(batch["segments"][0], [1, 1, 1, 0, 0])
  dtypes = {name: values.dtype for name, values in batch.items()}
  assert dtypes.pop("mask") == np.float32
  assert set(dtypes.values()) == {np.dtype(np.int32)}
  assert {values.shape for values in batch.values()} == {(3, 5)}


def test_a_full_row_fits_exactly():
  batch = batches.lm_batch(ROWS[2:], 4)
  np.testing.assert_array_equal(batch["targets"], [[3, 4, 5, 6]])
  with pytest.raises(ValueError, match="row 0 has 5 tokens.*length=3"):
    batches.lm_batch(ROWS[2:], 3)
  with pytest.raises(ValueError, match="row 1.*must match"):
    batches.lm_batch([ROWS[0], ([1, 2], [1])], 5)


def test_pair_batch_is_two_lm_batches():
  pairs = [{"chosen": ROWS[0], "rejected": ROWS[1]}, {"chosen": ROWS[1], "rejected": ROWS[2]}]
  batch = batches.pair_batch(pairs, 6)
  assert batch.keys() == {"chosen", "rejected"}
  assert_same([batch["chosen"]], [batches.lm_batch(ROWS[:2], 6)])
  assert_same([batch["rejected"]], [batches.lm_batch(ROWS[1:], 6)])


def test_prompt_batch_pads_on_the_left_and_keeps_start_and_end():
  tokens, mask = batches.prompt_batch([[2, 7], [2, 3, 4, 5, 6]], 3)
  np.testing.assert_array_equal(tokens, [[0, 2, 7], [2, 5, 6]])
  np.testing.assert_array_equal(mask, [[0, 1, 1], [1, 1, 1]])
  with pytest.raises(ValueError, match="a token each"):
    batches.prompt_batch([[2], []], 3)


def test_examples_see_every_item_once_per_epoch_in_new_orders():
  stream = batches.examples(list(range(10)), list, 5, seed=3)
  epochs = [sum(take(stream, 2), []) for _ in range(3)]
  assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
  assert len({tuple(epoch) for epoch in epochs}) == 3
  again = batches.examples(list(range(10)), list, 5, seed=3)
  assert sum(take(again, 2), []) == epochs[0]
  other = batches.examples(list(range(10)), list, 5, seed=4)
  assert sum(take(other, 2), []) != epochs[0]


def test_finite_examples_in_order_drop_nothing():
  stream = batches.examples(list(range(7)), list, 3, shuffle=False, epochs=1)
  assert list(stream) == [[0, 1, 2], [3, 4, 5], [6]]


def test_examples_resume():
  stream = batches.examples(list(range(11)), lambda x: {"x": np.array(x)}, 4, seed=1)
  take(stream, 5)
  state = json.loads(json.dumps(stream.get_state()))
  rest = take(stream, 6)
  resumed = batches.examples(list(range(11)), lambda x: {"x": np.array(x)}, 4, seed=1)
  resumed.set_state(state)
  assert_same(take(resumed, 6), rest)


def test_packed_examples_keep_their_masks():
  rows = [([2, *range(10 + i, 13 + i)], [0, 0, 1, 1]) for i in range(30)]
  seen = []
  for batch in batches.pack_examples(rows, 10, 2):
    assert {values.shape for values in batch.values()} == {(2, 10)}
    for b in range(2):
      for segment in range(1, batch["segments"][b].max() + 1):
        at = batch["segments"][b] == segment
        tokens = [*batch["tokens"][b][at], batch["targets"][b][at][-1]]
        seen.append(([int(t) for t in tokens], [0, *map(int, batch["mask"][b][at])]))
  assert sorted(seen) == sorted(rows)


def test_packed_examples_refuse_long_rows():
  with pytest.raises(ValueError, match="row 2 has 5 tokens"):
    batches.pack_examples(ROWS, 3, 2)


@pytest.mark.parametrize("strategy", ["first_fit", "best_fit", "concat"])
@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_packed_documents_resume(tmp_path, strategy, done):
  rng = np.random.default_rng(0)
  documents = [rng.integers(5, 90, size=rng.integers(2, 60)) for _ in range(40)]
  path = tmp_path / "train.array_record"
  batches.write_tokens(path, documents)
  make = lambda: batches.pack_documents(path, 16, 4, seed=5, strategy=strategy)  # noqa: E731
  stream = make()
  take(stream, done)
  state = json.loads(json.dumps(stream.get_state()))
  rest = take(stream, 30)  # Several epochs.
  resumed = make()
  resumed.set_state(state)
  assert_same(take(resumed, 30), rest)
