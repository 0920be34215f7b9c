"""The tokenizer: exact round trips, unforgeable markers, reproducible training, clear errors."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError

TEXTS = [
  "def add(a, b):\n  return a + b\n\nThe function add returns the sum of two numbers.\n" * 3,
  "Return a list of 1234 words.\n\n    >>> words(3)\n    ['a', 'b', 'c']\n",
  "Iterators stop with an exception; generators return to their callers.\n\tTabs, too.",
] * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return tokenizer_lib.train(TEXTS, tmp_path_factory.mktemp("tokenizer"), 340)


def controls(tokenizer):
  names = ("pad", "unk", "bos", "eos", "system", "user", "assistant", "end")
  return {getattr(tokenizer, f"{name}_id") for name in names}


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip_is_exact(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not controls(tokenizer) & set(ids)


@pytest.mark.parametrize(
  "text",
  [
    "",
    " ",
    "  two spaces first,  and last  ",
    "\n\n\n    indented\r\n\tcrlf\n",
    "\u2581 the library's own space \u2581\u2581",
    "\0 \ufeff \u00a0 ﬁ １２３ é e\u0301 日本 😀",
    "<|user|><|end|><s></s><pad><unk><0x41>",
  ],
)
def test_round_trip_of_awkward_texts(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not controls(tokenizer) & set(ids)


def test_marker_names_in_a_text_are_ordinary_tokens(tokenizer):
  for i in controls(tokenizer):
    text = f"a {tokenizer.token(i)} b"
    assert i not in tokenizer.encode(text)
    assert tokenizer.decode([i, *tokenizer.encode(text), i]) == text


def test_ids_are_distinct_and_padding_is_zero(tokenizer):
  assert len(controls(tokenizer)) == 8
  assert tokenizer.pad_id == 0
  assert tokenizer.vocab_size == 340


def test_digits_and_newlines_stand_alone(tokenizer):
  assert len(tokenizer.encode("1234")) == 4
  for i in range(tokenizer.vocab_size):
    piece = tokenizer.token(i)
    assert "\n" not in piece or piece.strip("\n") == ""


def test_batch_equals_one_by_one(tokenizer):
  texts = [*TEXTS, "", "a \u2581 b", "\ud800"]
  assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_lone_surrogates_and_foreign_ids_become_replacement_characters(tokenizer):
  assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
  ids = [*tokenizer.encode("ab"), tokenizer.vocab_size + 5, -1, *tokenizer.encode("cd")]
  assert tokenizer.decode(ids) == "ab\ufffd\ufffdcd"


def test_training_is_reproducible_in_any_order(tmp_path):
  runs = [TEXTS, TEXTS, TEXTS[::-1]]
  for i, texts in enumerate(runs):
    tokenizer_lib.train(texts, tmp_path / str(i), 340)
  models = [(tmp_path / str(i) / "tokenizer.model").read_bytes() for i in range(3)]
  metas = [json.loads((tmp_path / str(i) / "tokenizer.json").read_text()) for i in range(3)]
  assert models[0] == models[1] == models[2]
  assert metas[0] == metas[1] == metas[2]


def test_sample_keeps_to_its_budget_and_follows_the_seed(tmp_path):
  texts = [f"document {i} speaks of {i * 7} things\n" * 20 for i in range(50)]
  models = []
  for seed in (0, 1):
    tokenizer_lib.train(texts, tmp_path / str(seed), 320, seed=seed, max_bytes=8_000)
    meta = json.loads((tmp_path / str(seed) / "tokenizer.json").read_text())
    models.append((tmp_path / str(seed) / "tokenizer.model").read_bytes())
    assert 8_000 <= meta["trained_on_bytes"] < 8_000 + len(texts[-1])
  assert models[0] != models[1]


def test_loaded_tokenizer_is_the_trained_one(tokenizer, tmp_path):
  trained = tokenizer_lib.train(TEXTS, tmp_path, 340)
  loaded = Tokenizer.load(tmp_path)
  assert [loaded.encode(t) for t in TEXTS] == [trained.encode(t) for t in TEXTS]
  ids = json.loads((tmp_path / "tokenizer.json").read_text())["ids"]
  assert ids["end"] == loaded.end_id
  assert ids["pad"] == 0


def test_training_text_is_compressed(tokenizer):
  assert tokenizer_lib.bytes_per_token(tokenizer, TEXTS) > 1.8
  assert tokenizer_lib.bytes_per_token(tokenizer, ["\0"]) == 1.0
  assert tokenizer_lib.bytes_per_token(tokenizer, []) == 0.0


@pytest.mark.parametrize("damage", ["missing", "no_meta", "bad_meta", "bad_model", "swapped"])
def test_damage_is_named(tmp_path, damage):
  if damage != "missing":
    tokenizer_lib.train(TEXTS, tmp_path, 340)
  model, meta = tmp_path / "tokenizer.model", tmp_path / "tokenizer.json"
  if damage == "no_meta":
    meta.unlink()
  elif damage == "bad_meta":
    meta.write_text("{")
  elif damage == "bad_model":
    model.write_bytes(model.read_bytes()[:1000])
  elif damage == "swapped":
    tokenizer_lib.train(TEXTS, tmp_path / "other", 320)
    model.write_bytes((tmp_path / "other" / "tokenizer.model").read_bytes())
  with pytest.raises(UserError, match="experiments.prepare") as error:
    Tokenizer.load(tmp_path)
  assert "\n" not in str(error.value)


def test_impossible_sizes_are_named(tmp_path):
  with pytest.raises(UserError, match="at least 266"):
    tokenizer_lib.train(TEXTS, tmp_path, 100)
  with pytest.raises(UserError, match="at most [0-9]+"):
    tokenizer_lib.train(TEXTS, tmp_path, 30_000)
  with pytest.raises(UserError, match="add documents"):
    tokenizer_lib.train([], tmp_path, 300)
  with pytest.raises(UserError, match="at least 3[0-9]+"):
    tokenizer_lib.train(TEXTS, tmp_path, 300)
