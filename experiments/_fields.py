"""The fields of a config: whether a command line names them, what they take, what cannot be."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from typing import Any

from llm_jax import rundir
from llm_jax.errors import UserError, nearest

_KINDS = {
  int: "an integer", float: "a number", bool: "true or false", str: "text",
  tuple[str, ...]: """a tuple of texts, such as '("one", "two")' or '("one",)'""",
  tuple[int, ...]: "a tuple of integers, such as '(1, 2)' or '(1,)'",
}  # fmt: skip
_OVERRIDE = re.compile(r"-{1,2}(?:no)?config\.([^=]*)")


def check_overrides(words: Sequence[str], cfg: Any) -> None:
  """Checks that each --config.FIELD names a field that holds a value.

  Raises:
    UserError: with the nearest name in that group, or the group in which the field is.
  """
  for word in words:
    match = _OVERRIDE.match(word)
    if not match:
      continue
    node, parts = cfg, match[1].split(".")
    for depth, part in enumerate(parts):
      where = ".".join(["config", *parts[:depth]])
      if not dataclasses.is_dataclass(node):
        raise UserError(f"{word}: {where} is a value, it has no field {part}")
      names = [field.name for field in dataclasses.fields(node)]
      if part not in names:
        raise UserError(f'{word}: {where} has no field "{part}"{_suggest(part, names, where, cfg)}')
      node = getattr(node, part)
    if dataclasses.is_dataclass(node):
      inside = ", ".join(field.name for field in dataclasses.fields(node))
      raise UserError(f"{word}: config.{match[1]} is a group, set one of its fields: {inside}")


def takes(cfg: Any, name: str) -> str:
  """Returns in words what the field with this dotted name takes."""
  *groups, last = name.split(".")
  for group in groups:
    cfg = getattr(cfg, group)
  (field,) = (field for field in dataclasses.fields(cfg) if field.name == last)
  return _KINDS.get(field.type, str(field.type))


def validate(cfg: Any, where: str = "config") -> None:
  """Checks the types of a config's fields, and runs its `validate` and those of configs inside it.

  Raises:
    UserError: with the full name of the field.
  """
  _typed(cfg, where)
  for field in dataclasses.fields(cfg):
    if dataclasses.is_dataclass(getattr(cfg, field.name)):
      validate(getattr(cfg, field.name), f"{where}.{field.name}")
  if hasattr(cfg, "validate"):
    try:
      cfg.validate()
    except UserError as error:
      raise UserError(str(error).replace("config.", f"{where}.")) from error


def _typed(cfg: Any, where: str) -> None:
  """A config file may set anything; flags are checked when they are read."""
  for field in dataclasses.fields(cfg):
    value, kind = getattr(cfg, field.name), field.type
    group = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    if (group or kind in _KINDS) and not _is(value, kind):
      wanted = f"a config.{kind.__name__}" if group else _KINDS[kind]
      got = f"{value!r} ({type(value).__name__})"
      raise UserError(f"{where}.{field.name} takes {wanted}, got {got}")


def _is(value: Any, kind: Any) -> bool:
  if isinstance(value, bool) or kind is bool:
    return isinstance(value, bool) and kind is bool
  if typing.get_origin(kind) is tuple:
    (inner, _) = typing.get_args(kind)
    return isinstance(value, tuple) and all(_is(item, inner) for item in value)
  return isinstance(value, int | float if kind is float else kind)


def _suggest(part: str, names: Sequence[str], where: str, cfg: Any) -> str:
  """The place of a field with exactly this name, else the nearest field of the group."""
  for path in rundir.flatten(dataclasses.asdict(cfg)):
    if path.split(".")[-1] == part:
      return f'; did you mean "config.{path}"?'
  return nearest(part, names).replace('"', f'"{where}.', 1)
