"""Preference pairs as token batches: what the reward model and DPO train on."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax import config
from llm_jax.data import batches, chat, posttraining, preferences
from llm_jax.data.intake import Intake
from llm_jax.data.posttraining import Compared, Tokens
from llm_jax.data.preferences import Answer, Pair
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError, nearest
from llm_jax.stages import own
from llm_jax.types import Batch

SIDES = ("chosen", "rejected")
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_ENDS = (".jsonl", ".json", ".gz", ".parquet")


def splits(
  cfg: config.Reward | config.Dpo,
  taken: Intake,
  tokenizer: Tokenizer,
  every_kind: bool = False,
) -> tuple[list[Compared], list[Compared]]:
  """Returns the pairs to train on and those held out, of `cfg.kinds` alone.

  They are those of `cfg.preferences`: a directory that `experiments.preferences` wrote, one with
  files of any format, or such files. The margin of a pair of the first is that of its gold scores.

  Args:
    cfg: of the stage.
    taken: takes in the files, and the rows that cannot be read.
    tokenizer: of the model.
    every_kind: whether those held out are of every kind.

  Raises:
    UserError: if there are none.
  """
  entries = [name.strip() for name in cfg.preferences.split(",") if name.strip()]
  path = pathlib.Path(cfg.preferences)
  found = {split: _file(path, split) for split in ("train", "validation")}
  one = len(entries) < 2 and not (path.is_file() or "=" in path.name or path.suffix in _ENDS)
  if one and (not found["train"] or made_here(found["train"])):
    both = (load(cfg.preferences, "train", cfg.kinds),
            load(cfg.preferences, "validation", "" if every_kind else cfg.kinds))  # fmt: skip
    return tuple(
      [
        Compared(row, pair.kind, pair.gold_chosen - pair.gold_rejected)
        for row, pair in zip(encode(tokenizer, part, cfg.length), part, strict=True)
      ]
      for part in both
    )
  data = posttraining.load(
    "preferences",
    [str(found["train"])] if one else entries,
    functools.partial(posttraining.preference, tokenizer, length=cfg.length),
    validation=cfg.validation,
    held_out=[str(found["validation"])] if one and found["validation"] else (),
    seed=cfg.seed,
    field="config.preferences",
    intake=taken,
  )
  own.report(data)
  train = _of_kinds(data.train, cfg.kinds, cfg.preferences)
  wanted = "" if every_kind or not data.validation else cfg.kinds
  held_out = _of_kinds(data.validation, wanted, f"what is held out of {cfg.preferences}")
  return train, held_out


def numbered(
  pairs: Sequence[Compared], soft: bool = True, margin: float = 0.0
) -> list[dict[str, Any]]:
  """Returns rows with what objectives are to know of each pair.

  Args:
    pairs: encoded.
    soft: whether the label is as sure as the data is, where it is not always sure.
    margin: times that of the data; 0: none.

  Raises:
    UserError: if a margin is wanted and no pair has one.
  """
  if margin and not any(pair.margin for pair in pairs):
    raise UserError(
      f"config.margin={margin}, but no pair of config.preferences has a margin or ratings: set it "
      "to 0"
    )
  soft = soft and any(pair.probability < 1 for pair in pairs)

  def row(pair: Compared) -> dict[str, Any]:
    sure = {"probability": pair.probability} if soft else {}
    return pair.row | sure | ({"margin": margin * pair.margin} if margin else {})

  made = {id(pair): row(pair) for pair in pairs}  # A pair that counts twice is one row.
  return [made[id(pair)] for pair in pairs]


def flip(train: Sequence[Compared], seed: int) -> list[Compared]:
  """The negative control: each pair's label is decided by a fair coin."""
  coin = np.random.default_rng(seed).random(len(train)) < 0.5
  return [
    dataclasses.replace(pair, row={"chosen": pair.row["rejected"], "rejected": pair.row["chosen"]})
    if heads_up
    else pair
    for pair, heads_up in zip(train, coin, strict=True)
  ]


def _file(directory: pathlib.Path, split: str) -> pathlib.Path | None:
  return next((p for s in _SUFFIXES if (p := directory / f"{split}{s}").is_file()), None)


def made_here(path: pathlib.Path) -> bool:
  """Tells whether a file is one that `preferences.write` wrote."""
  if path.suffix != ".jsonl":
    return False
  with open(path, encoding="utf-8", errors="replace") as f:
    return '"gold_chosen"' in f.readline()


def _of_kinds(pairs: list[Compared], kinds: str, where: str) -> list[Compared]:
  wanted = {kind.strip() for kind in kinds.split(",") if kind.strip()}
  there = {pair.kind for pair in pairs}
  for kind in sorted(wanted - there):
    raise UserError(
      f"no pairs of kind {kind!r} in {where}{nearest(kind, there)}; of all kinds with "
      "--config.kinds="
    )
  return [pair for pair in pairs if not wanted or pair.kind in wanted]


def load(directory: str, split: str, kinds: str = "") -> list[Pair]:
  """Reads the pairs of one split, only those of `kinds` (comma-separated) if it is not "".

  Raises:
    UserError: if there are none.
  """
  path = pathlib.Path(directory) / f"{split}.jsonl"
  if not path.exists():
    raise UserError(
      f"{path} is missing: run `python -m experiments.preferences --workdir={directory}`, "
      "or set --config.preferences"
    )
  pairs = preferences.read(path)
  wanted = {kind.strip() for kind in kinds.split(",") if kind.strip()}
  there = {pair.kind for pair in pairs}
  for kind in sorted(wanted - there):
    raise UserError(f"no pairs of kind {kind!r} in {path}{nearest(kind, there)}")
  pairs = [pair for pair in pairs if not wanted or pair.kind in wanted]
  if not pairs:
    raise UserError(f"{path} holds no preference pairs")
  return pairs


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair], length: int) -> list[dict[str, Tokens]]:
  """Each pair as {"chosen": (tokens, mask), "rejected": (tokens, mask)}."""
  return [
    {side: conversation(tokenizer, pair.prompt, getattr(pair, side), length) for side in SIDES}
    for pair in pairs
  ]


def conversation(tokenizer: Tokenizer, prompt: str, answer: Answer, length: int) -> Tokens:
  """(tokens, mask) of a question and an answer; an answer that never ended has no turn end."""
  tokens, mask = chat.render(
    tokenizer,
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.text}],
    length + 1,
  )
  return (tokens, mask) if answer.ended else (tokens[:-1], mask[:-1])


def collate(rows: Sequence[Mapping[str, Any]], length: int) -> Batch:
  """One pair batch of encoded pairs; a pair's numbers (`ref_chosen`, ...) become [B] arrays."""
  extras = {
    key: np.array([row[key] for row in rows], np.float32) for key in rows[0].keys() - {*SIDES}
  }
  return batches.pair_batch(rows, length) | extras


def filled(rows: Sequence[Mapping[str, Any]], length: int, count: int) -> Batch:
  """A batch of `count` pairs: of encoded ones, and empty ones, which weigh nothing."""
  empty = {key: ([], []) if key in SIDES else 0.0 for key in rows[0]}
  return collate([*rows, *[empty] * (count - len(rows))], length)


def in_order(encoded: Sequence[Mapping[str, Any]], length: int, rows: int) -> Iterator[Batch]:
  """Pair batches in order; the last is filled up with empty pairs."""
  for start in range(0, len(encoded), rows):
    yield filled(encoded[start : start + rows], length, rows)
