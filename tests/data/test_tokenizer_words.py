"""The table of words: id by id what SentencePiece gives, for every text and kind of model."""

import gzip
import io
import json
import os
import pathlib

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.tokenizers import train as tokenizer_train
from llm_jax.data.tokenizers import words as tokenizer_words
from llm_jax.data.tokenizers.proto import ModelProto
from llm_jax.data.tokenizers.words import WordEncoder, obstacle

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(os.environ.get("LLM_JAX_DATA", ROOT.parent / "shared" / "data"))
TEXTS = [
  "def add(a, b):\n    return a + b\n\n\nThe function add returns the sum of two numbers.\n" * 3,
  "Return a list  of 1234 words.\n\n    >>> words(3)\n    ['a', 'b', 'c']\n",
  "Iterators stop with an exception; generators return to their callers.\n\tTabs, too.",
  "Bébé, où es-tu? Straße, ﬁnance, 日本語 and 日本.",
] * 4
LLAMA = {"add_dummy_prefix": True, "user_defined_symbols": []}
T5 = LLAMA | {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
MODELS = {
  "ours": {},
  "no whole runs of spaces": {"allow_whitespace_only_pieces": False},
  "symbols of spaces": {"user_defined_symbols": ["\n", "\u2581\u2581", "\u2581" * 4]},
  "llama": LLAMA,
  "t5": T5,
  "no bytes": T5 | {"byte_fallback": False},
  "newlines in pieces": {"user_defined_symbols": [".\n", "\n", "\n\n"]},
}


def fit(**options):
  buffer = io.BytesIO()
  lines = [line for text in TEXTS for line in text.split("\n")]
  standard = {
    "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "split_digits": True,
    "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "add_dummy_prefix": False, "allow_whitespace_only_pieces": True, "minloglevel": 2,
    "user_defined_symbols": ["\n", "\n\n"], "hard_vocab_limit": False,
  }  # fmt: skip
  if options.get("byte_fallback") is False:
    standard["vocab_size"] = 150
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=buffer, **(standard | options)
  )
  return buffer.getvalue()


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
  model = fit(**MODELS[request.param])
  assert obstacle(model) == ""
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  return processor, WordEncoder(model)


# Letters that pieces hold, spaces of both spellings, newlines, and what bytes must spell.
ALPHABET = "aedrtn .,(1\n\n  \u2581\t\0\r\ufb01\u00a0\u0301é日😀"
texts = st.one_of(
  st.text(ALPHABET), st.text(st.characters(exclude_categories=["Cs"])),
  st.lists(st.sampled_from(["return", " return", "  ", "\n\n\n", ".\n", "▁", "12"])).map("".join),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(text=texts)
def test_ids_are_those_of_the_library(pair, text):
  processor, encoder = pair
  ids = encoder.encode(text)
  assert ids.dtype == np.int32
  assert ids.tolist() == processor.encode(text)


def test_a_small_table_and_small_blocks_change_nothing(pair, monkeypatch):
  processor, encoder = pair
  monkeypatch.setattr(tokenizer_words, "_CACHED", 7)
  monkeypatch.setattr(tokenizer_words, "_BLOCK", 11)
  for text in [*TEXTS, " " * 50, "a" * 50, "a" + " " * 30 + "b" * 30, "  a\n" * 30]:
    assert encoder.encode(text).tolist() == processor.encode(text)
  assert len(encoder._table) <= 7


@settings(deadline=None)
@given(text=texts)
def test_blocks_leave_nothing_out_and_cut_before_spaces(text):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizer_words, "_BLOCK", 3)
    blocks = list(tokenizer_words._blocks(text))
  assert "".join(text[a:b] for a, b in blocks) == text
  for start, _ in blocks[1:]:
    assert text[start] == " " != text[start - 1]


def test_long_words_are_not_kept():
  encoder = WordEncoder(fit())
  encoder.encode("x" * 100 + " short")
  assert set(encoder._table) == {" short"}


@pytest.mark.parametrize(
  ("options", "why"),
  [
    ({"model_type": "unigram", "vocab_size": 350}, "only BPE"),
    ({"split_by_whitespace": False, "vocab_size": 600}, "goes on after a space"),
    ({"treat_whitespace_as_suffix": True}, "goes on after a space"),
    ({"user_defined_symbols": ["a b"]}, "holds a space"),
  ],
)
def test_models_that_need_whole_texts_are_told_apart(options, why):
  assert why in obstacle(fit(**options))


def test_a_model_that_may_not_know_the_space_needs_whole_texts():
  proto = ModelProto.FromString(fit(**MODELS["no bytes"]))
  next(piece for piece in proto.pieces if piece.piece == "\u2581").piece = "\u2042"
  assert "unknown character" in obstacle(proto.SerializeToString())


def test_words_would_be_wrong_for_unigram():
  """The negative control: far down a text, rounding takes the other of two good ways."""
  proto = ModelProto.FromString(fit(model_type="unigram", vocab_size=350))
  scores = {"α": -3.0005, "β": -9.0, "γ": -3.0, "αβ": -3.0, "βγ": -3.0005}
  for piece, score in scores.items():
    proto.pieces.add(piece=piece, score=score)
  processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
  assert processor.encode("αβγ", out_type=str) == ["αβ", "γ"]
  assert processor.encode("γ" * 100_000 + "αβγ", out_type=str)[-2:] == ["α", "βγ"]


@pytest.mark.parametrize("name", ["books_classic/books", "peps/docs", "eips/docs"])
def test_ids_on_real_text(name):
  path = DATA / f"{name}.jsonl.gz"
  if not path.exists():
    pytest.skip(f"{path} is not here; set LLM_JAX_DATA to the folder that holds {name}.jsonl.gz")
  with gzip.open(path, "rt", encoding="utf-8") as f:
    real = [json.loads(line)["text"][:100_000] for _, line in zip(range(12), f, strict=False)]
  model = tokenizer_train.fit(real, 8192, tokenizer_train.Rules())
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  encoder = WordEncoder(model)
  for text in real:
    assert encoder.encode(text).tolist() == processor.encode(text)
