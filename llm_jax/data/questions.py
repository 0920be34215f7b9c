"""Questions with known answers, built from documentation entries, split with no leak.

A question names an object and gives what a reader would have before him: where it lives and how it
is called. The answer is the first paragraph of its docstring. Pages decide the split, and a
held-out question is dropped if its answer's text occurs anywhere in the training text.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

from llm_jax.data import documents, pydocs
from llm_jax.data.formats.files import bad_row, read_rows

_WORD = re.compile(r"[a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+|\.+")
# Markup and code in a first paragraph: fine in documentation, noise in a spoken answer.
_MARKUP = re.compile(r"https?:|::|>>>|[{}<>|\\]|:\w+:|--|\.\.\.|[^\x20-\x7e]")
_HEADING = 100  # Characters of a signature that a question shows.
_WINDOW = 5  # Words; the key under which an answer is looked up in the training text.


@dataclasses.dataclass(frozen=True)
class Question:
  """One question with its true answer.

  Attributes:
    id: unique, the object's full name.
    object: what is asked about, as a reader would write it.
    prompt: the question as the model sees it.
    answer: the true answer, one paragraph.
    heading: how the object stands on its page (prompts of the base model start from it).
    url: the page that it stands on; it decides the split.
  """

  id: str
  object: str
  prompt: str
  answer: str
  heading: str
  url: str


def build(
  entries: Iterable[pydocs.Entry],
  train_texts: Iterable[str],
  *,
  seed: int,
  validation: float,
) -> tuple[list[Question], list[Question], dict[str, int]]:
  """Returns (train, validation, counts): questions in a seeded order, and what was dropped why.

  Args:
    entries: documented objects.
    train_texts: the documents that a model is pretrained on.
    seed: of the split and of the order.
    validation: fraction of pages held out; the same rule as for documents.
  """
  counts = {"entries": 0, "no plain first paragraph": 0, "answer seen before": 0}
  splits: dict[str, list[Question]] = {"train": [], "validation": []}
  seen: set[str] = set()
  for entry in sorted(entries, key=lambda e: _key(seed, f"{e.module}.{e.qualname}")):
    counts["entries"] += 1
    question = _question(entry)
    if question is None:
      counts["no plain first paragraph"] += 1
      continue
    text = normal(question.answer)
    if text in seen:
      counts["answer seen before"] += 1
      continue
    seen.add(text)
    splits[documents.split_of(question.url, seed, validation)].append(question)
  answers = (question.answer for question in splits["train"])
  leaked = _found([q.answer for q in splits["validation"]], [*train_texts, *answers])
  held_out = [q for q in splits["validation"] if q.answer not in leaked]
  counts["held-out answer in training text"] = len(splits["validation"]) - len(held_out)
  counts |= {"train": len(splits["train"]), "validation": len(held_out)}
  return splits["train"], held_out, counts


def write(path: str | pathlib.Path, questions: Iterable[Question]) -> None:
  """Writes one JSON object a line."""
  with open(path, "w", encoding="utf-8") as f:
    for question in questions:
      f.write(json.dumps(dataclasses.asdict(question), ensure_ascii=False) + "\n")


def read(path: str | pathlib.Path) -> list[Question]:
  """Reads what `write` wrote.

  Raises:
    UserError: naming the first bad line.
  """
  found = []
  for row in read_rows(path):
    try:
      found.append(Question(**row.value))
    except TypeError as e:
      raise bad_row(path, row.number, f"not a question ({e})") from e
  return found


def normal(text: str) -> str:
  """Lower-case words and numbers, single spaces: the form in which answers are compared."""
  return " ".join(_WORD.findall(text.lower()))


def spoken(name: str) -> str:
  """An identifier as words: `read_setupFile` -> `read setup file`."""
  return " ".join(part.lower() for part in _CAMEL.split(name) if part)


def _question(entry: pydocs.Entry) -> Question | None:
  answer = " ".join(entry.doc.strip().split("\n\n")[0].split())
  words = answer.split()
  plain = 4 <= len(words) <= 32 and answer[0].isupper() and answer.endswith(".")
  if entry.kind == "module" or not plain or _MARKUP.search(answer):
    return None
  owner, _, name = entry.qualname.rpartition(".")
  heading = (entry.signature or entry.qualname)[:_HEADING]
  # Private parts of a dotted name (`jax._src.numpy`) say nothing about an object.
  where = " ".join(part for part in f"{entry.module}.{owner}".split(".") if part and part[0] != "_")
  prompt = f"What does {spoken(name)} do?\n{heading}\n{where}"
  if entry.kind == "class":
    prompt = f"What is {spoken(name)}?\n{heading}\n{where}"
  full = f"{entry.module}.{entry.qualname}"
  return Question(full, entry.qualname, prompt, answer, heading, entry.url)


def _found(answers: Sequence[str], texts: Iterable[str]) -> set[str]:
  """Returns the `answers` whose words occur in order, unbroken, in any of `texts`."""
  wanted: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
  for answer in answers:
    words = normal(answer).split()
    wanted.setdefault(tuple(words[:_WINDOW]), []).append((words, answer))
  sizes = {len(key) for key in wanted}
  found: set[str] = set()
  for text in texts:
    words = normal(text).split()
    for size in sizes:
      for i in range(len(words) - size + 1):
        for answer_words, answer in wanted.get(tuple(words[i : i + size]), ()):
          if words[i : i + len(answer_words)] == answer_words:
            found.add(answer)
  return found


def _key(seed: int, name: str) -> bytes:
  return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
