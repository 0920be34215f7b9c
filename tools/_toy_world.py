"""A toy language, its questions, and what tiny runs start from: made here, read from nowhere."""

import dataclasses
import json
import pathlib

import flax.linen as nn
import jax
import numpy as np

from llm_jax import config
from llm_jax.data import packing, questions, tokenizer
from llm_jax.models import interop
from llm_jax.models.transformer import Transformer
from llm_jax.stages import runs, training

VERBS = ("Return", "Count", "Delete", "Sort")
NOUNS = ("rows", "files", "names", "items", "words", "links")
SHAPE = config.Model(dim=32, layers=1, heads=2)


def asked(split: str, count: int = 24) -> list[questions.Question]:
  """Returns the questions of a split, with their true answers."""
  pairs = [(verb, noun) for verb in VERBS for noun in NOUNS]
  return [
    questions.Question(
      f"{split}.{verb}_{noun}",
      f"{verb}_{noun}",
      f"What does {verb.lower()} {noun} do?\n{verb.lower()}_{noun}(x)",
      f"{verb} all the {noun} of a {split} table.",
      f"{verb.lower()}_{noun}(x)",
      f"https://docs.invalid/{split}",
    )
    for verb, noun in pairs[:count]
  ]


def prepare(path: pathlib.Path) -> None:
  """Writes what `experiments.prepare` would of a corpus of the questions and answers."""
  texts = {
    split: [f"{q.heading}\n{q.answer}" for q in asked(split)] for split in ("train", "validation")
  }
  coder = tokenizer.train(texts["train"], path / "tokenizer", 300)
  splits = {}
  (path / "questions").mkdir()
  for split, documents in texts.items():
    rows = [[coder.bos_id, *ids, coder.eos_id] for ids in coder.encode_batch(documents)]
    packing.write_tokens(path / "tokens" / split / "00000.array_record", rows, coder.vocab_size)
    size = sum(len(d.encode()) for d in documents)
    tokens = sum(len(row) - 1 for row in rows)
    splits[split] = {"documents": len(documents), "bytes": size, "tokens": tokens}
    questions.write(path / "questions" / f"{split}.jsonl", asked(split))
  (path / "manifest.json").write_text(json.dumps({"splits": splits}))


def write_start(path: pathlib.Path, prepared: pathlib.Path) -> None:
  """Writes a decoder that was not trained, as a folder of Hugging Face.

  The embedding of the turn's end, which is the head's too, is four times as long as the others:
  where it is likely it is very likely, so some answers end soon and others do not.
  """
  coder = runs.tokenizer(str(prepared))
  model = Transformer.from_config(dataclasses.replace(SHAPE, vocab_size=coder.vocab_size))
  params = jax.device_get(nn.unbox(jax.jit(training.initializer(model))(jax.random.key(0))))
  params["embedding"] = np.array(params["embedding"])
  params["embedding"][coder.end_id] *= 4
  interop.save(path, model, params)


def write_pairs(path: pathlib.Path, count: int = 40) -> None:
  """Writes preferences: answers of the toy language against ones that lack words, or have others.

  No model drew them, so that what is trained on them does not depend on a sampler.
  """
  rows = []
  for i in range(count):
    q, other = asked("train")[i % 24], asked("train")[(7 * i + 5) % 24]
    spoilt = " ".join(q.answer.split()[: 2 + i % 3]) if i % 2 else other.answer
    rows.append({"prompt": f"{i}: {q.prompt}", "chosen": q.answer, "rejected": spoilt})
  _write(path, rows)


def write_labels(path: pathlib.Path, count: int = 40) -> None:
  """Writes single answers that are wanted or not."""
  rows = []
  for i in range(count):
    q = asked("train")[i % 24]
    said = q.answer if i % 2 else " ".join(q.answer.split()[:3])
    rows.append({"prompt": f"{i}: {q.prompt}", "completion": said, "label": bool(i % 2)})
  _write(path, rows)


def _write(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
