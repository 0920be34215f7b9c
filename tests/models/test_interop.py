"""Folders of Hugging Face without their library: round trips, and what is refused."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import interop
from llm_jax.models.interop import configs, safetensors
from llm_jax.models.transformer import Transformer, stack

BASE = config.Model(
  vocab_size=31, dim=16, layers=3, heads=4, hidden=24, max_length=32, qk_norm=False, norm_eps=1e-6
)
PLAIN = {"norm": "layernorm", "mlp": "plain", "norm_eps": 1e-5, "activation": "gelu"}
GEMMA = {"norm_offset": True, "embedding_scale": 4.0, "activation": "gelu_tanh", "head_dim": 8}
LLAMA3 = "llama3(factor=8.0, low=1.0, high=4.0, length=8192.0)"
SHAPES = {
  "gpt2": PLAIN | {"norm_bias": True, "bias": True, "position": "learned"},
  "gpt_neox": PLAIN
  | {"norm_bias": True, "bias": True, "parallel": "two", "rope_fraction": 0.5, "tied": False},
  "llama": {"kv_heads": 2, "tied": False, "rope_theta": 5e5, "rope_scaling": LLAMA3},
  "mistral": {"kv_heads": 2, "tied": False, "windows": (5,)},
  "qwen2": {"kv_heads": 2, "qkv_bias": True},
  "qwen3": {"kv_heads": 2, "qk_norm": True, "head_dim": 8},
  "gemma": GEMMA | {"kv_heads": 1},
  "gemma2": GEMMA
  | {"post_norm": True, "windows": (5, 0), "attention_cap": 50.0, "logit_cap": 30.0},
  "gemma3_text": GEMMA
  | {"post_norm": True, "windows": (5, 5, 0), "qk_norm": True, "rope_local_theta": 1e4},
  "falcon": PLAIN | {"norm_bias": True, "parallel": "one", "kv_heads": 1},
  "falcon_new": PLAIN | {"norm_bias": True, "parallel": "two", "kv_heads": 2},
  "falcon_rw": PLAIN | {"norm_bias": True, "bias": True, "position": "alibi", "alibi": "falcon"},
  "mpt": PLAIN | {"position": "alibi", "hidden": 64, "qkv_clip": 6.0},
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def made(name, seed=0):
  """A model, and random parameters for it."""
  shape = dataclasses.replace(BASE, **SHAPES[name])
  if name.startswith("gemma2") or name.startswith("gemma3"):
    shape.attention_scale = 24**-0.5
  model = Transformer.from_config(shape)
  boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  random = np.random.default_rng(seed)
  draw = lambda x: random.standard_normal(x.shape, np.float32)  # noqa: E731
  return model, jax.tree.map(draw, nn.unbox(boxed)["params"])


def logits(model, params, ids):
  return model.apply(params, ids, method="logits")


@pytest.mark.long
@every_shape
def test_what_is_saved_is_loaded_to_the_bit(name, tmp_path):
  model, params = made(name)
  interop.save(tmp_path / "hf", model, params)
  kind = json.loads((tmp_path / "hf/config.json").read_text())["model_type"]
  assert kind == name.split("_")[0] or kind == name
  again, loaded = interop.load(tmp_path / "hf")
  assert configs.canonical(again.cfg) == configs.canonical(model.cfg)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  ids = jnp.arange(20).reshape(2, 10)
  np.testing.assert_array_equal(logits(again, loaded, ids), logits(model, params, ids))
  scanned, stacked = interop.load(tmp_path / "hf", scan=True)
  jax.tree.map(np.testing.assert_array_equal, stacked, stack(params, 3))
  interop.save(tmp_path / "again", scanned, stacked)
  assert (tmp_path / "again/model.safetensors").read_bytes() == (
    tmp_path / "hf/model.safetensors"
  ).read_bytes()


def test_shards_and_their_index(tmp_path):
  model, params = made("llama")
  interop.save(tmp_path / "hf", model, params, shard_bytes=4000)
  files = sorted(p.name for p in (tmp_path / "hf").iterdir())
  assert len(files) > 4 and files[-1] == "model.safetensors.index.json"
  given = {}

  def put(path, array, names):
    given[path] = array
    assert len(names) == array.ndim
    return array

  _, loaded = interop.load(tmp_path / "hf", put=put)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert len(given) == len(jax.tree.leaves(params))


def test_a_decoder_without_its_prefix_and_old_buffers(tmp_path):
  model, params = made("gpt2")
  interop.save(tmp_path / "hf", model, params)
  file = safetensors.File(tmp_path / "hf/model.safetensors")
  tensors = {name.removeprefix("transformer."): file.read(name) for name in file.tensors}
  tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
  rewrite(tmp_path / "hf", tensors)
  jax.tree.map(np.testing.assert_array_equal, interop.load(tmp_path / "hf")[1], params)


def rewrite(folder, tensors):
  shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
  safetensors.write(folder / "model.safetensors", shapes, tensors.__getitem__)


def test_half_precision_becomes_float32(tmp_path):
  model, params = made("llama")
  interop.save(tmp_path / "hf", model, params)
  file = safetensors.File(tmp_path / "hf/model.safetensors")
  bf16 = safetensors.DTYPES["BF16"]
  rewrite(tmp_path / "hf", {name: file.read(name).astype(bf16) for name in file.tensors})
  loaded = interop.load(tmp_path / "hf")[1]
  rounded = jax.tree.map(lambda x: x.astype(bf16).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_disk(tmp_path, dtype):
  model, params = made("llama")
  interop.save(tmp_path / "hf", model, params, dtype=dtype)
  assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == dtype
  rounded = jax.tree.map(lambda x: np.float32(jnp.asarray(x, dtype)), params)
  jax.tree.map(np.testing.assert_array_equal, interop.load(tmp_path / "hf")[1], rounded)
  with pytest.raises(UserError, match='"bf16" is unknown; '):
    interop.save(tmp_path / "no", model, params, dtype="bf16")
  params["embedding"][0, 0] = 3.4e38
  with pytest.raises(UserError, match="has values that .*float16 cannot hold"):
    interop.save(tmp_path / "no", model, params, dtype=dtype)
  assert not (tmp_path / "no").exists()


@pytest.fixture
def folder(tmp_path):
  model, params = made("llama")
  interop.save(tmp_path / "hf", model, params)
  return tmp_path / "hf"


def tensors_of(folder):
  file = safetensors.File(folder / "model.safetensors")
  return {name: file.read(name) for name in file.tensors}


def change_config(folder, **fields):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rope(theta=1e4, factor=8.0):
  return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def without(folder):
  tensors = tensors_of(folder)
  del tensors["model.layers.1.mlp.up_proj.weight"]
  rewrite(folder, tensors)


def nan(folder):
  tensors = tensors_of(folder)
  tensors["model.norm.weight"][3] = np.nan
  rewrite(folder, tensors)


def quantised(folder):
  tensors = tensors_of(folder)
  tensors["model.norm.weight"] = np.ones(16, np.int8)
  rewrite(folder, tensors)


def pickled(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def outside(folder):
  index = {"weight_map": {"model.norm.weight": "../hf/model.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(folder):
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(data[:-100])


def long_header(folder):
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + data[8:])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (without, "lacks tensor model.layers.1.mlp.up_proj.weight, 1 in all"),
    (nan, "model.norm.weight is not finite"),
    (quantised, "quantised weights are not read"),
    (pickled, "is pickle, which is not read"),
    (outside, "is no file of the folder"),
    (cut, "no whole safetensors file"),
    (long_header, "its header is to have"),
    (lambda f: change_config(f, model_type="lama"), 'did you mean "llama"'),
    (lambda f: change_config(f, intermediate_size=25), r"config.json needs \(16, 25\)"),
    (lambda f: change_config(f, vocab_size=32), r"\(31, 16\), config.json needs \(32, 16\)"),
    (lambda f: change_config(f, mlp_bias=True), "mlp_bias=True is not supported"),
    (lambda f: change_config(f, hidden_act="swiglu"), 'activation "swiglu" is not known'),
    (lambda f: change_config(f, num_hidden_layers=2), "is of no use to the architecture"),
    (lambda f: change_config(f, hidden_size="16"), "of the wrong type"),
    (lambda f: change_config(f, model_type={}), 'architecture "{}" is not known'),
    (lambda f: change_config(f, model_type="lla\nma"), "is not known"),
    (lambda f: change_config(f, num_hidden_layers=10**12), "layers is out of bounds"),
    (lambda f: change_config(f, num_hidden_layers=10**9), "layers are more than the 10,000"),
    (lambda f: change_config(f, vocab_size=2**31 - 1), "the files hold [0-9,]+ numbers in all"),
    (lambda f: change_config(f, hidden_size=2**30), "the files hold [0-9,]+ numbers in all"),
    (lambda f: change_config(f, head_dim=-8), "head_dim must not be negative"),
    (lambda f: change_config(f, rms_norm_eps=float("nan")), "norm_eps is out of bounds: nan"),
    (lambda f: change_config(f, rms_norm_eps=10**400), "of the wrong type|out of bounds"),
    (lambda f: change_config(f, rms_norm_eps=0), "norm_eps must be above 0"),
    (lambda f: change_config(f, rope_parameters=rope(theta=0.5)), "rope_theta must be 1 or more"),
    (lambda f: change_config(f, rope_parameters=rope(factor=0)), "must be 1e-6 to 1e9"),
    (lambda f: change_config(f, model_type="mistral", sliding_window=5.5), "windows is"),
    (lambda f: change_config(f, model_type="gemma", hidden_size=10**400), "wrong type"),
    (
      lambda f: change_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
      '"yarn" are not supported',
    ),
    (lambda f: (f / "config.json").unlink(), "name a folder with config.json"),
    (lambda f: (f / "config.json").write_text("[1]"), "cannot be read"),
  ],
)
def test_bad_folders_are_one_clear_line(folder, change, message):
  change(folder)
  with pytest.raises(UserError, match=message) as caught:
    interop.load(folder)
  assert "\n" not in str(caught.value)


def test_a_field_that_is_missing_is_named(folder):
  fields = json.loads((folder / "config.json").read_text())
  del fields["intermediate_size"]
  (folder / "config.json").write_text(json.dumps(fields))
  with pytest.raises(UserError, match="needs the field 'intermediate_size'"):
    interop.load(folder)


T5 = {"model_type": "t5", "vocab_size": 31, "d_model": 16, "d_kv": 4, "d_ff": 24} | {
  "num_layers": 1, "num_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize(("buckets", "distance"), [(3, 128), (0, 128), (-8, 128), (32, 16)])
def test_buckets_of_distances_that_divide_by_zero_are_refused(buckets, distance):
  own = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance}
  with pytest.raises(UserError, match="must be at least 4, and less than twice"):
    configs.read(T5 | own)
  assert configs.read(T5).relative_buckets == 32


@pytest.mark.parametrize("sizes", [([4], 2**40), (2**40, [16]), ("ab", 2**40)])
def test_a_list_is_not_repeated_a_billion_times(sizes):
  own = dict(zip(("expansion_ratio", "d_model"), sizes, strict=True))
  mpt = {"model_type": "mpt", "vocab_size": 31, "n_layers": 1, "n_heads": 4, "max_seq_len": 32}
  with pytest.raises(UserError, match="is no size"):
    configs.read(mpt | own)


@pytest.mark.parametrize("name", ["\udfff", "a\0b", "a" * 5000])
def test_an_index_that_names_what_is_no_file(folder, name):
  index = {"weight_map": {"model.norm.weight": name}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(UserError):
    interop.load(folder)


HEADERS = [
  {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
  {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
  {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
  {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
  {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32"}},
  {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
  },
  {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}},
  {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
  {"a": {"dtype": "F32", "shape": [0, 1 << 60], "data_offsets": [0, 0]}},
  {"a": {"dtype": "F32", "shape": [10**30] * 100_000, "data_offsets": [0, 8]}},
  {"a": [1]},
  [],
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_lie(tmp_path, header):
  text = json.dumps(header).encode()
  (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
  with pytest.raises(UserError, match="no whole safetensors file"):
    safetensors.File(tmp_path / "x")


@settings(max_examples=300, deadline=None)
@given(
  place=st.integers(0, 10_000),
  put=st.binary(max_size=12),
  cut=st.integers(0, 12),
)
@example(place=10, put=b"\\\\\\n", cut=3)  # A line break in a name.
def test_mutated_files_are_read_or_refused(tmp_path_factory, place, put, cut):
  path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
  shapes = {"a": (np.dtype("<f4"), (3, 2)), "b": (np.dtype("<i8"), (2,))}
  safetensors.write(path, shapes, lambda name: np.ones(shapes[name][1], shapes[name][0]))
  data = path.read_bytes()
  place %= len(data) + 1
  path.write_bytes(data[:place] + put + data[place + cut :])
  try:
    file = safetensors.File(path)
    for name in file.tensors:
      file.read(name)
  except UserError as error:
    assert "\n" not in str(error)


def test_a_decoder_of_ours_alone_is_not_saved(tmp_path):
  shape = dataclasses.replace(BASE, position="relative")
  with pytest.raises(UserError, match="no architecture of Hugging Face"):
    interop.save(tmp_path / "hf", Transformer.from_config(shape), {})
  with pytest.raises(UserError, match='"mistral" of Hugging Face cannot have this qk_norm'):
    configs.write(dataclasses.replace(BASE, qk_norm=True), "mistral")
  assert not (tmp_path / "hf").exists()


def test_a_folder_that_is_not_empty_stays(tmp_path):
  model, params = made("llama")
  (tmp_path / "note").write_text("mine")
  with pytest.raises(UserError, match="is not empty"):
    interop.save(tmp_path, model, params)
  assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_older_spellings_of_rotary_positions_are_read(folder):
  fields = json.loads((folder / "config.json").read_text())
  assert fields["rope_theta"] == 5e5 and fields["rope_scaling"]["rope_type"] == "llama3"
  del fields["rope_parameters"]
  (folder / "config.json").write_text(json.dumps(fields))
  shape = interop.load(folder)[0].cfg
  assert (shape.rope_theta, shape.rope_scaling) == (5e5, LLAMA3)
