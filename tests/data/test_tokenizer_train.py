"""Training: rules that hold for every token, samples by source, and the report per source."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.documents import Document
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import train as tokenizer_train
from llm_jax.errors import UserError

TEXTS = [
  "def add(a, b):\n    return a + b\n\n\n\nThe function add returns the sum of 1234 and 12.\n" * 3,
  "Return a list of 1234 words.\n\n    >>> words(12)\n        ['a', 'b', 'c', 1234]\n",
  "Iterators stop with an exception; generators return to their callers 1234 times.\n",
] * 8
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
TEXTS += [
  " ".join("".join(word) for word in np.random.default_rng(i).choice(SYLLABLES, (60, 3)))
  for i in range(8)
]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  made = {}

  def get(size=420, **rules):
    key = (size, *sorted(rules.items()))
    if key not in made:
      made[key] = tokenizer_lib.train(TEXTS, tmp_path_factory.mktemp("t"), size, **rules)
    return made[key]

  return get


def pieces(tokenizer):
  return [tokenizer.token(i) for i in range(tokenizer.vocab_size) if i not in tokenizer.control]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rules", [{}, {"newlines": 0}, {"newlines": 4}, {"split_digits": False}])
@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("ae \n12\u2581é"))
def test_round_trip_is_exact_under_all_rules(make, kind, rules, text):
  tokenizer = make(kind=kind, **rules)
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not tokenizer.control & set(ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_digits_are_split_or_not(make, kind):
  assert not [
    p for p in pieces(make(kind=kind)) if sum(c.isdigit() for c in p) > 1 and p[:2] != "<0"
  ]
  assert "1234" in "".join(pieces(make(kind=kind, split_digits=False)))
  assert len(make(kind=kind, split_digits=False).encode("1234")) < 4


@pytest.mark.parametrize("newlines", [0, 1, 2, 4])
def test_runs_of_newlines_are_tokens_up_to_a_length(make, newlines):
  tokenizer = make(newlines=newlines)
  runs = [p for p in pieces(tokenizer) if "\n" in p]
  assert runs == ["\n" * n for n in range(1, newlines + 1)]
  assert len(tokenizer.encode("\n" * 8)) == 8 // max(newlines, 1)
  # The pattern that texts are cut by finds the same ends of lines.
  assert tokenizer.encode("a\n\nb") == [i for s in ("a", "\n\n", "b") for i in tokenizer.encode(s)]


def test_runs_of_spaces_are_tokens_if_asked_for(make):
  tokenizer = make(space_runs=6)
  for n in range(2, 7):
    first, *rest = tokenizer.encode(" " * n + "return")
    assert tokenizer.token(first) == "\u2581" * n
    assert rest == tokenizer.encode("return")
  assert len(tokenizer.encode(" " * 12)) == 2


def test_unigram_texts_are_encoded_whole_and_the_log_says_so(make, tmp_path, caplog):
  assert make().words
  caplog.set_level("INFO")
  assert not tokenizer_lib.train(TEXTS, tmp_path, 420, kind="unigram").words
  assert "only BPE" in caplog.text


def test_rules_are_written_down_and_the_default_says_bpe(tmp_path):
  tokenizer_lib.train(TEXTS, tmp_path, 420, kind="unigram", newlines=1)
  meta = json.loads((tmp_path / "tokenizer.json").read_text())
  assert meta["kind"] == "sentencepiece-unigram"
  assert meta["rules"] == {
    "kind": "unigram", "split_digits": True, "newlines": 1, "space_runs": 0
  }  # fmt: skip
  loaded = Tokenizer.load(tmp_path)
  assert loaded.decode(loaded.encode(TEXTS[0])) == TEXTS[0]


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ({"kind": "bpf"}, 'did you mean "bpe"'),
    ({"newlines": -1}, "not be negative"),
    ({"space_runs": 200, "size": 420}, "at least 465"),
    ({"kind": "unigram", "space_runs": 4}, 'needs kind="bpe"'),
    ({"kind": "unigram", "size": 300}, "at least 3[0-9]+: every character"),
    ({"kind": "unigram", "size": 9000}, "at most [0-9]+, or add documents"),
  ],
)
def test_impossible_rules_are_named(make, rules, message):
  with pytest.raises(UserError, match=message) as error:
    make(**rules)
  assert "\n" not in str(error.value)


def corpus():
  rng = np.random.default_rng(0)
  out = []
  for source, count in (("web", 400), ("code", 100), ("books", 20)):
    for i in range(count):
      words = " ".join(f"{source}{n}" for n in rng.integers(0, 50, 40))
      out.append(Document(f"{source}-{i}", words, source=source))
  return out


def test_a_sample_follows_the_weights_and_not_the_order():
  documents, weights = corpus(), {"web": 1, "code": 3, "books": 4}
  chosen = tokenizer_train.sample(documents, 0, 16_000, weights)
  for name, weight in weights.items():
    assert chosen[name].asked == 16_000 * weight / 8
    assert all(name in text for text in chosen[name].texts)
    assert chosen[name].bytes == sum(map(len, chosen[name].texts))
  for name in ("web", "code"):
    assert 0 <= chosen[name].bytes - chosen[name].asked < 300  # Whole documents.
  books = sum(len(d.text) for d in documents if d.source == "books")
  assert chosen["books"].bytes == books < chosen["books"].asked  # It gives all it has.
  assert tokenizer_train.sample(documents[::-1], 0, 16_000, weights) == chosen
  assert tokenizer_train.sample(documents, 1, 16_000, weights) != chosen


def test_the_sample_of_every_source_is_written_down(tmp_path):
  tokenizer_lib.train(corpus(), tmp_path, 300, max_bytes=8_000, weights={s: 1 for s in SOURCES})
  meta = json.loads((tmp_path / "tokenizer.json").read_text())
  assert set(meta["sources"]) == set(SOURCES)
  assert sum(s["bytes"] for s in meta["sources"].values()) == meta["trained_on_bytes"]
  assert meta["sources"]["web"]["asked_bytes"] == 2666


SOURCES = ("web", "code", "books")


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ({"web": 1, "code": 1}, 'source "books" of a document has no weight'),
    ({s: 1 for s in (*SOURCES, "wiki")}, 'source "wiki" has a weight, but no text'),
    ({"web": 1, "code": 0, "books": 1}, "must be above 0"),
    ({}, "must be above 0"),
  ],
)
def test_weights_and_sources_must_match(weights, message):
  with pytest.raises(UserError, match=message):
    tokenizer_train.sample(corpus(), 0, 1000, weights)


def test_report_counts_what_it_says(make):
  tokenizer = make()
  rows = tokenizer_lib.report(tokenizer, {"code": TEXTS[:2], "cjk": ["日本 語", "é"], "none": []})
  code, cjk, none = rows
  assert (code.texts, code.words) == (2, sum(len(t.split()) for t in TEXTS[:2]))
  assert code.tokens == sum(len(tokenizer.encode(t)) for t in TEXTS[:2])
  assert code.bytes == sum(len(t.encode()) for t in TEXTS[:2])
  np.testing.assert_allclose(code.bytes_per_token, code.bytes / code.tokens)
  np.testing.assert_allclose(code.tokens_per_word, code.tokens / code.words)
  assert code.spelt == 0.0
  assert (cjk.bytes, cjk.words) == (12, 3)
  np.testing.assert_allclose(cjk.spelt, 11 / 12)  # All but the space.
  assert (none.tokens, none.bytes_per_token, none.tokens_per_word) == (0, 0.0, 0.0)
  lines = tokenizer_lib.table(rows).splitlines()
  assert len(lines) == 4
  assert len(set(map(len, lines[1:]))) == 1


def test_documents_have_their_markers(make):
  tokenizer = make()
  rows = list(tokenizer.documents(iter(TEXTS[:3] + [""])))
  assert [row.dtype for row in rows] == [np.int32] * 4
  for row, text in zip(rows, [*TEXTS[:3], ""], strict=True):
    assert row.tolist() == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def test_a_template_of_text_goes_with_a_new_tokenizer(make, tmp_path):
  coder = make(template="vicuna")
  assert coder.template == "vicuna" and coder.end_id == coder.eos_id
  with pytest.raises(UserError, match="chatml.* needs a control token: this tokenizer has no"):
    tokenizer_lib.train(TEXTS, tmp_path / "t", 420, template="chatml")
  assert not (tmp_path / "t").exists()
