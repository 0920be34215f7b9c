"""Folders of Hugging Face, config.json and safetensors, to a model and parameters, and back.

Tensor by tensor: memory holds the parameters, and one tensor more. No code and no pickle is read.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.models import lora
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.interop import configs, safetensors
from llm_jax.models.interop.weights import Architecture, Rule, tensors
from llm_jax.models.language_model import LanguageModel
from llm_jax.models.transformer import Transformer
from llm_jax.types import Params

# (path, array, name of each axis) -> what stands in the tree for it.
Put = Callable[[str, np.ndarray, tuple[str | None, ...]], Any]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def load(
  directory: str | os.PathLike[str], *, scan: bool = False, put: Put | None = None
) -> tuple[LanguageModel, Params]:
  """Reads a folder that `save_pretrained` of transformers wrote.

  Args:
    directory: with config.json and model.safetensors, whole or in shards with their index.
    scan: whether layers are stacked, for a scanned decoder.
    put: takes each parameter as soon as it is complete, float32, to where it shall be: the method
      `put` of train/parallel.py's placements for one; None: it stays a NumPy array.

  Returns:
    (model, parameters): a `Transformer` or, of T5's kind, an `EncoderDecoder`;
    `model.apply(parameters, tokens, method="logits")` runs it.

  Raises:
    UserError: for a file that is missing or damaged, an architecture or a setting that is not
      known, and a tensor that is missing, of another shape, of no use here, or not finite.
  """
  folder = pathlib.Path(directory)
  hf = read_json(folder / "config.json")
  shape = configs.read(hf, str(folder / "config.json"))
  shape.scan = scan
  kind = configs.ARCHITECTURES[hf["model_type"]]
  names = _names(folder, kind)
  if shape.encoder_layers and not shape.tied_scale and kind.head in names:
    shape.tied = False
  solved = configs.canonical(shape)
  _check_sizes(folder, solved, names)
  wanted = tensors(kind.rules(solved), shape)
  _check_names(folder, wanted, names, kind, shape)
  tree = _Tree(shape, put or (lambda _, array, names: np.ascontiguousarray(array)))
  for name, (rule, layer) in wanted.items():
    file, own = names[name]
    tensor = floats(file, own)
    try:
      arrays = rule.take(tensor, solved)
    except ValueError as error:
      raise UserError(
        f"{file.path}: tensor {own} has {error}: config.json is of another"
      ) from error
    for path, array in zip(rule.paths, arrays, strict=True):
      tree.add(path, layer, array, f"{file.path}: tensor {own}")
    del tensor, arrays, array  # Before the next one is read.
  return model_of(shape), tree.whole(folder)


def save(
  directory: str | os.PathLike[str],
  model: LanguageModel,
  params: Params,
  *,
  kind: str = "",
  dtype: str = "float32",
  shard_bytes: int = 5_000_000_000,
  more: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that transformers, and `load`, read. It appears only when it is complete.

  Args:
    directory: is made.
    model: whose parameters they are.
    params: its parameters, any arrays.
    kind: model_type to write, "llama" for one; "": the first that can say all of the shape.
    dtype: float32, bfloat16 or float16, rounded to nearest; what is out of its range is an error.
    shard_bytes: a file has so many at most, but one tensor at least.
    more: further fields of config.json, such as {"eos_token_id": 1}.

  Raises:
    UserError: if the directory is not empty, no architecture of theirs is this model, or there are
      parameters that none of its tensors takes, such as an adapter's.
  """
  shape = model.cfg
  if dtype not in safetensors.WRITTEN:
    raise UserError(f'dtype "{dtype}" is unknown{nearest(dtype, safetensors.WRITTEN)}')
  fields = configs.write(shape, kind) | {"dtype": dtype, "torch_dtype": dtype} | dict(more or {})
  solved = configs.canonical(shape)
  wanted = tensors(configs.ARCHITECTURES[fields["model_type"]].rules(solved), shape)
  flat = _flat(params)
  taken = {_place(p, layer, shape.scan) for rule, layer in wanted.values() for p in rule.paths}
  if left := sorted(set(flat) - taken):
    hint = "; `lora.merge` puts an adapter into the weights" if left[0].startswith(lora.KEY) else ""
    raise UserError(f"a {fields['model_type']} has no place for {left[0]}{hint}")

  def get(name: str) -> np.ndarray:
    rule, layer = wanted[name]
    arrays = [_of_layer(flat, path, layer, shape.scan) for path in rule.paths]
    return _rounded(rule.give(arrays, solved), written, name)

  written = safetensors.DTYPES[safetensors.WRITTEN[dtype]]
  sizes = {name: (written, size) for name, size in _sizes(wanted, flat, solved, shape.scan).items()}
  with appearing(directory) as part:
    (part / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    _write_shards(part, sizes, get, shard_bytes)


@contextlib.contextmanager
def appearing(directory: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a folder to write to, which becomes `directory` when all is written.

  Raises:
    UserError: if the directory is there and not empty.
  """
  folder = pathlib.Path(directory)
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty: name another folder")
  part = folder.with_name(f"{folder.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    yield part
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise
  if folder.exists():
    folder.rmdir()
  part.replace(folder)


class _Tree:
  """Parameters as they come in, each handed over when it is complete."""

  def __init__(self, shape: config.Model, put: Put):
    self._shape, self._put = shape, put
    self._wanted = _boxes(shape)
    self._done: dict[str, Any] = {}
    self._open: dict[str, tuple[np.ndarray, set[int]]] = {}  # Stacked layers.

  def add(self, path: str, layer: int, array: np.ndarray, what: str) -> None:
    stacked = layer >= 0 and self._shape.scan
    place = _place(path, layer, self._shape.scan)
    box = self._wanted[place]
    expected = nn.unbox(box).shape
    own = expected[1:] if stacked else expected
    if array.shape != own:
      raise UserError(f"{what} gives {place} as {array.shape}, config.json needs {own}")
    if not stacked:
      self._done[place] = self._put(place, array, box.names)
      return
    whole, seen = self._open.setdefault(place, (np.empty(expected, np.float32), set()))
    whole[layer] = array
    seen.add(layer)
    if len(seen) == self._shape.layers:
      del self._open[place]
      self._done[place] = self._put(place, whole, box.names)

  def whole(self, folder: pathlib.Path) -> Params:
    lost = sorted(set(self._wanted) - set(self._done))
    if lost:
      raise UserError(f"{folder}: nothing gives {lost[0]}, {len(lost)} parameters in all")
    tree: dict[str, Any] = {}
    for place, value in self._done.items():
      *parents, name = place.split("/")
      node = tree
      for parent in parents:
        node = node.setdefault(parent, {})
      node[name] = value
    return tree


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a file, or raises UserError."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
      raise ValueError("no object")
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}: name a folder with {path.name}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} cannot be read ({error})") from error
  return found


def _names(folder: pathlib.Path, kind: Architecture) -> dict[str, tuple[safetensors.File, str]]:
  """Returns {full name: (file, name in it)} of all tensors.

  Raises:
    UserError: if a file is missing, or the index does not fit the files.
  """
  if (folder / _INDEX).exists():
    listed = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
      raise UserError(f"{folder / _INDEX} has no weight_map of file names")
    bad = [file for file in listed.values() if pathlib.PurePath(file).name != file]
    if bad:
      raise UserError(f'{folder / _INDEX}: "{bad[0]}" is no file of the folder')
    files = {name: safetensors.File(folder / name) for name in sorted(set(listed.values()))}
    for tensor, file in listed.items():
      if tensor not in files[file].tensors:
        raise UserError(f"{folder / file} lacks tensor {tensor} of {_INDEX}: fetch both again")
  elif (folder / _SINGLE).exists():
    files = {_SINGLE: safetensors.File(folder / _SINGLE)}
  else:
    other = next(folder.glob("*.bin"), None)
    hint = (
      f"; {other.name} is pickle, which is not read: convert it with transformers" if other else ""
    )
    raise UserError(f"{folder} has neither {_SINGLE} nor {_INDEX}{hint}")
  found = {own: (file, own) for file in files.values() for own in file.tensors}
  if not any(name.startswith(kind.prefix) for name in found):  # A decoder saved without its head.
    found = {n if n == kind.head else f"{kind.prefix}{n}": value for n, value in found.items()}
  return found


def _check_sizes(
  folder: pathlib.Path, shape: config.Model, names: Mapping[str, tuple[safetensors.File, str]]
) -> None:
  """Refuses a shape that these files cannot hold, before its size takes time or memory."""
  held = sum(math.prod(file.tensors[own][1]) for file, own in names.values())
  for name in ("vocab_size", "dim", "heads", "head_dim", "hidden", "relative_buckets"):
    if getattr(shape, name) > held:
      raise UserError(
        f"{folder}: config.json asks for {name}={getattr(shape, name):,}, and the files hold "
        f"{held:,} numbers in all: they are not of one model"
      )


def _check_names(
  folder: pathlib.Path,
  wanted: Mapping[str, Any],
  names: Mapping[str, tuple[safetensors.File, str]],
  kind: Architecture,
  shape: config.Model,
) -> None:
  lost = sorted(set(wanted) - set(names))
  if lost:
    raise UserError(f"{folder} lacks tensor {lost[0]}, {len(lost)} in all: the files are not whole")
  for name in sorted(set(names) - set(wanted)):
    if name == kind.head and shape.tied:
      continue
    if not name.endswith(kind.buffers):
      raise UserError(f"{folder}: tensor {name} is of no use to the architecture of config.json")


def floats(file: safetensors.File, name: str) -> np.ndarray:
  """Returns a tensor as float32, or raises UserError if it has other than finite numbers."""
  tensor = file.read(name)
  if tensor.dtype.kind in "iub":
    raise UserError(f"{file.path}: tensor {name} is {tensor.dtype}: quantised weights are not read")
  tensor = tensor.astype(np.float32, copy=False)
  if not np.isfinite(tensor).all():
    raise UserError(f"{file.path}: tensor {name} is not finite (NaN or infinity in it)")
  return tensor


def _boxes(shape: config.Model) -> dict[str, nn.Partitioned]:
  """Returns {path: shape and names of axes} of all parameters."""
  ids, model = jnp.zeros((1, 2), jnp.int32), model_of(shape)
  given = (ids, ids) if shape.encoder_layers else (ids,)
  made = jax.eval_shape(model.init, jax.random.key(0), *given)["params"]
  boxed = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
  leaves = jax.tree_util.tree_leaves_with_path(made, is_leaf=boxed)
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def model_of(shape: config.Model) -> LanguageModel:
  """Returns the decoder or encoder-decoder of a shape."""
  kind = EncoderDecoder if shape.encoder_layers else Transformer
  return kind.from_config(shape)


def _flat(params: Params) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(nn.unbox(params))[0]
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def _of_layer(flat: Mapping[str, Any], path: str, layer: int, scan: bool) -> np.ndarray:
  array = flat[_place(path, layer, scan)]
  return np.asarray(array[layer] if scan and layer >= 0 else array)


def where(path: str, layer: int, scan: bool) -> tuple[str, ...]:
  """Returns where a rule's path is in the tree, of layers that are stacked or not."""
  return tuple(_place(path, layer, scan).split("/"))


def _place(path: str, layer: int, scan: bool) -> str:
  return path.replace("blocks_{i}", "blocks") if scan else path.replace("{i}", str(layer))


def _rounded(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  with np.errstate(over="ignore"):
    found = np.ascontiguousarray(array, dtype)
  if not np.isfinite(found).all():
    raise UserError(f"tensor {name} has values that {dtype} cannot hold: write it as float32")
  return found


def _sizes(
  wanted: Mapping[str, tuple[Rule, int]], flat: Mapping[str, Any], shape: config.Model, scan: bool
) -> dict[str, tuple[int, ...]]:
  """Returns {name: shape} of the tensors to be written, without touching the weights."""
  found = {}
  for name, (rule, layer) in wanted.items():
    empty = []
    for path in rule.paths:
      whole = flat[_place(path, layer, scan)].shape
      own = whole[1:] if scan and layer >= 0 else whole
      empty.append(np.broadcast_to(np.float32(0), own))
    found[name] = rule.give(empty, shape).shape
  return found


def _write_shards(
  folder: pathlib.Path,
  sizes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
  get: Callable[[str], np.ndarray],
  shard_bytes: int,
) -> None:
  shards: list[dict] = [{}]
  held = total = 0
  for name, (dtype, shape) in sizes.items():
    size = math.prod(shape) * dtype.itemsize
    if shards[-1] and held + size > shard_bytes:
      shards.append({})
      held = 0
    shards[-1][name] = dtype, shape
    held += size
    total += size
  if len(shards) == 1:
    safetensors.write(folder / _SINGLE, shards[0], get)
    return
  placed = {}
  for i, shard in enumerate(shards):
    file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    safetensors.write(folder / file, shard, get)
    placed |= dict.fromkeys(shard, file)
  index = {"metadata": {"total_size": total}, "weight_map": placed}
  (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
