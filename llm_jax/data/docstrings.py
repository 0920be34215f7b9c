"""Documented objects of a Python module: from its source without importing it, or by inspection."""

import ast
import dataclasses
import inspect
import re
import types
from collections.abc import Iterator

_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`(~?)([^`<>]*?)(?:\s*<[^<>`]*>)?`")
_CALL = re.compile(r"^(?:[\w.]+\.)?(\w+)(\(.*?\))\s*(?:->\s*(\S.*))?$")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DIRECTIVE = re.compile(r"^( *)\.\. ([\w-]+):: ?(.*)$", re.MULTILINE)
_SPOKEN = {"note", "warning", "important", "tip", "caution", "attention", "seealso", "danger"}
_DOUBLE = re.compile("(?<!`)``(?!`)")  # Three open a block of code.
_LITERAL = re.compile(r" ?::$", re.MULTILINE)
# Sphinx's fields; a text that starts on the next line is drawn up.
_TYPE = re.compile(r"^ *:type [^:\n]*:.*\n?", re.MULTILINE)
_PARAM = re.compile(
  r"^( *):(?:param|parameter|arg|argument|key|keyword|ivar|cvar|var)\s+(?:[^:\n]*\s)?"
  r"(\*{0,2}\w+):[ ]*\n?[ ]*",
  re.MULTILINE,
)
_RESULT = re.compile(r"^( *):(returns?|rtype|raises?[^:\n]*|yields?):[ ]*\n?[ ]*", re.MULTILINE)
_LONGEST_DEFAULT = 24  # Characters; a longer default value says "...".
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Entry:
  """One documented object.

  Attributes:
    module: dotted name of the module.
    qualname: name inside the module, "" for the module itself.
    kind: function | class | method | module.
    signature: `shorten(text, width, **kwargs)`: no annotations, no self; a module's name.
    doc: docstring, indentation and roles of reStructuredText removed; may be "".
    package: "stdlib" or the distribution's name.
    url: address of the page that it stands on.
  """

  module: str
  qualname: str
  kind: str
  signature: str
  doc: str
  package: str
  url: str


def unmark(text: str) -> str:
  """Returns reStructuredText as plain text: no roles and directives, ``x`` as `x`, `::` as `:`."""
  if "::" in text:
    text = _LITERAL.sub(":", _DIRECTIVE.sub(_spoken, text))
  if "`" not in text:
    return text
  text = _ROLE.sub(lambda m: m[2].rpartition(".")[2] if m[1] else m[2], text)
  return _DOUBLE.sub("`", text)


def fields(text: str) -> str:
  """Returns `text` with Sphinx's `:param x:` as list items, their types left out."""
  text = _PARAM.sub(r"\1- \2: ", _TYPE.sub("", text))
  return _RESULT.sub(lambda m: f"{m[1]}- {' '.join(m[2].capitalize().split())}: ", text)


def from_source(source: str, module: str, package: str, url: str) -> list[Entry]:
  """Returns the module and its public objects in the order of the source; [] if it has an error."""
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError):
    return []
  found = [Entry(module, "", "module", module, _doc(tree), package, url)]
  for name, kind, node in _walk(tree.body, ""):
    signature = _class_signature(node) if kind == "class" else _signature(node)
    found.append(Entry(module, name, kind, signature, _doc(node), package, url))
  return list({entry.qualname: entry for entry in reversed(found)}.values())[::-1]


def from_module(module: types.ModuleType, package: str, address) -> list[Entry]:
  """Returns the documented public objects of an imported module, sorted by name.

  An object counts to the module that it says it belongs to (`_collections.deque` to collections).

  Args:
    module: typically one that is written in C, so that it has no source to read.
    package: goes into the entries.
    address: function from a module's name to the address of its page.
  """
  name = module.__name__
  found = [Entry(name, "", "module", name, _clean(module.__doc__), package, address(name))]
  for key, value in sorted(vars(module).items()):
    if key.startswith("_") or not (callable(value) and getattr(value, "__doc__", None)):
      continue
    owner = getattr(value, "__module__", None) or name
    if inspect.isclass(value):
      found.append(_inspected(owner, key, "class", value, package, address))
      for method, function in sorted(vars(value).items()):
        if not method.startswith("_") and callable(function) and function.__doc__:
          full = f"{key}.{method}"
          found.append(_inspected(owner, full, "method", function, package, address))
    elif inspect.isroutine(value):
      found.append(_inspected(owner, key, "function", value, package, address))
  return found


def _spoken(directive: re.Match) -> str:
  """`.. note:: x` becomes `Note: x`, what only a renderer needs goes."""
  indent, name, text = directive.groups()
  return f"{indent}{name.capitalize()}: {text}".rstrip() if name in _SPOKEN else ""


def _walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str, ast.AST]]:
  """Yields (qualified name, kind, node) of public definitions, also those under `if` and `try`."""
  for node in body:
    if isinstance(node, _Function | ast.ClassDef):
      if node.name.startswith("_"):
        continue
      name = prefix + node.name
      if isinstance(node, ast.ClassDef):
        yield name, "class", node
        yield from _walk(node.body, f"{name}.")
      else:
        yield name, "method" if prefix else "function", node
    elif isinstance(node, ast.If | ast.Try):
      for part in ("body", "orelse", "finalbody"):
        yield from _walk(getattr(node, part, []), prefix)
      for handler in getattr(node, "handlers", []):
        yield from _walk(handler.body, prefix)


def _doc(node: ast.AST) -> str:
  return _clean(ast.get_docstring(node, clean=False))


def _clean(doc: object) -> str:
  return unmark(inspect.cleandoc(doc)).strip() if isinstance(doc, str) else ""


def _signature(node: _Function, name: str = "", bound: bool = False) -> str:
  """Returns `name(arguments)`; a property is its name alone."""
  decorators = {_last_name(decorator) for decorator in node.decorator_list}
  if {"property", "cached_property"} & decorators:
    return node.name
  args = node.args
  positional = [*args.posonlyargs, *args.args]
  defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
  parts = []
  for i, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
    if i == 0 and (bound or arg.arg in ("self", "cls", "mcs")):
      continue
    parts.append(_argument(arg, default))
    if i == len(args.posonlyargs) - 1:
      parts.append("/")
  if args.vararg:
    parts.append(f"*{args.vararg.arg}")
  elif args.kwonlyargs:
    parts.append("*")
  for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
    parts.append(_argument(arg, default))
  if args.kwarg:
    parts.append(f"**{args.kwarg.arg}")
  return f"{name or node.name}({', '.join(parts)})"


def _class_signature(node: ast.ClassDef) -> str:
  for part in node.body:
    if isinstance(part, ast.FunctionDef) and part.name == "__init__":
      return _signature(part, node.name, bound=True)
  if any(_last_name(decorator) == "dataclass" for decorator in node.decorator_list):
    fields = [
      _argument(ast.arg(part.target.id), part.value)
      for part in node.body
      if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    return f"{node.name}({', '.join(fields)})"
  return node.name


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
  if default is None:
    return arg.arg
  text = ast.unparse(default)
  return f"{arg.arg}={text if len(text) <= _LONGEST_DEFAULT and text.isprintable() else '...'}"


def _last_name(decorator: ast.expr) -> str:
  node = decorator.func if isinstance(decorator, ast.Call) else decorator
  return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _inspected(
  module: str, qualname: str, kind: str, value: object, package: str, address
) -> Entry:
  doc = _clean(value.__doc__)
  name = qualname.rpartition(".")[2]
  signature, doc = _leading_calls(name, doc)
  try:
    parameters = list(inspect.signature(value).parameters.values())
    if parameters and parameters[0].name in ("self", "cls", "type", "mcs") and kind != "function":
      parameters = parameters[1:]
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    signature = f"{name}{inspect.Signature(bare)}"
  except (ValueError, TypeError):
    pass  # Many C functions have none; then the docstring's first line tells it, or nobody.
  signature = _ADDRESS.sub("", signature)
  return Entry(module, qualname, kind, signature, doc, package, address(module))


def _leading_calls(name: str, doc: str) -> tuple[str, str]:
  """Splits `max(iterable, *[, key]) -> value` lines, C's way to give a signature, off `doc`."""
  lines = doc.split("\n")
  signature = name
  count = 0
  for line in lines:
    match = _CALL.match(line.strip())
    if not match or match[1] != name:
      break
    if count == 0:
      signature = name + match[2]
    count += 1
  return signature, "\n".join(lines[count:]).strip()
