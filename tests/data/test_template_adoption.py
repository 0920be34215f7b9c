"""Which chat template an imported tokenizer gets, what it keeps of it, and what is refused."""

import json

import pytest
import sentencepiece

from llm_jax.data import chat, templates
from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import files as tokenizer_files
from llm_jax.errors import UserError
from tests.data.test_tokenizer_files import TEXTS, byte_level, llama

tokenizers = pytest.importorskip("tokenizers", reason="needs: pip install tokenizers")

OWN = {name: t.controls() for name, t in templates.TEMPLATES.items() if t.controls()}
TALK = [{"role": role, "content": "banana"} for role in templates.ROLES]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
@pytest.mark.parametrize("name", [*OWN, "llm_jax"])
def test_the_vocabulary_tells_the_template(tmp_path, kind, name):
  if kind == "bytes":
    made = byte_level()
    made.add_tokens(OWN.get(name, []))  # Not marked as special.
    made.save(str(tmp_path / "tokenizer.json"))
    source, size = tmp_path / "tokenizer.json", made.get_vocab_size()
  else:
    source = llama(tmp_path, user_defined_symbols=OWN.get(name, []))
    size = sentencepiece.SentencePieceProcessor(model_file=str(source)).get_piece_size()
  tokenizer = tokenizer_files.adopt(source, tmp_path / "out")
  assert tokenizer.template == name
  assert set(OWN.get(name, [])) <= set(tokenizer.control_names)
  again = Tokenizer.load(tmp_path / "out")
  assert (again.template, again.end_id) == (name, tokenizer.end_id)
  ends = {"llm_jax": "<|end|>", "mistral-v3": tokenizer.token(tokenizer.eos_id)}
  assert tokenizer.token(tokenizer.end_id) == ends.get(name, OWN.get(name, [""])[-1])
  turns = [tokenizer.system_id, tokenizer.user_id, tokenizer.assistant_id]
  assert tokenizer.vocab_size == size + (4 if name == "llm_jax" else 0)  # No row of its own.
  assert (turns == [-1, -1, -1]) == (name != "llm_jax")
  told = tokenizer_files.adopt(source, tmp_path / "told", template="vicuna")
  assert (told.template, told.end_id) == ("vicuna", told.eos_id)
  meta = json.loads((tmp_path / "told" / "tokenizer.json").read_text())
  assert (meta.pop("template"), meta["added"]) == ("vicuna", [])


def test_a_file_without_a_template_is_ours_and_can_be_given_one(tmp_path):
  trained, folder = tokenizer_lib.train(TEXTS, tmp_path / "trained", 440), tmp_path
  path = folder / "trained" / "tokenizer.json"
  meta = json.loads(path.read_text())
  assert meta.pop("template") == "llm_jax"
  path.write_text(json.dumps(meta))
  assert Tokenizer.load(folder / "trained").template == "llm_jax"
  tokenizer_files.adopt(folder / "trained", folder / "alpaca", template="alpaca")
  tokenizer = Tokenizer.load(folder / "alpaca")
  assert (tokenizer.template, tokenizer.end_id) == ("alpaca", trained.eos_id)
  assert tokenizer.encode(TEXTS[1]) == trained.encode(TEXTS[1])
  ours = tokenizer_files.adopt(folder / "alpaca", tmp_path / "a", template="llm_jax")
  assert chat.render(ours, TALK) == chat.render(trained, TALK)
  assert tokenizer_files.adopt(folder / "alpaca", tmp_path / "b").template == "alpaca"
  with pytest.raises(UserError, match="needs a control token: this tokenizer has no <|im_start"):
    tokenizer_files.adopt(folder / "trained", tmp_path / "c", template="chatml")
  assert not (tmp_path / "c").exists()


def test_templates_that_cannot_be_are_one_line(tmp_path):
  byte_level().save(str(tmp_path / "tokenizer.json"))
  for options, message in [
    ({"template": "chat-ml"}, 'no chat template "chat-ml"; did you mean "chatml"'),
    ({"template": "chatml", "specials": {"end": "<s>"}}, 'has its own "end": do not name it'),
  ]:
    with pytest.raises(UserError, match=message) as error:
      tokenizer_files.adopt(tmp_path, tmp_path / "out", **options)
    assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="has no token .*, which the chat template .gemma. needs"):
    tokenizer_files.adopt(tmp_path, tmp_path / "out", template="gemma")
  plain = tokenizer_files.adopt(llama(tmp_path, user_defined_symbols=["[INST]", "[/INST]"]),
                                tmp_path / "plain", template="llama-2")  # fmt: skip
  for name, message in [("mistral-v3", r"\[INST\] is ordinary text"), ("llm_jax", "has no system")]:
    plain.template = name
    with pytest.raises(UserError, match=message):
      chat.render(plain, TALK)
