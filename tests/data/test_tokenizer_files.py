"""Import and export: the ids of the other library, control tokens that no text can forge."""

import io
import json
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import chat
from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import export as tokenizer_export
from llm_jax.data.tokenizers import files as tokenizer_files
from llm_jax.data.tokenizers.proto import ModelProto
from llm_jax.errors import UserError

try:
  import tokenizers
except ImportError:
  tokenizers = None

needs_library = pytest.mark.skipif(tokenizers is None, reason="needs: pip install tokenizers")
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
TEXTS = [
  "def add(a, b):\n    return a + b\n\n\nThe sum of 1234 and 12 is 1246.  Two spaces.\n" * 5,
  "The </s> of <|user|> texts, café, naïve: all of it, banana and ananas.\n\tTabs.\n" * 5,
] + [
  " ".join("".join(word) for word in np.random.default_rng(i).choice(SYLLABLES, (60, 3)))
  for i in range(8)
]
NAMES = "<pad> <unk> <s> </s> <|system|> <|user|> <|assistant|> <|end|> <0x41> <0x0A>"
TALK = [
  {"role": "user", "content": "  What is <|end|>\n\n12?"},
  {"role": "assistant", "content": "banana 日"},
]
texts = st.one_of(
  st.text("abnst 1.\n\t\u2581é<|>/日😀\0"),
  st.text(st.characters(exclude_categories=["Cs"])),
  st.lists(st.sampled_from([*NAMES.split(), " ", "  ", "\n\n\n", "banana", "1234"])).map("".join),
)


def llama(directory, **options):
  """Writes a model with a space in front, as Llama's, and returns its file."""
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([line for text in TEXTS for line in text.split("\n")]),
    model_writer=buffer, minloglevel=2,
    **{"model_type": "bpe", "vocab_size": 420, "byte_fallback": True,
       "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
       "allow_whitespace_only_pieces": True, "split_digits": True} | options,
  )  # fmt: skip
  path = directory / "llama.model"
  path.write_bytes(buffer.getvalue())
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def adopted(folder):
  """A SentencePiece model's own processor, and the same model adopted."""
  source = llama(folder)
  processor = sentencepiece.SentencePieceProcessor(model_file=str(source))
  return processor, tokenizer_files.adopt(source, folder / "adopted")


def byte_level():
  """A tokenizer of GPT-2's kind; texts may spell its special token."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"],
    show_progress=False,
  )  # fmt: skip
  made.train_from_iterator(TEXTS, trainer)
  return made


def scored(kind):
  """A tokenizer of SentencePiece's kind that has its special tokens among its pieces."""
  space = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
  special = ["<unk>", "<s>", "</s>"]
  if kind == "unigram":
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trainer = tokenizers.trainers.UnigramTrainer(
      vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
  else:
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", ignore_merges=True))
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=300, special_tokens=special, show_progress=False
    )
  made.pre_tokenizer, made.decoder = space, tokenizers.decoders.Metaspace(prepend_scheme="never")
  made.train_from_iterator([text.replace("</s>", "") for text in TEXTS], trainer)
  return made


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_an_adopted_model_gives_the_librarys_ids(adopted, text):
  processor, tokenizer = adopted
  assert tokenizer.encode(text) == processor.encode(text)
  assert not tokenizer.control & set(tokenizer.encode(text))
  assert tokenizer.decode(tokenizer.encode(text)) == processor.decode(processor.encode(text))


def test_adopted_models_get_the_markers_that_they_lack(adopted, folder):
  processor, tokenizer = adopted
  size = processor.get_piece_size()
  assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
  assert tokenizer.pad_id == tokenizer.unk_id  # Padding is never learned: no row of its own.
  assert [tokenizer.token(i) for i in range(size, tokenizer.vocab_size)] == NAMES.split()[4:8]
  meta = json.loads((folder / "adopted" / "tokenizer.json").read_text())
  assert meta["added"] == ["system", "user", "assistant", "end"]
  tokens, mask = chat.render(Tokenizer.load(folder / "adopted"), TALK)
  assert [t for t in tokens if t >= size] == [size + 1, size + 3, size + 2, size + 3]
  said = [t for t, m in zip(tokens, mask, strict=True) if m]
  assert tokenizer.decode(said) == TALK[1]["content"]
  assert sum(mask) == len(tokenizer.encode(TALK[1]["content"])) + 1


def test_symbols_that_become_markers_are_found_in_no_text(folder):
  source = llama(folder, user_defined_symbols=["[INST]", "[/INST]"])
  plain = sentencepiece.SentencePieceProcessor(model_file=str(source))
  user = plain.piece_to_id("[INST]")
  assert user in plain.encode("a [INST] b")
  tokenizer = tokenizer_files.adopt(source, folder / "inst", {"user": "[INST]"})
  assert tokenizer.user_id == user
  assert user not in tokenizer.encode("a [INST] b")
  assert tokenizer.decode(tokenizer.encode("a [INST] b")) == "a [INST] b"
  assert plain.piece_to_id("[/INST]") in tokenizer.encode("a [/INST] b")  # Not a marker here.


@needs_library
@pytest.mark.parametrize("kind", ["bytes", "unigram", "bpe"])
def test_tokenizer_json_gives_the_librarys_ids_and_no_special_ones(tmp_path, kind):
  made = byte_level() if kind == "bytes" else scored(kind)
  made.enable_truncation(4)  # Of the file's own doing; a text is never cut here.
  made.save(str(tmp_path / "tokenizer.json"))
  # Read back: scores of a unigram model are rounded in the file, and ties may break otherwise.
  made = type(made).from_file(str(tmp_path / "tokenizer.json"))
  made.no_truncation()
  tokenizer = tokenizer_files.adopt(tmp_path, tmp_path / "out")
  special = {"<|endoftext|>"} if kind == "bytes" else {"<s>", "</s>", "<unk>"}
  marker = "<|endoftext|>" if kind == "bytes" else "</s>"
  assert tokenizer.token(tokenizer.eos_id) == marker
  assert tokenizer.token(tokenizer.end_id) == "<|end|>"
  assert tokenizer.eos_id in made.encode(f"a {marker}").ids

  @settings(deadline=None, max_examples=150)
  @given(text=texts)
  def same(text):
    ids = tokenizer.encode(text)
    assert not tokenizer.control & set(ids)
    if not any(name in text for name in special):
      assert ids == made.encode(text).ids
    if kind == "bytes":
      assert tokenizer.decode(ids) == text

  same()
  for text in (f"{marker}", f"a {marker} b", f"{marker}{marker}", f"\ufffe{marker}\ufffe"):
    assert not tokenizer.control & set(tokenizer.encode(text))
  assert tokenizer.encode_batch(TEXTS, threads=2) == [tokenizer.encode(text) for text in TEXTS]
  rest = [t for t in chat.render(tokenizer, TALK)[0] if t not in tokenizer.control]
  if kind == "bytes":
    assert tokenizer.decode(rest) == "".join(m["content"] for m in TALK)


@needs_library
def test_byte_level_tokens_are_shown_as_text(tmp_path):
  byte_level().save(str(tmp_path / "tokenizer.json"))
  tokenizer = tokenizer_files.adopt(tmp_path, tmp_path / "out")
  assert [tokenizer.token(i) for i in tokenizer.encode(" é")][0] == "\u2581"
  assert [tokenizer.token(i) for i in tokenizer.encode("日")] == ["<0xE6>", "<0x97>", "<0xA5>"]
  assert [tokenizer.byte_ids[i] for i in tokenizer.encode("日")] == list("日".encode())


@needs_library
def test_config_of_the_folder_names_special_tokens(tmp_path):
  made = byte_level()
  made.add_special_tokens(["<|start|>", "<|stop|>"])
  made.save(str(tmp_path / "tokenizer.json"))
  config = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|stop|>", "pad_token": None}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  tokenizer = tokenizer_files.adopt(tmp_path, tmp_path / "out")
  assert tokenizer.token(tokenizer.bos_id) == "<|start|>"
  assert tokenizer.eos_id == tokenizer.pad_id == made.token_to_id("<|stop|>")
  given_ = tokenizer_files.adopt(tmp_path, tmp_path / "again", {"eos": "<|endoftext|>"})
  assert given_.token(given_.eos_id) == "<|endoftext|>"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f: f / "none", "no tokenizer"),
    (lambda f: f / "empty", "no tokenizer in"),
    (lambda f: (f / "x.model", (f / "x.model").write_bytes(b"nonsense" * 9))[0], "no Sentence"),
    (lambda f: (f / "x.json", (f / "x.json").write_text("{}"))[0], "no tokenizer.json"),
    (lambda f: (f / "w.json", (f / "w.json").write_text(WORDPIECE))[0], "WordPiece"),
  ],
)
def test_bad_sources_are_named(tmp_path, change, message):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=message) as error:
    tokenizer_files.adopt(change(tmp_path), tmp_path / "out")
  assert "\n" not in str(error.value)


WORDPIECE = '{"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": []}'


@pytest.mark.parametrize(
  ("specials", "message"),
  [
    ({"eos": "</S>"}, 'did you mean "</s>"'),
    ({"eso": "</s>"}, 'did you mean "eos"'),
    ({"user": "</s>", "assistant": "</s>"}, "must be different"),
  ],
)
def test_bad_special_tokens_are_named(tmp_path, specials, message):
  source = llama(tmp_path)
  with pytest.raises(UserError, match=message):
    tokenizer_files.adopt(source, tmp_path / "out", specials)
  with pytest.raises(UserError, match="would be overwritten"):
    tokenizer_files.adopt(source, tmp_path)


def test_a_missing_package_and_a_broken_model_are_named(tmp_path, monkeypatch):
  source = tmp_path / "tokenizer.json"
  model = {"type": "BPE", "vocab": {"</s>": 0, "a": 1}, "merges": ["a b"]}
  source.write_text(json.dumps({"model": model, "added_tokens": []}))
  if tokenizers is not None:
    with pytest.raises(UserError, match="does not read this tokenizer") as error:
      tokenizer_files.adopt(source, tmp_path / "out")
    assert "\n" not in str(error.value)
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(UserError, match="pip install tokenizers"):
    tokenizer_files.adopt(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_folder_of_hugging_face_is_not_taken_for_ours(tmp_path):
  (tmp_path / "tokenizer.json").write_text(WORDPIECE)
  with pytest.raises(UserError, match=r"tools\.tokenizer adopt"):
    Tokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def export(folder):
  """Exports a tokenizer, and returns it with what the other library makes of it."""
  done = {}

  def get(kind):
    if kind not in done:
      if kind == "llama":
        tokenizer = tokenizer_files.adopt(llama(folder), folder / kind)
      else:
        rules = {"space_runs": 4, "newlines": 3} if kind == "runs" else {}
        rules |= {"kind": "unigram"} if kind == "unigram" else {}
        tokenizer = tokenizer_lib.train(TEXTS, folder / kind, 440, **rules)
      out = folder / f"{kind}-out"
      tokenizer_export.export(tokenizer, out)
      other = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
      other.encode_special_tokens = True
      done[kind] = tokenizer, other
    return done[kind]

  return get


@needs_library
@pytest.mark.parametrize("kind", ["default", "runs", "llama"])
@settings(deadline=None, max_examples=300)
@given(text=texts)
def test_exported_bpe_encodes_identically(export, kind, text):
  tokenizer, other = export(kind)
  ids = other.encode(text, add_special_tokens=False).ids
  assert ids == tokenizer.encode(text)
  assert other.decode(ids) == tokenizer.decode(ids)


@needs_library
@settings(deadline=None, max_examples=300)
@given(text=texts)
def test_exported_unigram_differs_in_ties_only(export, text):
  tokenizer, other = export("unigram")
  ids, own = other.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  if ids != own:
    proto = ModelProto.FromString(tokenizer.model)
    scores = [piece.score for piece in proto.pieces]
    np.testing.assert_allclose(sum(scores[i] for i in ids), sum(scores[i] for i in own), rtol=1e-5)


@needs_library
def test_exported_texts_of_the_corpus_and_runs_of_spaces(export):
  for kind in ("default", "runs", "llama", "unigram"):
    tokenizer, other = export(kind)
    runs = [" " * n + tail for n in range(60) for tail in ("", "banana", "\n" * n)]
    for text in [*TEXTS, *(runs if kind != "unigram" else [])]:
      assert other.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


@needs_library
def test_pieces_of_one_score_with_a_gap_between_their_sizes(folder):
  """As Llama's runs of spaces, which have 14 and 16, and no 15."""
  source = llama(folder)
  proto = ModelProto.FromString(source.read_bytes())
  for piece in list(proto.pieces):
    if piece.type == piece.NORMAL and set(piece.piece) == {"\u2581"} and len(piece.piece) > 1:
      proto.pieces.remove(piece)
  for size in (2, 3, 4, 6):
    proto.pieces.add(piece="\u2581" * size, score=-1e9)
  source.write_bytes(proto.SerializeToString())
  tokenizer = tokenizer_files.adopt(source, folder / "gap")
  tokenizer_export.export(tokenizer, folder / "gap-out")
  other = tokenizers.Tokenizer.from_file(str(folder / "gap-out" / "tokenizer.json"))
  for n in range(40):
    for text in (" " * n, " " * n + "banana"):
      assert other.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


@needs_library
def test_exported_special_tokens_and_chat_template(export, folder):
  tokenizer, other = export("default")
  other = tokenizers.Tokenizer.from_file(str(folder / "default-out" / "tokenizer.json"))
  assert other.encode("<|user|>", add_special_tokens=False).ids == [tokenizer.user_id]
  assert other.encode("a").ids == [tokenizer.bos_id, *tokenizer.encode("a")]
  config = json.loads((folder / "default-out" / "tokenizer_config.json").read_text())
  assert (config["bos_token"], config["pad_token"]) == ("<s>", "<pad>")
  sandbox = pytest.importorskip("jinja2.sandbox", reason="needs: pip install jinja2")
  # Marks of what is learned, which are an extension of transformers.
  marked = (
    config["chat_template"].replace("{% generation %}", "").replace("{% endgeneration %}", "")
  )
  template = sandbox.ImmutableSandboxedEnvironment().from_string(marked)
  talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": " 12\n\n?"}]
  text = template.render(messages=talk, bos_token="<s>", add_generation_prompt=True)
  assert other.encode(text, add_special_tokens=False).ids == chat.prompt(tokenizer, talk)


@pytest.mark.parametrize(
  ("options", "why"),
  [
    ({"normalization_rule_name": "nmt_nfkc"}, "normalises"),
    ({"user_defined_symbols": ["<x>"]}, "user-defined symbols"),
    ({"byte_fallback": False, "vocab_size": 150}, "in bytes"),
    ({"model_type": "unigram", "vocab_size": 380}, "lacks characters"),
  ],
)
def test_what_cannot_be_exported_exactly_is_refused(tmp_path, options, why):
  tokenizer = tokenizer_files.adopt(llama(tmp_path, **options), tmp_path / "t")
  with pytest.raises(UserError, match=why):
    tokenizer_export.export(tokenizer, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(UserError, match="another folder"):
    tokenizer_export.export(tokenizer, tmp_path / "t")


@pytest.mark.parametrize("given", ["run", "run/tokenizer", "run/tokenizer/tokenizer.model"])
def test_a_tokenizer_of_ours_is_copied_as_it_is(tmp_path, given):
  texts = ["a tokenizer of ours\n  is copied to the bit", "as another corpus is to have it"]
  first = tokenizer_lib.train(texts, tmp_path / "run" / "tokenizer", 300)
  second = tokenizer_files.adopt(tmp_path / given, tmp_path / "copy")
  assert second.encode(texts[0]) == first.encode(texts[0])
  for file in (tmp_path / "run" / "tokenizer").iterdir():
    assert file.read_bytes() == (tmp_path / "copy" / file.name).read_bytes()
  with pytest.raises(UserError, match="cannot be named anew"):
    tokenizer_files.adopt(tmp_path / given, tmp_path / "other", {"eos": "</s>"})
  with pytest.raises(UserError, match="would be overwritten"):
    tokenizer_files.adopt(tmp_path / given, tmp_path / "run" / "tokenizer")
