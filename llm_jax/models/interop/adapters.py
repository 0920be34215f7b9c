"""LoRA and DoRA adapters in PEFT's format, in and out: adapter_config.json and safetensors.

PEFT adapts their modules, which may hold queries, keys and values in one matrix. Ours are three
layers: coming in they share A, and going out their As are stacked unless they are still the same.
Shape letters: r rank.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.errors import UserError
from llm_jax.models import lora
from llm_jax.models.interop import configs, safetensors
from llm_jax.models.interop.folder import appearing, floats, read_json, where
from llm_jax.models.interop.weights import Fused, Rule, tensors
from llm_jax.models.language_model import LanguageModel
from llm_jax.types import Params

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {
  ".lora_A.weight": "a",
  ".lora_B.weight": "b",
  ".lora_magnitude_vector": "magnitude",
  ".lora_magnitude_vector.weight": "magnitude",
}
# What would change the result, by the values that do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
  "bias": ("none",),
  "modules_to_save": (None, []),
  "trainable_token_indices": (None, [], {}),
  "target_parameters": (None, []),
  "layer_replication": (None, []),
  "lora_bias": (None, False),
  "use_qalora": (None, False),
  "use_bdlora": (None, False),
  "alora_invocation_tokens": (None, []),
  "arrow_config": (None,),
  "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
_NAME = re.compile(r"\^?[\w.]+")
_MOST = 1e9  # Of a number: what it multiplies stays in float32.


class _Module(NamedTuple):
  """One of their modules that can have an adapter."""

  rule: Rule
  layer: int

  @property
  def whole(self) -> Rule:
    """The rule of a matrix whose rows are outputs, whatever the kernel's are."""
    return dataclasses.replace(self.rule, turned=True)


def load_adapter(directory: str | os.PathLike[str], model: LanguageModel) -> Params:
  """Reads a folder that `save_pretrained` of a PEFT model wrote.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    model: that the adapter is for, as `load` gives it.

  Returns:
    The adapter: `{**params, "lora": it}` are parameters with it, `lora.merge` puts it into them.

  Raises:
    UserError: for a file that is missing or damaged, another kind of adapter, a setting that is not
      known, and a tensor that does not fit the model or is not finite.
  """
  folder = pathlib.Path(directory)
  cfg = _settings(read_json(folder / _CONFIG), folder / _CONFIG)
  file = safetensors.File(folder / _WEIGHTS)
  modules = _fitting(file, model)
  found: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
  for name in file.tensors:
    end = next((end for end in _PARTS if name.endswith(end)), "")
    module = name.removeprefix(_PREFIX).removesuffix(end)
    if not end or module not in modules:
      raise UserError(f"{file.path}: tensor {name} fits no layer of this model")
    found[module][_PARTS[end]] = floats(file, name)
  tree: dict[str, Any] = {}
  for module, parts in found.items():
    if {"a", "b"} - set(parts) or ("magnitude" in parts) != bool(cfg.get("use_dora")):
      raise UserError(f"{file.path}: module {module} has {', '.join(sorted(parts))} alone")
    try:
      layers = _taken(modules[module], parts, _scale(cfg, module, parts["a"].shape[0]), model)
    except (ValueError, IndexError, ZeroDivisionError) as error:
      raise UserError(f"{file.path}: module {module} does not fit: {error}") from error
    for path, own in layers.items():
      lora.place(tree, where(path, modules[module].layer, False), own)
  if not tree:
    raise UserError(f"{file.path} holds no adapter")
  return _stacked(tree, model.cfg.layers, file.path) if model.cfg.scan else tree


def save_adapter(
  directory: str | os.PathLike[str],
  model: LanguageModel,
  adapter: Params,
  *,
  base: str = "",
  kind: str = "",
) -> None:
  """Writes a folder that PEFT, and `load_adapter`, read. It appears only when it is complete.

  Args:
    directory: is made.
    model: that the adapter is on.
    adapter: what is under "lora" in its parameters.
    base: name or folder of the model, for adapter_config.json.
    kind: model_type whose modules are named; "": what `save` would write.

  Raises:
    UserError: if the directory is not empty, or no architecture of theirs is this model.
  """
  modules, given = _modules(model, kind), dict(lora.adapted(adapter))
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, module in modules.items():
    own = [
      _of_layer(given, where(p, module.layer, model.cfg.scan), module.layer)
      for p in _layers(module)
    ]
    if any(own):
      found[name] = _given(module, own, model)
  fields = _fields(found, list(modules), base, bool(model.cfg.encoder_layers))
  flat = {
    f"{_PREFIX}{name}{end}": np.ascontiguousarray(parts[key], np.float32)
    for name, parts in found.items()
    for end, key in _PARTS.items()
    if key in parts and end != ".lora_magnitude_vector"
  }
  sizes = {name: (np.dtype("<f4"), array.shape) for name, array in flat.items()}
  with appearing(directory) as part:
    (part / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    safetensors.write(part / _WEIGHTS, sizes, flat.__getitem__)


def _settings(cfg: Mapping[str, Any], path: pathlib.Path) -> Mapping[str, Any]:
  if cfg.get("peft_type") != "LORA":
    raise UserError(f"{path}: peft_type is {cfg.get('peft_type')!r}, only LORA adapters are read")
  for name, allowed in _PLAIN.items():
    if cfg.get(name, allowed[0]) not in allowed:
      raise UserError(f"{path}: {name}={cfg[name]!r} is not supported; merge it with PEFT first")
  numbers = [cfg.get("r"), cfg.get("lora_alpha")]
  for name in ("rank_pattern", "alpha_pattern"):
    pattern = cfg.get(name) or {}
    if not isinstance(pattern, dict):
      raise UserError(f"{path}: {name} must be an object")
    for key in pattern if name == "alpha_pattern" else ():
      if not _NAME.fullmatch(key):  # An expression of others is not run.
        raise UserError(f'{path}: {name} has "{key}", only names of modules are read')
    numbers += pattern.values()
  if not all(type(n) in (int, float) and 0 < n <= _MOST for n in numbers):
    raise UserError(
      f"{path}: r and lora_alpha must be numbers above 0, up to {_MOST:g}, got {numbers}"
    )
  return cfg


def _scale(cfg: Mapping[str, Any], module: str, rank: int) -> float:
  alpha = cfg["lora_alpha"]
  for name, own in (cfg.get("alpha_pattern") or {}).items():
    ending = not name.startswith("^") and module.endswith(f".{name}")
    if ending or module == name.removeprefix("^"):
      alpha = own
      break
  return alpha / (math.sqrt(rank) if cfg.get("use_rslora") else rank)


def _fitting(file: safetensors.File, model: LanguageModel) -> dict[str, _Module]:
  """Returns the modules of the first architecture of theirs that this model is and the file names.

  A shape may be more than one, such as Falcon's and GPT-NeoX's.
  """
  found = None
  for kind in configs.ARCHITECTURES:
    try:
      configs.write(model.cfg, kind)
    except UserError:
      continue
    modules = _modules(model, kind)
    found = modules if found is None else found
    if any(name.removeprefix(_PREFIX).startswith(tuple(modules)) for name in file.tensors):
      return modules
  return _modules(model) if found is None else found


def _modules(model: LanguageModel, kind: str = "") -> dict[str, _Module]:
  """Returns {their name: module} of all dense layers in blocks."""
  kind = kind if kind else configs.write(model.cfg)["model_type"]
  rules = configs.ARCHITECTURES[kind].rules(configs.canonical(model.cfg))
  return {
    name.removesuffix(".weight"): _Module(rule, layer)
    for name, (rule, layer) in tensors(rules, model.cfg).items()
    if layer >= 0 and all(path.endswith("/kernel") for path in rule.paths)
  }


def _layers(module: _Module) -> list[str]:
  return [path.removesuffix("/kernel") for path in module.rule.paths]


def _taken(
  module: _Module, parts: Mapping[str, np.ndarray], scale: float, model: LanguageModel
) -> dict[str, dict[str, np.ndarray]]:
  """Returns {layer of ours: its adapter} of a module of theirs."""
  shape = configs.canonical(model.cfg)
  a, b = parts["a"], parts["b"]
  if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
    raise ValueError(f"A {a.shape} and B {b.shape} are no [r, in] and [out, r]")
  found = {}
  ups = module.whole.take(b, shape)
  lengths = module.whole.take(parts["magnitude"].reshape(-1), shape) if len(parts) > 2 else None
  for i, (layer, up) in enumerate(zip(_layers(module), ups, strict=True)):
    own = {"a": np.ascontiguousarray(a.T), "b": np.ascontiguousarray(up)}
    if lengths is not None:
      own["magnitude"] = lengths[i]
    _check(model, layer, own)
    found[layer] = own | {"scale": np.float32(scale)}
  return found


def _check(model: LanguageModel, layer: str, own: Mapping[str, np.ndarray]) -> None:
  cfg, name = configs.canonical(model.cfg), layer.rsplit("/", 1)[1]
  heads, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  sides = {
    "q": (cfg.dim, heads), "k": (cfg.dim, kv), "v": (cfg.dim, kv), "o": (heads, cfg.dim),
    "gate": (cfg.dim, cfg.hidden), "up": (cfg.dim, cfg.hidden), "down": (cfg.hidden, cfg.dim),
  }  # fmt: skip
  got = own["a"].shape[0], own["b"].shape[1]
  if got != sides[name] or own.get("magnitude", own["b"][0]).shape != got[1:]:
    wide, out = sides[name]
    raise ValueError(f"it is from {got[0]} to {got[1]}, the layer from {wide} to {out}")


def _stacked(tree: Params, count: int, path: pathlib.Path) -> Params:
  """The adapter of an unrolled decoder as that of a scanned one."""
  blocks = [dict(lora.adapted(tree.get(f"blocks_{i}", {}))) for i in range(count)]
  shapes = [{at: own["a"].shape for at, own in block.items()} for block in blocks]
  if any(other != shapes[0] for other in shapes):
    raise UserError(f"{path}: not all layers have the same adapter: load it with scan=False")
  stacked: dict[str, Any] = {}
  for at in blocks[0]:
    own = {name: np.stack([block[at][name] for block in blocks]) for name in blocks[0][at]}
    lora.place(stacked, ("blocks", *at), own)
  return stacked


def _of_layer(
  given: Mapping[tuple[str, ...], Params], path: tuple[str, ...], layer: int
) -> dict[str, np.ndarray]:
  own = given.get(path, {})
  stacked = bool(own) and np.ndim(own["a"]) == 3
  return {name: np.asarray(value[layer] if stacked else value) for name, value in own.items()}


def _given(
  module: _Module, own: Sequence[Mapping[str, np.ndarray]], model: LanguageModel
) -> dict[str, np.ndarray]:
  """Returns A [r, in], B [out, r], the scale, and m [out] of DoRA, of a module of theirs."""
  shape = configs.canonical(model.cfg)
  first = next(part for part in own if part)
  if isinstance(module.rule, Fused):
    widths = [shape.heads * shape.head_dim] + 2 * [shape.kv_heads * shape.head_dim]
    if any("magnitude" in part for part in own) and not all(own):
      raise UserError(
        "an adapter with magnitudes of q, k or v alone has no form in this model_type"
      )
    a, ups = _combined(own, first, widths)
  else:
    a, ups = first["a"], [first["b"]]
  found = {"a": a.T, "b": module.whole.give(ups, shape), "scale": first["scale"]}
  if "magnitude" in first:
    found["magnitude"] = module.whole.give([part["magnitude"] for part in own], shape)
  return found


def _combined(
  own: Sequence[Mapping[str, np.ndarray]], first: Mapping[str, np.ndarray], widths: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
  """Returns one A, and for each of q, k and v the B on it that gives what it gave on its own."""
  if all(part and np.array_equal(part["a"], first["a"]) for part in own):
    return first["a"], [part["b"] * (part["scale"] / first["scale"]) for part in own]
  downs = [part["a"] for part in own if part]
  total, ups, at = sum(a.shape[1] for a in downs), [], 0
  for part, width in zip(own, widths, strict=True):
    up = np.zeros((total, width), np.float32)
    if part:
      rank = part["a"].shape[1]
      up[at : at + rank] = part["b"] * (part["scale"] / first["scale"])
      at += rank
    ups.append(up)
  return np.concatenate(downs, axis=1), ups


def _fields(
  found: Mapping[str, Mapping[str, np.ndarray]], modules: Sequence[str], base: str, seq2seq: bool
) -> dict[str, Any]:
  ranks = {name: parts["a"].shape[0] for name, parts in found.items()}
  alphas = {name: _number(float(found[name]["scale"]) * rank) for name, rank in ranks.items()}
  if not found:
    raise UserError("there is no adapter to write")
  rank = collections.Counter(ranks.values()).most_common(1)[0][0]
  alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
  targets = set()
  for name in found:
    last = name.rsplit(".", 1)[1]
    every = all(other in found for other in modules if other.rsplit(".", 1)[1] == last)
    targets.add(last if every else name)
  return {
    "peft_type": "LORA",
    "task_type": "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": rank,
    "lora_alpha": alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": any(".c_attn" in name or ".c_proj" in name for name in modules),
    "target_modules": sorted(targets),
    "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
    "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
    "use_dora": any("magnitude" in parts for parts in found.values()),
    "use_rslora": False,
    "modules_to_save": None,
  }


def _number(alpha: float) -> int | float:
  return round(alpha) if abs(alpha - round(alpha)) < 1e-5 else alpha
