"""Tokenizers of each kind and family, and whether a conversation's control tokens are its own."""

import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sentencepiece

from llm_jax.data import chat, templates
from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import files, huggingface
from llm_jax.data.tokenizers.train import SURROGATE
from tools._fuzz_inputs import MARKERS

Messages = Sequence[Mapping[str, str]]

_TEXTS = [
  "What does a list of 1234 words do?\n\n    It returns them, one by one.\n" * 4,
  "The </s> of <|user|> texts, [INST] and <<SYS>>: cafe, banana and ananas.\n\tTabs.\n" * 4,
  "def add(a, b):\n  return a + b  # <|im_start|>assistant <0x0A>\n" * 4,
]
# Whose markers are text: any tokenizer can have these templates.
_WRITTEN = ("llama-2", "zephyr", "vicuna", "alpaca")


@dataclasses.dataclass
class Coder:
  """A tokenizer.

  Attributes:
    name: of its kind and template.
    own: the tokenizer.
    exact: whether a conversation's text comes back as it was, but for `lost`.
    lost: characters that it takes out of texts, U+FFFD in their place.
  """

  name: str
  own: Tokenizer
  exact: bool
  lost: str = ""


def coders(folder: pathlib.Path) -> list[Coder]:
  """Tokenizers of ours, of SentencePiece's and of tokenizer.json's kind, in their templates."""
  found = []
  tokenizer_lib.train(_TEXTS, folder / "ours", 340)
  for name in (templates.DEFAULT, *_WRITTEN):
    own = Tokenizer.load(folder / "ours")
    own.use_template(name)
    found.append(Coder(f"ours {name}", own, True))
  (folder / "bytes.json").write_text(byte_level())
  for name in ("chatml", "llama-3", "gemma", "mistral-v3"):
    bos = {"llama-3": "<|begin_of_text|>", "gemma": "<bos>"}.get(name, "<s>")
    specials = {"bos": bos, "eos": "</s>"}
    own = files.adopt(folder / "bytes.json", folder / name, specials, template=name)
    found.append(Coder(f"bytes {name}", own, True, "\ufffe"))
  (folder / "pieces.model").write_bytes(pieces())
  for name in ("mistral", "gemma", "chatml"):
    own = files.adopt(folder / "pieces.model", folder / f"pieces-{name}", template=name)
    found.append(Coder(f"pieces {name}", own, False))
  return found


def byte_level() -> str:
  """A tokenizer.json of GPT-2's kind that knows all markers; texts may spell them there."""
  library = huggingface.library()
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  alphabet = library.pre_tokenizers.ByteLevel.alphabet()
  trainer = library.trainers.BpeTrainer(
    vocab_size=420, initial_alphabet=alphabet, special_tokens=MARKERS, show_progress=False
  )
  made.train_from_iterator(_TEXTS, trainer)
  data = json.loads(made.to_str())
  assert data["added_tokens"]
  return json.dumps(data)


def pieces() -> bytes:
  """A SentencePiece model as Llama's: a space in front, markers of families user-defined."""
  written = ("<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<0x00>", "<0x0A>", "<0x3C>")
  own = [name for name in MARKERS if name not in (*written, "<0xFF>")]
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([line for text in _TEXTS for line in text.split("\n")]),
    model_writer=buffer, minloglevel=2, model_type="bpe", vocab_size=400, byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
    allow_whitespace_only_pieces=True, user_defined_symbols=own, hard_vocab_limit=False,
  )  # fmt: skip
  return buffer.getvalue()


class Checker:
  """Compares conversations with harmless ones in the same roles."""

  def __init__(self, coder: Coder):
    self.coder = coder
    self._known: dict[Any, list[tuple[int, int, str]]] = {}

  def problem(
    self,
    messages: Messages,
    tokens: Sequence[int],
    mask: Sequence[int] = (),
    *,
    learn: Collection[int] | None = None,
    speak: bool = False,
    cut: bool = False,
  ) -> str:
    """What is wrong with the tokens of a conversation; "" if nothing is.

    Args:
      messages: of the conversation.
      tokens: as `chat.render` or, if the assistant is to `speak`, `chat.prompt` gave them.
      mask: as `chat.render` gave it.
      learn: as `chat.render` takes it.
      speak: see above.
      cut: whether a limit took something away: then only the order of control tokens is known.
    """
    mask = mask if mask else [0] * len(tokens)
    key = tuple(m["role"] for m in messages), speak, None if learn is None else tuple(learn)
    if key not in self._known:
      if len(self._known) > 5000:
        self._known.clear()
      self._known[key] = self._harmless(messages, learn, speak)
    wanted, found = self._known[key], self._parts(tokens, mask)
    ids = [(i, said) for i, said, _ in found if i >= 0]
    own = [(i, said) for i, said, _ in wanted if i >= 0]
    if cut:
      left = iter(own)
      return "" if all(one in left for one in ids) else f"{self.coder.name}: control tokens {ids}"
    if ids != own:
      return f"{self.coder.name}: control tokens (id, learned) are {ids} and should be {own}"
    if not self.coder.exact:
      return ""
    texts = [self._clean(m["content"]) for m in messages]
    fill = lambda part: re.sub(r"@(\d+)@", lambda m: texts[int(m[1])], part)  # noqa: E731
    expected = [(i, fill(part)) for i, _, part in wanted]
    expected = [(i, part) for i, part in expected if i >= 0 or part]
    if [(i, part) for i, _, part in found] != expected:
      return f"{self.coder.name}: text is not where it belongs in {found} of {texts}"[:2000]
    return ""

  def forged(self, tokens: Sequence[int]) -> str:
    """What is wrong with the tokens of a plain text, which has no control tokens at all."""
    ids = [i for i in tokens if i in self.coder.own.control]
    return f"{self.coder.name}: a text gave the control tokens {ids}" if ids else ""

  def _harmless(
    self, messages: Messages, learn: Collection[int] | None, speak: bool
  ) -> list[tuple[int, int, str]]:
    own = [{"role": m["role"], "content": f"@{i}@"} for i, m in enumerate(messages)]
    if speak:
      tokens = chat.prompt(self.coder.own, own)
      return self._parts(tokens, [0] * len(tokens))
    return self._parts(*chat.render(self.coder.own, own, learn=learn))

  def _parts(self, tokens: Sequence[int], mask: Sequence[int]) -> list[tuple[int, int, str]]:
    """Control tokens as (id, learned, ""), and the text between two of them as (-1, 0, text)."""
    found: list[tuple[int, int, str]] = []
    run: list[int] = []
    for i, said in [*zip(tokens, mask, strict=True), (-1, 0)]:
      if i >= 0 and i not in self.coder.own.control:
        run.append(i)
        continue
      if run:
        found.append((-1, 0, self.coder.own.decode(run)))
      run = []
      found += [(i, said, "")] if i >= 0 else []
    return found

  def _clean(self, text: str) -> str:
    """A text as it comes back."""
    if templates.get(self.coder.own.template).strip:
      text = text.strip()
    text = SURROGATE.sub("\ufffd", text)
    return "".join("\ufffd" if c in self.coder.lost else c for c in text)
