"""Principles that a model is to follow: what it criticises, revises and judges answers by.

A file is JSON, {"principles": [{"name", "critique", "revision", "preference"}, ...]}: a request to
criticise an answer, one to revise it, and a question which of two answers is the better one. Bai et
al. 2022 (arXiv:2212.08073) call such a list a constitution; configs/data/principles.json is ours.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.errors import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Principle(NamedTuple):
  """One principle.

  Attributes:
    name: short; traces have it.
    critique: asks what is wrong with the answer.
    revision: asks for a better answer.
    preference: asks which of two answers, (A) or (B), is the better one.
  """

  name: str
  critique: str
  revision: str
  preference: str


def read(path: str | os.PathLike[str]) -> list[Principle]:
  """Reads a file of principles; a relative path may also start where the program lies.

  Raises:
    UserError: if there is no such file, it is malformed, or two principles have one name.
  """
  own = pathlib.Path(path)
  found = own if own.exists() else _ROOT / own
  try:
    rows = json.loads(found.read_text(encoding="utf-8"))["principles"]
    principles = [Principle(**row) for row in rows]
  except OSError as error:
    raise UserError(f"config.principles={path} cannot be read ({error.strerror})") from error
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(
      f'config.principles={path} must be JSON, {{"principles": [{{"name", "critique", "revision", '
      f'"preference"}}, ...]}} ({error})'
    ) from error
  texts = [text for principle in principles for text in principle]
  if not principles or not all(isinstance(text, str) and text.strip() for text in texts):
    raise UserError(f"config.principles={path}: every principle needs four texts, and there is one")
  if len({principle.name for principle in principles}) < len(principles):
    raise UserError(f"config.principles={path}: two principles have the same name")
  return principles


def draw(principles: Sequence[Principle], count: int, seed: int | Sequence[int]) -> list[Principle]:
  """Returns `count` of the principles in an order drawn by `seed`, none twice until all are used.

  Args:
    principles: to draw from.
    count: of those drawn.
    seed: not negative.
  """
  rng = np.random.default_rng(seed)
  order: list[int] = []
  while len(order) < count:
    order += rng.permutation(len(principles)).tolist()
  return [principles[i] for i in order[:count]]
