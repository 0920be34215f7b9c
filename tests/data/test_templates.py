"""Chat templates: what is published, no marker that a text forges, masks, cuts, Hugging Face."""

import json
import random
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import chat, templates
from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import export as tokenizer_export
from llm_jax.data.tokenizers import files as tokenizer_files
from llm_jax.data.tokenizers.proto import ModelProto
from llm_jax.errors import UserError
from tests.data.test_tokenizer_files import TEXTS, byte_level, llama, scored

tokenizers = pytest.importorskip("tokenizers", reason="needs: pip install tokenizers")

OWN = {name: t.controls() for name, t in templates.TEMPLATES.items() if t.controls()}
FOREIGN = [name for names in OWN.values() for name in names]
FOREIGN += "<extra_id_0> <|endoftext|> <|begin_of_text|> <bos> <eos> <pad>".split()
OURS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
KINDS = ("trained", "sentencepiece", "bytes", "unigram", "metaspace")
PAIRS = [(k, n) for k in KINDS for n in templates.names() if k != "trained" or n not in OWN]
TALK = [
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "What is a list?"},
  {"role": "assistant", "content": "A list is banana."},
  {"role": "user", "content": "And a tuple of 12?"},
  {"role": "assistant", "content": "A tuple never changes."},
]
# What the families publish, without the line break that some have after the last turn.
PUBLISHED = {
  "llm_jax": "<s><|system|>Be short.<|end|><|user|>What is a list?<|end|><|assistant|>A list is "
  "banana.<|end|><|user|>And a tuple of 12?<|end|><|assistant|>A tuple never changes.<|end|>",
  "llama-2": "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nWhat is a list? [/INST] A list is banana. "
  "</s><s>[INST] And a tuple of 12? [/INST] A tuple never changes. </s>",
  "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
  "<|start_header_id|>user<|end_header_id|>\n\nWhat is a list?<|eot_id|>"
  "<|start_header_id|>assistant<|end_header_id|>\n\nA list is banana.<|eot_id|>"
  "<|start_header_id|>user<|end_header_id|>\n\nAnd a tuple of 12?<|eot_id|>"
  "<|start_header_id|>assistant<|end_header_id|>\n\nA tuple never changes.<|eot_id|>",
  "chatml": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is a list?<|im_end|>\n"
  "<|im_start|>assistant\nA list is banana.<|im_end|>\n<|im_start|>user\nAnd a tuple of 12?"
  "<|im_end|>\n<|im_start|>assistant\nA tuple never changes.<|im_end|>",
  "zephyr": "<s><|system|>\nBe short.</s>\n<|user|>\nWhat is a list?</s>\n<|assistant|>\nA list is "
  "banana.</s>\n<|user|>\nAnd a tuple of 12?</s>\n<|assistant|>\nA tuple never changes.</s>",
  "tulu": "<s><|system|>\nBe short.\n<|user|>\nWhat is a list?\n<|assistant|>\nA list is "
  "banana.</s>\n<|user|>\nAnd a tuple of 12?\n<|assistant|>\nA tuple never changes.</s>",
  "vicuna": "<s>Be short. USER: What is a list? ASSISTANT: A list is banana.</s>USER: And a tuple "
  "of 12? ASSISTANT: A tuple never changes.</s>",
  "alpaca": "<s>Be short.\n\n### Instruction:\nWhat is a list?\n\n### Response:A list is banana."
  "</s>### Instruction:\nAnd a tuple of 12?\n\n### Response:A tuple never changes.</s>",
  "mistral": "<s>[INST] Be short.\n\nWhat is a list? [/INST] A list is banana.</s>"
  "[INST] And a tuple of 12? [/INST] A tuple never changes.</s>",
  "mistral-v3": "<s>[INST] What is a list?[/INST] A list is banana.</s>"
  "[INST] Be short.\n\nAnd a tuple of 12?[/INST] A tuple never changes.</s>",
  "gemma": "<bos><start_of_turn>user\nBe short.\n\nWhat is a list?<end_of_turn>\n"
  "<start_of_turn>model\nA list is banana.<end_of_turn>\n<start_of_turn>user\n"
  "And a tuple of 12?<end_of_turn>\n<start_of_turn>model\nA tuple never changes.<end_of_turn>",
}
HEADERS = {
  "llm_jax": "<|assistant|>", "llama-2": "[/INST]", "zephyr": "\n<|assistant|>\n",
  "tulu": "\n<|assistant|>\n",
  "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n", "vicuna": " ASSISTANT:",
  "chatml": "\n<|im_start|>assistant\n", "alpaca": "\n\n### Response:", "mistral": " [/INST]",
  "mistral-v3": "[/INST]", "gemma": "\n<start_of_turn>model\n",
}  # fmt: skip
MARKERS = [*FOREIGN, *OURS, "<s>", "</s>", "<unk>", "<0x0A>", "[INST]", "[/INST]", "<<SYS>>"]
ATTACKS = [
  *MARKERS,
  *(f" {m} " for m in MARKERS),
  *(m.upper() for m in MARKERS),
  *(m.translate({ord("<"): "\uff1c", ord("|"): "\uff5c", ord("["): "\uff3b"}) for m in MARKERS),
  *(f"\ufffe{m}\ufffe" for m in MARKERS),
  *(f"\u200b{m}\u0301" for m in MARKERS),
  *(part for m in MARKERS for part in (m[: len(m) // 2], m[len(m) // 2 :])),
]  # fmt: skip


def with_tokens(made, template, path):
  """Writes a tokenizer.json with all families' tokens, those of the template as mere text."""
  data = json.loads(made.to_str())
  known = {t["content"] for t in data["added_tokens"]}
  size = made.get_vocab_size()
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  for token in dict.fromkeys(["<s>", "</s>", *FOREIGN]):
    text = token.endswith("INST]") and template in ("llama-2", "mistral")  # As they write it.
    if token not in known and made.token_to_id(token) is None and not text:
      special = token not in OWN.get(template, ())
      data["added_tokens"].append({"id": size, "content": token, **flags, "special": special})
      size += 1
  path.write_text(json.dumps(data))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("templates")


@pytest.fixture(scope="module")
def get(folder):
  """(kind, template) -> tokenizer of that kind; each is made once."""
  bases, done = {}, {}

  def base(kind, place):
    if kind == "trained":
      return tokenizer_lib.train(TEXTS, place, 440)
    if kind == "sentencepiece":
      place.mkdir()
      return llama(place, control_symbols=FOREIGN, vocab_size=460).read_bytes()
    made = {"bytes": byte_level, "unigram": lambda: scored("unigram")}.get(kind)
    made = made() if made else scored("bpe")
    schemes = {"unigram": "always", "metaspace": "first"}
    if kind in schemes:
      split = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=schemes[kind])
      made.pre_tokenizer = split
    return made

  def make(kind, name):
    if (kind, name) not in done:
      place = folder / f"{kind}-{name}"
      if kind not in bases:
        bases[kind] = base(kind, folder / kind)
      if kind == "trained":
        source = folder / kind
      elif kind == "sentencepiece":
        proto = ModelProto.FromString(bases[kind])
        for piece in proto.pieces:
          if piece.piece in OWN.get(name, ()):
            piece.type = piece.USER_DEFINED
          if piece.piece.endswith("INST]") and name in ("llama-2", "mistral"):
            piece.piece = f"<unused {piece.piece}>"  # They write it as text.
        source = folder / f"{name}.model"
        source.write_bytes(proto.SerializeToString())
      else:
        source = with_tokens(bases[kind], name, folder / f"{kind}-{name}.json")
      bos = {"llama-3": "<|begin_of_text|>", "gemma": "<bos>"}.get(name)
      specials = {"bos": bos} if bos else None
      tokenizer_files.adopt(source, place, specials, template=name)
      done[kind, name] = Tokenizer.load(place)
    return done[kind, name]

  return make


def controls(tokenizer, tokens):
  return [t for t in tokens if t in tokenizer.control]


def shown(tokenizer, tokens):
  """The tokens as a string, control tokens by their names."""
  out, run = "", []
  for token in [*tokens, None]:
    if token is None or token in tokenizer.control:
      out += tokenizer.decode(run) + (tokenizer.token(token) if token is not None else "")
      run = []
    else:
      run.append(token)
  return out


def learned(tokenizer, talk):
  tokens, mask = chat.render(tokenizer, talk)
  return shown(tokenizer, [t for t, m in zip(tokens, mask, strict=True) if m])


def said(name, text):
  """What the assistant learns to say."""
  template = templates.get(name)
  text = text.strip() if template.strip else text
  return template.lead + text + "".join(p for p in template.assistant.closes[:-1])


@pytest.mark.parametrize("name", templates.names())
def test_what_is_published(get, name):
  tokenizer = get("bytes", name)
  assert tokenizer.template == name
  tokens, _ = chat.render(tokenizer, TALK)
  assert shown(tokenizer, tokens) == PUBLISHED[name]
  assert tokens[-1] == tokenizer.end_id
  prompt = shown(tokenizer, chat.prompt(tokenizer, TALK[:4]))
  assert PUBLISHED[name].startswith(prompt) and prompt.endswith(HEADERS[name])


@pytest.mark.parametrize("name", ["vicuna", "alpaca"])
def test_default_system_texts_and_their_replacement(get, name):
  tokenizer, default = get("bytes", name), templates.get(name).default_system
  alone = shown(tokenizer, chat.render(tokenizer, TALK[1:])[0])
  assert alone == PUBLISHED[name].replace("Be short.", default)
  assert default.startswith(("A chat between a curious user", "Below is an instruction"))


def test_sentencepieces_spaces_are_those_of_the_families_own_programs(get, folder):
  """Meta's llama and mistral-common encode these texts one by one, a space put before each."""
  for name in ("llama-2", "mistral", "mistral-v3"):
    tokenizer = get("sentencepiece", name)
    model = (folder / f"sentencepiece-{name}" / "tokenizer.model").read_bytes()
    encode = sentencepiece.SentencePieceProcessor(model_proto=model).encode
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    begin, end = (tokenizer.control_names.get(f"[{slash}INST]", 0) for slash in ("", "/"))
    expected = {
      "llama-2": bos + encode("[INST] ab [/INST] banana ") + eos
      + bos + encode("[INST] c [/INST] d ") + eos,
      "mistral": bos + encode("[INST] ab [/INST]") + encode("banana") + eos
      + encode("[INST] c [/INST]") + encode("d") + eos,
      "mistral-v3": [*bos, begin, *encode("ab"), end, *encode("banana"), *eos]
      + [begin, *encode("c"), end, *encode("d"), *eos],
    }  # fmt: skip
    roles, texts = ("user", "assistant") * 2, ("ab", "banana", "c", "d")
    talk = [{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)]
    assert chat.render(tokenizer, talk)[0] == expected[name]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_no_text_forges_a_control_token(get, kind, name):
  tokenizer = get(kind, name)
  harmless = [{**m, "content": "banana"} for m in TALK]
  expected = controls(tokenizer, chat.render(tokenizer, harmless)[0])
  order = random.Random(0).sample(ATTACKS, len(ATTACKS))
  for start in range(0, len(order), 10):
    part = order[start : start + 10]
    texts = [a + b for a, b in zip(part, part[::-1], strict=True)][:5]
    talk = [{**m, "content": text} for m, text in zip(TALK, texts, strict=True)]
    tokens, mask = chat.render(tokenizer, talk)
    assert controls(tokenizer, tokens) == expected
    ends = [m for t, m in zip(tokens, mask, strict=True) if t in tokenizer.control and m]
    assert len(ends) == 2
    for limit in (len(tokens) - 3, len(tokens) * 2 // 3):
      cut = controls(tokenizer, chat.render(tokenizer, talk, limit)[0])
      assert len(cut) <= len(expected) and cut[-1] == tokenizer.end_id


def test_the_negative_control_other_encoders_take_texts_for_tokens(get, folder):
  for kind, name in (("bytes", "chatml"), ("unigram", "llama-3"), ("metaspace", "mistral-v3")):
    tokenizer = get(kind, name)
    made = tokenizers.Tokenizer.from_file(str(folder / f"{kind}-{name}.json"))
    for marker in (*OWN[name], "</s>", "<extra_id_0>"):
      assert set(made.encode(f"a {marker} b").ids) & tokenizer.control
      assert not set(tokenizer.encode(f"a {marker} b")) & tokenizer.control
  tokenizer = get("sentencepiece", "gemma")
  plain = sentencepiece.SentencePieceProcessor(model_file=str(folder / "gemma.model"))
  assert set(plain.encode("<end_of_turn>")) & tokenizer.control


TEXT = st.one_of(
  st.lists(st.sampled_from([*ATTACKS, " ", "\n", "banana", ""]), max_size=4).map("".join),
  st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


@settings(deadline=None, max_examples=150)
@given(pair=st.sampled_from(PAIRS), texts=st.lists(TEXT, min_size=5, max_size=5))
def test_masks_and_prompts_whatever_is_said(get, pair, texts):
  tokenizer = get(*pair)
  talk = [{**m, "content": text} for m, text in zip(TALK, texts, strict=True)]
  tokens, mask = chat.render(tokenizer, talk)
  same = chat.render(tokenizer, [{**m, "content": "banana"} for m in TALK])[0]
  assert controls(tokenizer, tokens) == controls(tokenizer, same)
  prompt = chat.prompt(tokenizer, talk[:4])
  assert tokens[: len(prompt)] == prompt
  assert (sum(mask[: len(prompt)]) > 0, min(mask[len(prompt) :])) == (True, 1)
  # The first answer is learned where the second prompt has it, and nowhere else.
  first = chat.prompt(tokenizer, talk[:2])
  if templates.get(pair[1]).folded != "last":
    end = tokens.index(tokenizer.end_id, len(first)) if tokenizer.end_id in tokens else 0
    assert mask[: end + 1] == [0] * len(first) + [1] * (end + 1 - len(first))
    assert sum(mask[end + 1 : len(prompt)]) == 0
  if pair[0] == "bytes":
    clean = [text.replace("\ufffe", "\ufffd") for text in texts]
    end = tokenizer.token(tokenizer.end_id)
    assert learned(tokenizer, talk) == "".join(said(pair[1], clean[i]) + end for i in (2, 4))


def pattern(tokenizer, name, talk):
  """A regular expression of all that a cut may leave of these messages, a group for each."""
  marked = [{**m, "content": f"@{i}@"} for i, m in enumerate(talk)]
  text = shown(tokenizer, chat.render(tokenizer, marked)[0])
  template = templates.get(name)
  if template.default_system and talk[0]["role"] != "system":
    text = text.replace(template.default_system + template.system.then[0], "")
  for i, message in enumerate(talk):
    if message["role"] == "assistant":
      text = text.replace(f"{template.lead}@{i}@", f"@{i}@")
  return re.compile(re.sub(r"@(\d)@", r"(?P<m\1>.*)", re.escape(text)), re.S)


@pytest.mark.parametrize("name", templates.names())
def test_cuts_take_text_and_never_markers(get, name):
  tokenizer, template = get("bytes", name), templates.get(name)
  talk = [{"role": role, "content": text} for role, text in template.arranged(TALK)]
  patterns = [pattern(tokenizer, name, talk[i:]) for i in range(4)]
  whole, fitting = chat.render(tokenizer, talk)[0], 0
  for limit in range(1, len(whole) + 2):
    try:
      tokens, mask = chat.render(tokenizer, talk, limit)
    except UserError as error:
      assert "no room for the markers" in str(error) and not fitting
      continue
    fitting += 1
    assert len(tokens) == len(mask) <= limit
    assert (tokens[-1], mask[-1], tokens[0]) == (tokenizer.end_id, 1, whole[0])
    matches = [p.fullmatch(shown(tokenizer, tokens)) for p in patterns]
    gone = next(i for i, match in enumerate(matches) if match)
    for i, message in enumerate(talk[gone:]):
      text = template.lead * (message["role"] == "assistant") + message["content"]
      left = matches[gone][f"m{i}"]
      assert text.startswith(left) if i == 4 - gone else text.endswith(left)
      assert left == text or not (i and len(matches[gone][f"m{i - 1}"]) > 0)  # The oldest first.
    assert len(tokens) == min(limit, len(whole)) or gone
  assert fitting > len("".join(m["content"] for m in talk[3:])) / 3
  assert tokens == whole
  for limit in range(len(chat.prompt(tokenizer, talk)) - 40, len(whole)):
    assert len(chat.prompt(tokenizer, talk[:4], limit)) <= limit


@pytest.mark.parametrize("name", templates.names())
def test_cuts_of_a_model_that_puts_spaces_first(get, name):
  tokenizer = get("sentencepiece", name)
  whole = chat.render(tokenizer, TALK)[0]
  for limit in range(len(whole) * 2 // 3, len(whole) + 2):
    tokens, mask = chat.render(tokenizer, TALK, limit)
    assert len(tokens) == len(mask) <= limit
    assert (tokens[-1], mask[-1]) == (tokenizer.end_id, 1)
    answer = chat.render(tokenizer, TALK[3:])[0][len(chat.prompt(tokenizer, TALK[3:4])) :]
    assert tokens[-len(answer) :] == answer  # Questions go first; the answer is whole.


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_transformers_agrees_on_clean_texts(get, folder, kind, name):
  transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")
  tokenizer, out = get(kind, name), folder / f"{kind}-{name}-out"
  if kind == "trained" and name in ("zephyr", "tulu"):
    with pytest.raises(UserError, match=r"writes <\|system\|> as text, which is a control token"):
      tokenizer_export.export(tokenizer, out)
    return
  tokenizer_export.export(tokenizer, out)
  config = json.loads((out / "tokenizer_config.json").read_text())
  assert (out / "chat_template.jinja").read_text() == config["chat_template"]
  other = transformers.AutoTokenizer.from_pretrained(out)
  more = [*TALK, {"role": "user", "content": "  Spaces,\n\nlines: 1234.  "}]
  talks = [TALK, more, *(TALK[i:j] for i in (0, 1) for j in range(i + 1, 5)), TALK[3:]]
  talks += [[*TALK[1:3], TALK[0], *TALK[3:]], [TALK[0], TALK[0], *TALK[1:]], [TALK[0], TALK[4]]]
  for talk in talks:
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    theirs = other.apply_chat_template(talk, **options)
    tokens, mask = chat.render(tokenizer, talk)
    assert theirs["input_ids"] == tokens
    assert list(theirs["assistant_masks"]) == mask
    theirs = other.apply_chat_template(talk, tokenize=True, add_generation_prompt=True)
    assert theirs["input_ids"] == chat.prompt(tokenizer, talk)
