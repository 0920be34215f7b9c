"""The file format safetensors, by our own reader: a header of JSON, then the bytes of tensors.

A file is data only, but its header may lie. All of it is checked before a tensor is read: known
types, sizes that are those of the shapes, parts that touch and never overlap, nothing left over.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.errors import UserError

DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(jnp.bfloat16),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}
WRITTEN = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_HEADER = 100_000_000  # Bytes, as the format has it.
_MOST_DIMENSIONS = 8
_MOST_NUMBERS = 1 << 48  # Of a tensor.


class File:
  """The tensors of one file; opening reads the header alone.

  Attributes:
    path: of the file.
    tensors: {name: (dtype, shape, first byte, bytes)}.

  Raises:
    UserError: if it is no such file, or its header does not fit its bytes.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    try:
      with open(self.path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER):
          raise UserError(
            self._bad(f"its header is to have {length:,} bytes, the file has {size:,}")
          )
        header = file.read(length)
    except OSError as error:
      raise UserError(f"{self.path}: {error.strerror}") from error
    except ValueError as error:  # The name of a file that an index gives may be none.
      raise UserError(f"{self.path}: {error}") from error
    self.tensors = self._parsed(header, 8 + length, size)

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor, read from the disk now."""
    dtype, shape, first, _ = self.tensors[name]
    count = math.prod(shape)
    found = np.fromfile(self.path, dtype, count, offset=first)
    if len(found) != count:
      raise UserError(self._bad(f"it ends within tensor {name}"))
    return found.reshape(shape)

  def _bad(self, why: str) -> str:
    return f"{self.path}: {why}; this is no whole safetensors file: fetch it again"

  def _parsed(self, header: bytes, begin: int, size: int) -> dict[str, tuple]:
    try:
      rows = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
      if not isinstance(rows, dict):
        raise ValueError("no object")
    except (ValueError, RecursionError) as error:
      raise UserError(self._bad(f"its header cannot be read ({error})")) from error
    rows.pop("__metadata__", None)
    found = {name: self._entry(name, row, begin, size) for name, row in rows.items()}
    at = begin
    for name, (_, _, first, count) in sorted(found.items(), key=lambda item: item[1][2:]):
      if first != at:
        raise UserError(self._bad(f"tensor {name} overlaps another, or leaves a hole"))
      at += count
    if at != size:
      raise UserError(self._bad(f"{size - at:,} bytes belong to no tensor"))
    return found

  def _entry(self, name: str, row: Any, begin: int, size: int) -> tuple:
    try:
      kind, shape, (first, end) = row["dtype"], row["shape"], row["data_offsets"]
      whole = len(shape) <= _MOST_DIMENSIONS
      whole = whole and all(type(n) is int and n >= 0 for n in (*shape, first, end))
      # NumPy counts the other dimensions of an array that is empty.
      whole = whole and math.prod(n for n in shape if n) < _MOST_NUMBERS
      if kind not in DTYPES or not whole:
        raise ValueError(f"dtype {kind}, shape {shape}, bytes {first} to {end}")
      wanted = math.prod(shape) * DTYPES[kind].itemsize
      if end - first != wanted or begin + end > size:
        raise ValueError(f"shape {shape} of {kind} needs {wanted:,} bytes, it has {end - first:,}")
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(self._bad(f"tensor {name[:200]} is not described ({error})")) from error
    return DTYPES[kind], tuple(shape), begin + first, wanted


def write(
  path: str | os.PathLike[str],
  shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
  get: Callable[[str], np.ndarray],
) -> None:
  """Writes tensors one by one; the file appears only when it is complete.

  Args:
    path: of the file.
    shapes: {name: (dtype, shape)}, in order.
    get: name -> the tensor.

  Raises:
    ValueError: if a tensor is not what `shapes` says.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # Libraries refuse files without it.
  at = 0
  for name, (dtype, shape) in shapes.items():
    end = at + math.prod(shape) * dtype.itemsize
    header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
    at = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  temporary = f"{os.fspath(path)}.part"
  with open(temporary, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, (dtype, shape) in shapes.items():
      tensor = get(name)
      if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, {dtype} {shape} was announced")
      np.ascontiguousarray(tensor).tofile(file)
  os.replace(temporary, path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a name stands twice")
  return found
