"""Span corruption: nothing is lost, sizes are as promised, the stream resumes; pairs to batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import batches, packing, seq2seq, tokenizer
from llm_jax.errors import UserError

MARKS = list(range(1000, 1100))


def restored(inputs, targets):
  """The text that was corrupted: each sentinel of the inputs stands for what follows it."""
  spans, name = {}, None
  for token in targets:
    if token >= 1000:
      name = token
      spans[name] = []
    else:
      spans[name].append(token)
  parts = [spans[t] if t >= 1000 else [t] for t in inputs]
  return list(itertools.chain(*parts)), spans


@given(st.integers(2, 600), st.floats(0.01, 0.9), st.floats(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_inputs_and_targets_are_the_text(size, density, mean_span, seed):
  tokens = np.random.default_rng(seed).integers(5, 1000, size)
  marks = list(range(1000, 2000))
  how = np.random.default_rng(seed), marks, density, mean_span
  inputs, targets = seq2seq.corrupt(tokens, *how)
  text, spans = restored(inputs, targets)
  assert text == tokens.tolist()
  assert list(spans) == marks[: len(spans)] and all(spans.values())
  taken = sum(map(len, spans.values()))
  assert taken == min(max(round(size * density), 1), size - 1)
  assert inputs[0] < 1000  # The text begins with what is left.


def test_each_token_is_taken_as_often_as_density_says():
  random = np.random.default_rng(0)
  tokens = np.arange(5, 205)
  taken = np.zeros(205)
  for _ in range(2000):
    _, targets = seq2seq.corrupt(tokens, random, MARKS)
    taken[targets[targets < 1000]] += 1
  # The first token is never taken and the last always, as in T5; in between it is even.
  inner = taken[25:185] / 2000
  assert taken[5] == 0 and taken[204] == 2000 and taken.sum() == 30 * 2000
  np.testing.assert_allclose(inner, inner.mean(), atol=0.04)


def test_the_lengths_of_t5():
  assert (seq2seq.text_length(512), seq2seq.target_length(512)) == (568, 114)


@given(st.integers(8, 700), st.floats(0.05, 0.5), st.floats(1, 6))
@settings(max_examples=100, deadline=None)
def test_a_text_of_the_length_fills_the_inputs(length, density, mean_span):
  marks = list(range(1000, 2000))
  how = {"density": density, "mean_span": mean_span}
  size = seq2seq.text_length(length, **how)
  inputs, targets = seq2seq.corrupt(np.arange(size), np.random.default_rng(0), marks, **how)
  assert length - 1 <= len(inputs) + 1 <= length
  assert len(targets) + 1 == seq2seq.target_length(length, **how)


def test_too_many_spans_are_refused():
  with pytest.raises(UserError, match="102 spans .* there are 100: lower config.length"):
    seq2seq.corrupt(np.arange(2040), np.random.default_rng(0), MARKS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp("c")
  words = ("rows", "files", "names", "items", "words", "links")
  texts = [f"Return all the {a} of {b} and {c}." for a in words for b in words for c in words]
  coder = tokenizer.train(texts, path / "tokenizer", 300)
  rows = list(coder.documents(texts))
  packing.write_tokens(path / "tokens.array_record", rows, coder.vocab_size)
  return path / "tokens.array_record", coder


def stream(corpus, seed=0, length=40):
  path, coder = corpus
  rows = batches.pack_documents(path, seq2seq.text_length(length), 4, seed, strategy="concat")
  return seq2seq.Corrupted(rows, coder, length, seed)


def test_batches_are_full_and_hold_the_text(corpus):
  coder = corpus[1]
  first = seq2seq.sentinels(coder)[0]
  assert first == coder.vocab_size
  batch = next(stream(corpus))
  assert batch["inputs"].shape == (4, 40) and (batch["input_segments"] == 1).all()
  assert batch["mask"].all() and (batch["targets"][:, -1] == coder.eos_id).all()
  assert (batch["tokens"][:, 0] == coder.pad_id).all()
  np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
  for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
    inputs, targets = (np.where(x >= first, x + 1000 - first, x)[:-1] for x in (inputs, targets))
    assert coder.decode(restored(inputs, targets)[0]).count("Return") >= 2


def test_it_goes_on_where_it_stopped_and_each_epoch_has_other_spans(corpus):
  whole = list(itertools.islice(stream(corpus), 8))
  cut = stream(corpus)
  for _ in range(3):
    next(cut)
  state = cut.get_state()
  again = stream(corpus)
  again.set_state(state)
  for batch, wanted in zip(again, whole[3:], strict=False):
    for name, value in wanted.items():
      np.testing.assert_array_equal(batch[name], value)
  other = next(stream(corpus, seed=1))
  assert not np.array_equal(other["inputs"], whole[0]["inputs"])


def test_pairs_end_and_lose_their_last_words(corpus):
  coder = corpus[1]
  given, said = seq2seq.pair(coder, "Return all the rows", "of names and names", 6, 5)
  assert len(given) == 6 and len(said) == 5 and given[-1] == said[-1] == coder.eos_id
  batch = seq2seq.collate([(given, said), ((), ())], 8, 7, coder.pad_id)
  np.testing.assert_array_equal(batch["input_segments"].sum(1), [6, 0])
  np.testing.assert_array_equal(batch["mask"].sum(1), [5, 0])
  assert batch["tokens"][0, 0] == coder.pad_id
  with pytest.raises(ValueError, match="row 0 has 6 inputs, input_length is 5"):
    seq2seq.collate([(given, said)], 5, 7, coder.pad_id)
