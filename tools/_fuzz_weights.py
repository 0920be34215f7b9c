"""Fuzzes models of others: safetensors, config.json, adapters, tokenizers, and their conversion."""

import contextlib
import io
import json
import math
import pathlib
import random
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import interop, lora
from llm_jax.models.interop import configs, safetensors
from llm_jax.models.interop.folder import read_json
from llm_jax.models.interop.weights import tensors
from llm_jax.models.language_model import LanguageModel
from tools import _fuzz_inputs as inputs
from tools import convert_hf
from tools._fuzz_result import Result, refused
from tools._fuzz_tokenizers import Tokenizers

_SIZES = {
  "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
  "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
_LLAMA = _SIZES | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
_GEMMA = _LLAMA | {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
_ROPE3 = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}  # fmt: skip
_CAPS = {
  "query_pre_attn_scalar": 24, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
  "sliding_window": 5,
}  # fmt: skip
_GPT = {"vocab_size": 31, "layer_norm_epsilon": 1e-5}
# A small model of each architecture, as files of theirs describe it.
CONFIGS: dict[str, dict[str, Any]] = {
  "llama": _LLAMA | {"rope_theta": 5e5, "rope_scaling": _ROPE3, "tie_word_embeddings": False},
  "mistral": _LLAMA | {"sliding_window": 5, "rope_theta": 1e6},
  "qwen2": _LLAMA
  | {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention"]},
  "qwen3": _LLAMA | {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
  "gemma": _GEMMA,
  "gemma2": _GEMMA | _CAPS,
  "gemma3_text": _GEMMA
  | _CAPS
  | {
    "layer_types": ["sliding_attention"],
    "rope_parameters": {
      "full_attention": {"rope_type": "default", "rope_theta": 1e6},
      "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
  },
  "gpt2": _GPT
  | {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 32, "activation_function": "gelu_new"},
  "gpt_neox": _SIZES
  | {"rotary_pct": 0.5, "rotary_emb_base": 1e4, "layer_norm_eps": 1e-5, "hidden_act": "gelu"},
  "falcon": _GPT
  | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2}
  | {"new_decoder_architecture": True, "activation": "gelu"},
  "mpt": _GPT
  | {"d_model": 16, "n_layers": 1, "n_heads": 4, "expansion_ratio": 4, "max_seq_len": 32}
  | {"attn_config": {"attn_type": "multihead_attention", "alibi": True, "clip_qkv": 6.0}},
  "t5": {"vocab_size": 31, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
  | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16},
}
_NAMES = sorted({name for fields in CONFIGS.values() for name in fields} | {*_ROPE3, "model_type"})
_TENSOR = ("dtype", "shape", "data_offsets", "__metadata__")
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


class World:
  """Whole folders of small models, and one that is broken in each case."""

  def __init__(self, folder: pathlib.Path):
    self._case, self._out, self._file = folder / "case", folder / "out", folder / "file.safetensors"
    self._folders: dict[str, dict[str, bytes]] = {}
    for kind, fields in CONFIGS.items():
      model, params = _made({"model_type": kind} | fields)
      interop.save(folder / kind, model, params, kind=kind)
      self._folders[kind] = _read(folder / kind)
      if kind == "llama":
        interop.save(folder / "shards", model, params, shard_bytes=4000)
        self._folders["shards"] = _read(folder / "shards")
        self._adapted = model
        interop.save_adapter(folder / "adapter", model, _adapter(params))
        self._adapter = _read(folder / "adapter")
    shapes = {"a": (np.dtype("<f4"), (3, 2)), "b": (np.dtype("<i8"), (2,)), "c": (_BF16, (4, 0))}
    safetensors.write(self._file, shapes, lambda name: np.ones(shapes[name][1], shapes[name][0]))
    self._small = self._file.read_bytes()
    self._tokenizers = Tokenizers(folder)

  def close(self) -> None:
    """Nothing runs."""

  def case(self, rng: random.Random) -> Result:
    """Breaks one file and has it read."""
    ways = (self._one_file, self._one_config, self._folder, self._peft, self._convert)
    ways = (*ways, self._tokenizers.case)
    try:
      return rng.choices(ways, (36, 28, 20, 8, 2, 6))[0](rng)
    except UserError as error:
      return refused(error)

  def _one_file(self, rng: random.Random) -> Result:
    self._file.write_bytes(_tensors(rng, self._small))
    size = self._file.stat().st_size
    file = safetensors.File(self._file)
    read = {name: file.read(name) for name in file.tensors}
    header = int.from_bytes(self._file.read_bytes()[:8], "little")
    total = sum(tensor.nbytes for tensor in read.values())
    wrong = [n for n, (kind, shape, *_) in file.tensors.items() if (kind, shape) != _kind(read[n])]
    if wrong or total != size - 8 - header:
      return Result(True, f"tensors of {total} bytes, {size - 8 - header} are there; {wrong}")
    return Result(True)

  def _one_config(self, rng: random.Random) -> Result:
    self._fill({_CONFIG: self._config(rng, rng.choice(list(CONFIGS)))})
    shape = configs.read(read_json(self._case / _CONFIG))
    solved = configs.canonical(shape)
    kind = json.loads((self._case / _CONFIG).read_bytes())["model_type"]
    wanted = tensors(configs.ARCHITECTURES[kind].rules(solved), shape)
    numbers = [value for value in vars(solved).values() if isinstance(value, float)]
    if not wanted or not all(map(math.isfinite, numbers)):
      return Result(True, f"a shape that computes nothing: {solved}"[:500])
    return Result(True)

  def _folder(self, rng: random.Random) -> Result:
    self._broken(rng)
    _, params = interop.load(self._case, scan=rng.random() < 0.2)
    return Result(True, _odd(params))

  def _peft(self, rng: random.Random) -> Result:
    files = dict(self._adapter)
    if rng.random() < 0.5:
      name = "adapter_config.json"
      files[name] = inputs.dumps(rng, inputs.changed(rng, json.loads(files[name]), list(_PEFT)))
    else:
      files["adapter_model.safetensors"] = _tensors(rng, files["adapter_model.safetensors"])
    self._fill(files)
    return Result(True, _odd(interop.load_adapter(self._case, self._adapted)))

  def _convert(self, rng: random.Random) -> Result:
    """The tool, which ends with 0 and a run, or with 2, one line and nothing."""
    self._broken(rng)
    shutil.rmtree(self._out, ignore_errors=True)
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
      code = convert_hf.main([f"--hf={self._case}", f"--out={self._out}"])
    line = complaint.getvalue().removesuffix("\n")
    there = [p.name for p in (self._out, self._out.with_name("out.part")) if p.exists()]
    if code == 0:
      whole = there == ["out"] and (self._out / "model.json").exists() and not line
      return Result(True, "" if whole else f"a run that is not whole: {there} {line}")
    if code != 2 or there or not line.startswith("error: "):
      return Result(False, f"code {code}, left {there}, said {line[:300]!r}")
    return refused(UserError(line))

  def _broken(self, rng: random.Random) -> None:
    """Fills the folder of the case with a model, one of whose files is broken."""
    kind = rng.choice(list(self._folders))
    files = dict(self._folders[kind])
    name = rng.choice([_CONFIG, *(n for n in files if n != _CONFIG)])
    if name == _CONFIG:
      files[name] = self._config(rng, kind)
    elif name == _INDEX:
      files[name] = inputs.dumps(rng, inputs.changed(rng, json.loads(files[name]), list(files)))
    else:
      files[name] = _tensors(rng, files[name])
    if rng.random() < 0.05:
      del files[rng.choice(list(files))]
    self._fill(files)

  def _config(self, rng: random.Random, kind: str) -> bytes:
    if rng.random() < 0.1:
      return inputs.broken(rng, self._folders[kind][_CONFIG])
    own = {"model_type": kind} | CONFIGS.get(kind, {})
    if rng.random() < 0.5 or kind not in CONFIGS:
      own = json.loads(self._folders[kind][_CONFIG])
    return inputs.dumps(rng, inputs.changed(rng, own, _NAMES))

  def _fill(self, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(self._case, ignore_errors=True)
    self._case.mkdir()
    for name, data in files.items():
      (self._case / name).write_bytes(data)


_BF16 = safetensors.DTYPES["BF16"]
_PEFT = (
  "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "bias", "peft_type",
  "modules_to_save", "target_modules", "lora_bias", "init_lora_weights",
)  # fmt: skip


def _made(fields: Mapping[str, Any]) -> tuple[LanguageModel, Any]:
  """A model and random parameters."""
  model = interop.model_of(configs.read(fields))
  ids = np.zeros((1, 2), np.int32)
  given = (ids, ids) if model.cfg.encoder_layers else (ids,)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *given)["params"]
  draw = np.random.default_rng(0)
  return model, jax.tree.map(lambda x: draw.standard_normal(x.shape, np.float32), nn.unbox(shapes))


def _adapter(params: Any) -> Any:
  return lora.attach(params, config.Lora(rank=2), jax.random.key(1))[lora.KEY]


def _read(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _tensors(rng: random.Random, data: bytes) -> bytes:
  """A safetensors file, broken in its bytes or in what its header says."""
  if rng.random() < 0.25:
    return inputs.broken(rng, data)
  length = int.from_bytes(data[:8], "little")
  header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
  names = [name for name in header if name != "__metadata__"]
  how = rng.randrange(7)
  if how == 0:  # Numbers that a reader multiplies, adds and compares.
    row = header[rng.choice(names)]
    most = (0, 1, -1, len(body), len(body) + 1, 2**31, 2**32, 2**63, 2**64, 10**30, True, 1.0)
    field = rng.choice(("shape", "data_offsets"))
    row[field] = [rng.choice(most) for _ in range(rng.choice((len(row[field]), 1, 2, 9, 40)))]
  elif how == 1:  # Parts that overlap, or change places.
    one, other = rng.choice(names), rng.choice(names)
    header[one]["data_offsets"] = header[other]["data_offsets"]
  elif how == 2:
    header[rng.choice(names)]["dtype"] = rng.choice([*safetensors.DTYPES, "F8_E4M3", "f32", ""])
  elif how == 3:
    header[inputs.text(rng)] = header.pop(rng.choice(names))
  elif how == 4:  # NaN, as most kinds of numbers have it.
    at = rng.randrange(max(len(body) // 4, 1)) * 4
    body = body[:at] + b"\xff\xff\xff\x7f" + body[at + 4 :]
  else:
    header = inputs.changed(rng, header, (*_TENSOR, *names))
  text = inputs.dumps(rng, header)
  said = len(text)
  if rng.random() < 0.1:
    said = rng.choice((0, 1, said - 1, said + 1, 2**32, 2**63, 2**64 - 1, 100_000_000))
  if rng.random() < 0.15:
    body = rng.choice((body[:-1], body + b"\0", b"", body[1:], inputs.broken(rng, body)))
  return said.to_bytes(8, "little") + text + body


def _kind(array: np.ndarray) -> tuple[np.dtype, tuple[int, ...]]:
  return array.dtype, array.shape


def _odd(params: Any) -> str:
  """What is wrong with parameters that were read."""
  leaves = jax.tree.leaves(params)
  if not leaves or not all(np.isfinite(leaf).all() for leaf in leaves):
    return "parameters that are not finite"
  wrong = [leaf.dtype for leaf in leaves if leaf.dtype != np.float32]
  return f"parameters of {wrong[0]}" if wrong else ""
