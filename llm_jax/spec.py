"""Turns "name(key=literal)", and sums of such terms, into functions: the whole plugin system."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable

from llm_jax.errors import UserError, nearest

_SHAPE = 'want "name", "name(key=literal)", "package.module:name(key=literal)" or a sum of these'
# "pkg.module:name" is not Python; a string literal may hold a colon and is left alone.
_COLON = re.compile(r"""('[^']*'|"[^"]*")|([A-Za-z_][\w.]*)\s*:\s*(?=[A-Za-z_])""")
_MARK = "__in__"


@dataclasses.dataclass(frozen=True)
class Sum:
  """A weighted sum of losses; an objective averages each term by its own normaliser.

  Attributes:
    terms: (coefficient, loss) pairs, in order.
  """

  terms: tuple[tuple[float, Callable], ...]


def resolve(
  text: str | Callable | Sum, namespace: str, kind: str = "loss", inputs: tuple[str, ...] = ()
) -> Callable | Sum:
  """Returns the function that `text` names, with its keyword arguments bound.

  "ipo(beta=0.2)" is looked up in the module `namespace`, "my_pkg.losses:tilted(k=3)" in any;
  "logistic(beta=0.1) + 0.2*nll_chosen" is a `Sum`. A callable or a `Sum` comes back as it is:
  research code passes functions, flags pass strings. Nothing is compiled or evaluated.

  Args:
    text: the spec.
    namespace: dotted name of the module where bare names live: its own public functions, or those
      that its `__all__` lists.
    kind: what errors call it.
    inputs: parameters that are no options whatever their annotation.

  Raises:
    UserError: bad syntax, an unknown module, name or keyword, a keyword of the wrong type, or a
      required keyword that is missing; with the nearest valid name.
  """
  if isinstance(text, Sum) or callable(text):
    return text
  try:
    marked = _COLON.sub(lambda m: m[1] if m[1] else f"{m[2]}.{_MARK}.", text.strip())
    terms = _terms(ast.parse(marked, mode="eval").body, 1.0)
    found = [(weight, _call(node, f"{kind} {text!r}")) for weight, node in terms]
  except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as e:
    raise UserError(f"cannot read {kind} {text!r}: {_SHAPE}") from e
  bound = tuple(
    (weight, _bind(*call, namespace, f"{kind} {text!r}", inputs)) for weight, call in found
  )
  if len(bound) == 1 and bound[0][0] == 1.0:
    return bound[0][1]
  return Sum(bound)


def terms_of(loss: Callable | Sum) -> tuple[tuple[float, Callable], ...]:
  """Returns the (coefficient, loss) pairs of a loss; one of coefficient 1 for a plain function."""
  return loss.terms if isinstance(loss, Sum) else ((1.0, loss),)


def _terms(node: ast.expr, weight: float) -> list[tuple[float, ast.expr]]:
  """Flattens a + b - 0.5*c into [(weight, call), ...]."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
    sign = -1.0 if isinstance(node.op, ast.Sub) else 1.0
    return _terms(node.left, weight) + _terms(node.right, sign * weight)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
    if isinstance(node.right, ast.Constant):
      return _terms(node.left, weight * float(ast.literal_eval(node.right)))
    return _terms(node.right, weight * float(ast.literal_eval(node.left)))
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return _terms(node.operand, -weight)
  return [(weight, node)]


def _call(node: ast.expr, text: str) -> tuple[str, str, dict]:
  """Splits one term into (module or "", name, keyword arguments)."""
  kwargs = {}
  if isinstance(node, ast.Call):
    if node.args or any(k.arg is None for k in node.keywords):
      raise UserError(f"{text}: arguments must be keywords, as in name(key=literal)")
    if len({k.arg for k in node.keywords}) < len(node.keywords):
      raise UserError(f"{text}: a keyword is given twice")
    try:
      kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except ValueError as e:
      raise UserError(f"{text}: the value of a keyword must be a literal") from e
    node = node.func
  module, mark, name = ast.unparse(node).rpartition(f".{_MARK}.")
  if not (name.isidentifier() and isinstance(node, ast.Name | ast.Attribute)):
    raise ValueError(name)
  if isinstance(node, ast.Attribute) != bool(mark) or _MARK in module:
    raise ValueError(name)
  return module, name, kwargs


def _bind(
  module: str, name: str, kwargs: dict, namespace: str, text: str, inputs: tuple[str, ...]
) -> Callable:
  home = module if module else namespace
  try:
    found = importlib.import_module(home)
  except ImportError as e:
    raise UserError(f"{text}: cannot import the module {home!r} ({e})") from e
  names = _public(found)
  if name not in names:
    raise UserError(f"{text}: {home} has no {name!r}{nearest(name, names)}")
  fn = getattr(found, name)
  _check_keywords(fn, kwargs, text, inputs)
  return functools.partial(fn, **kwargs) if kwargs else fn


def _public(module: types.ModuleType) -> list[str]:
  """The names in `__all__`, or the public functions that `module` itself defines."""
  if hasattr(module, "__all__"):
    return list(module.__all__)
  return [
    name
    for name, value in vars(module).items()
    if not name.startswith("_")
    and callable(value)
    and not inspect.isclass(value)
    and getattr(value, "__module__", None) == module.__name__
  ]


def _check_keywords(fn: Callable, kwargs: dict, text: str, inputs: tuple[str, ...]) -> None:
  """Raises UserError unless `kwargs` are options of `fn` and no required option is missing."""
  name = getattr(fn, "__name__", "it")
  parameters = inspect.signature(fn, eval_str=True).parameters.values()
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return
  # A parameter without a default is an input, unless its annotation says that it is a number.
  options = {
    p.name: p.annotation
    for p in parameters
    if p.default is not p.empty or p.kind is p.KEYWORD_ONLY or _is_literal(p.annotation)
    if p.name not in inputs
  }
  for key, value in kwargs.items():
    if key not in options:
      hint = nearest(key, options) if options else "; it has none"
      raise UserError(f"{text}: {name} has no keyword {key!r}{hint}")
    if not _fits(value, options[key]):
      raise UserError(f"{text}: {name}'s {key} cannot be {value!r}")
  missing = [p.name for p in parameters if p.name in options and p.default is p.empty]
  missing = [key for key in missing if key not in kwargs]
  if missing:
    raise UserError(f"{text}: {name} needs {', '.join(f'{key}=...' for key in missing)}")


def _is_literal(annotation) -> bool:
  return annotation in (bool, int, float, str)


def _fits(value, annotation) -> bool:
  """Whether a literal may go where `annotation` stands; what it cannot judge fits."""
  origin = typing.get_origin(annotation)
  if origin in (tuple, list, dict):
    return isinstance(value, origin)
  kinds = {
    kind
    for kind in typing.get_args(annotation) or (annotation,)
    if not getattr(kind, "__name__", "").endswith("Array")
  }
  if not kinds <= {bool, int, float, str, type(None)}:
    return True
  return type(value) in kinds or (type(value) is int and float in kinds)
