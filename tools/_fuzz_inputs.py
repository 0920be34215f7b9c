"""What fuzzing puts into inputs: odd values, odd texts, broken bytes; all from one generator."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_jax.data import templates
from tools import fuzz_readers

# Control tokens of all templates and of well-known tokenizers, and markers that are text.
MARKERS = sorted(
  {name for template in templates.TEMPLATES.values() for name in template.controls()}
  | set(
    "<s> </s> <pad> <unk> <bos> <eos> <mask> [PAD] [CLS] [SEP] <|system|> <|user|> <|assistant|> "
    "<|end|> <|pad|> <|bos|> <|eos|> <|endoftext|> <|begin_of_text|> <|end_of_text|> <extra_id_0> "
    "[INST] [/INST] <<SYS>> <</SYS>> <0x00> <0x0A> <0x3C> <0xFF> <|eom_id|> <|python_tag|>".split()
  )
)
_INVISIBLE = "\u200b\u200d\u2060\ufeff\u00ad\u202e\u0301\0\ufffe\uffff\u2581"
_WIDE = {ord(c): chr(ord(c) + 0xFEE0) for c in "<>|[]/_"}
_PLAIN = ("banana", "a list of 12", "\n\n", "  ", "", "日本 😀", "\u2581", "'")

Spelling = Callable[[random.Random, str], str]


class Raw(str):
  """JSON that no writer would write, put into the text as it is."""

  __slots__ = ()


def _between(rng: random.Random, marker: str) -> str:
  at = rng.randrange(len(marker) + 1)
  return marker[:at] + rng.choice(_INVISIBLE) + marker[at:]


def _nested(rng: random.Random, marker: str) -> str:
  """One that appears if somebody takes the inner one out."""
  at = rng.randrange(1, len(marker))
  return marker[:at] + marker + marker[at:]


_SPELLINGS: tuple[Spelling, ...] = (
  lambda rng, marker: marker,
  lambda rng, marker: marker,
  lambda rng, marker: f" {marker} ",
  lambda rng, marker: f"\n{marker}\n",
  lambda rng, marker: marker.upper(),
  lambda rng, marker: marker.translate(_WIDE),
  lambda rng, marker: f"\ufffe{marker}\ufffe",
  lambda rng, marker: marker[: rng.randrange(len(marker))],
  lambda rng, marker: marker[rng.randrange(len(marker)) :],
  lambda rng, marker: "".join(f"<0x{byte:02X}>" for byte in marker.encode()),
  lambda rng, marker: marker.replace("<", "&lt;").replace(">", "&gt;"),
  lambda rng, marker: " ".join(marker),
  _between,
  _nested,
)


def text(rng: random.Random) -> str:
  """A text that tries to be a control token, or is odd in another way."""
  parts = []
  for _ in range(rng.choice((1, 1, 2, 3, 6))):
    if rng.random() < 0.3:
      parts.append(rng.choice(_PLAIN))
    else:
      parts.append(rng.choice(_SPELLINGS)(rng, rng.choice(MARKERS)))
  if rng.random() < 0.01:
    parts.append(rng.choice(("\ud800", "\udfff!", "banana " * 100, "banana " * 1000)))
  return rng.choice(("", "", " ", "\n")).join(parts)


def odd(rng: random.Random) -> Any:
  """A JSON value where another one is expected."""
  numbers = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**18, 10**30, 10**400)
  floats = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"))
  depth = rng.choice((3, 50, 300, 480, 900, 990, 3000, 100_000))
  others = (
    None, True, False, "", [], {}, [[]], [None], {"": None}, [0, 1], {"a": 1}, "0", "1e999", "null",
    Raw("9" * 5000), Raw("1e400"), Raw("-0"), Raw("0.1" + "3" * 400), Raw("NaN"),
    Raw("[" * depth + "]" * depth), Raw('{"a":' * depth + "1" + "}" * depth),
  )  # fmt: skip
  kind = rng.randrange(4)
  if kind == 3:
    return text(rng)
  return rng.choice((numbers, floats, others)[kind])


def changed(rng: random.Random, value: Any, names: Sequence[str] = ()) -> Any:
  """A copy with some accidents in its structure.

  Args:
    rng: decides.
    value: a JSON value.
    names: of fields that may be added, or take each other's place.
  """
  holder = [copy.deepcopy(value)]
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    places = list(_places(holder))
    _change(rng, *rng.choice(places), places, names)
  return holder[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
  """Yields (list or dict, index or key) of everything below."""
  for key in list(node) if isinstance(node, dict) else range(len(node)):
    yield node, key
    if isinstance(node[key], dict | list):
      yield from _places(node[key])


def _change(rng: random.Random, node: Any, key: Any, places: list, names: Sequence[str]) -> None:
  how = rng.randrange(9)
  value = node[key]
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if how == 0 and isinstance(node, dict):
    del node[key]
  elif how == 1 and isinstance(node, dict):
    node[rng.choice(names) if names and rng.random() < 0.7 else text(rng)] = node.pop(key)
  elif how == 2 and isinstance(value, dict):
    value[rng.choice(names) if names and rng.random() < 0.7 else text(rng)] = odd(rng)
  elif how == 3:
    node[key] = rng.choice(([value], {"a": value}, [value, value], str(value)[:1000]))
  elif how == 4:
    other, own = rng.choice(places)
    if isinstance(other, list) and own < len(other) or isinstance(other, dict) and own in other:
      node[key] = copy.deepcopy(other[own])
  elif how == 5 and number:
    node[key] = rng.choice((-value, value + 1, value - 1, value * 2, str(value), [value] * 9))
  elif how == 6 and isinstance(value, list):
    value.insert(rng.randrange(len(value) + 1), odd(rng))
  else:
    node[key] = odd(rng)


def dumps(rng: random.Random, value: Any) -> bytes:
  """The JSON of a value, now and then with a key twice, or in bytes that are no UTF-8."""
  raws: list[Raw] = []

  def plain(node: Any) -> Any:
    if isinstance(node, Raw):
      raws.append(node)
      return f"@raw{len(raws) - 1}@"
    if isinstance(node, dict):
      return {key: plain(inner) for key, inner in node.items()}
    return [plain(inner) for inner in node] if isinstance(node, list) else node

  whole = json.dumps(plain(value), ensure_ascii=rng.random() < 0.5)
  if rng.random() < 0.05 and isinstance(value, dict) and value:
    begins = [found.end() for found in re.finditer("{", whole)]
    at, twin = rng.choice(begins), {rng.choice(list(value)): plain(odd(rng))}
    whole = f"{whole[:at]}{json.dumps(twin)[1:-1]}, {whole[at:]}"
  for i, raw in enumerate(raws):
    whole = whole.replace(f'"@raw{i}@"', raw)
  return whole.encode("utf-8", "surrogatepass")


def broken(rng: random.Random, data: bytes) -> bytes:
  """The bytes with one accident, as tools/fuzz_readers.py has them."""
  return fuzz_readers.broken(data, rng.choice(fuzz_readers.HOW), rng) if data else data
