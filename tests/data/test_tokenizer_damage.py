"""Tokenizer files of others that are damaged, or of another form: one line, and nothing written."""

import json

import pytest

from llm_jax.data.tokenizers import files as tokenizer_files
from llm_jax.data.tokenizers import huggingface as tokenizer_huggingface
from llm_jax.errors import UserError
from tests.data.test_tokenizer_files import byte_level, needs_library


@needs_library
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda data: data["model"].update(vocab=5), "is no tokenizer.json"),
    (lambda data: data["model"]["vocab"].update(a="1"), "the token 'a' has the id '1'"),
    (lambda data: data["model"]["vocab"].update(a=10**12), "the token 'a' has the id 10"),
    (lambda data: data["model"]["merges"].append(5), "is damaged"),
    (lambda data: data["added_tokens"][0].pop("special"), "is damaged"),
    (lambda data: data.update(normalizer=[]), "is damaged|does not read"),
    (lambda data: data.update(pre_tokenizer={"type": "Sequence"}), "is damaged|does not read"),
  ],
)
def test_a_tokenizer_json_of_another_form_is_one_line(tmp_path, change, message):
  data = json.loads(byte_level().to_str())
  change(data)
  (tmp_path / "tokenizer.json").write_text(json.dumps(data))
  with pytest.raises(UserError, match=message):
    tokenizer_files.adopt(tmp_path, tmp_path / "out", {"eos": "<|endoftext|>"})
  assert not (tmp_path / "out").exists()


@needs_library
def test_a_panic_of_the_library_is_one_line(monkeypatch):
  class Panic(BaseException):
    """As pyo3 has it."""

  def panics(text):
    raise Panic("range end index out of range\nfor slice")

  library = tokenizer_huggingface.library()
  monkeypatch.setattr(library.Tokenizer, "from_str", panics, raising=False)
  monkeypatch.setattr(tokenizer_huggingface, "library", lambda: library)
  with pytest.raises(UserError, match="does not read this tokenizer: range end index"):
    tokenizer_huggingface._read({})


@pytest.mark.parametrize("text", ["5", "null", "[" * 5000, '"sha256"'])
def test_json_that_is_no_tokenizer_at_all_is_one_line(tmp_path, text):
  (tmp_path / "tokenizer.json").write_text(text)
  with pytest.raises(UserError, match="tokenizer.json"):
    tokenizer_files.adopt(tmp_path, tmp_path / "out")
