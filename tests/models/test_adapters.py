"""Adapters in PEFT's format: round trips, what is refused, and PEFT itself as the oracle."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import interop, lora
from llm_jax.models.interop import safetensors
from tests.models.test_encoder_decoder import made as encoder_decoder
from tests.models.test_interop import SHAPES, made

IDS = jnp.arange(20).reshape(2, 10)
every_shape = pytest.mark.parametrize("name", SHAPES)


def adapted(name, **fields):
  """(model, parameters with an adapter that has learned something)."""
  model, params = made(name)
  cfg = config.Lora(**({"rank": 2, "alpha": 6.0} | fields))
  whole = lora.attach(params, cfg, jax.random.key(0))
  random = np.random.default_rng(1)
  for path, own in lora.adapted(whole["lora"]):
    own = {key: np.asarray(value) for key, value in own.items()}
    own["b"] = random.standard_normal(own["b"].shape, np.float32)
    lora.place(whole["lora"], path, own)
  return model, whole


def run(model, params):
  return np.asarray(model.apply(params, IDS, method="logits"))


def close(got, wanted):
  assert np.abs(got - wanted).max() <= 2e-4 * wanted.std()


@pytest.mark.long
@pytest.mark.parametrize(
  ("name", "fields"),
  [
    *((name, {}) for name in ("llama", "gpt2", "gpt_neox", "falcon", "falcon_new", "mpt")),
    *((name, {"dora": True}) for name in ("llama", "gpt2", "falcon_new")),
    *((name, {"targets": ("v", "o", "down")}) for name in ("llama", "gpt2", "falcon_new")),
  ],
)
def test_what_is_saved_does_the_same(name, fields, tmp_path):
  model, whole = adapted(name, **fields)
  fused = name.startswith(("gpt", "falcon", "mpt"))
  interop.save_adapter(tmp_path / "a", model, whole["lora"])
  loaded = interop.load_adapter(tmp_path / "a", model)
  close(run(model, {**whole, "lora": loaded}), run(model, whole))
  if not fused:
    jax.tree.map(np.testing.assert_array_equal, loaded, whole["lora"])
  # A second time nothing is stacked: the factors are the same.
  interop.save_adapter(tmp_path / "b", model, loaded)
  again = interop.load_adapter(tmp_path / "b", model)
  jax.tree.map(np.testing.assert_array_equal, again, loaded)


@pytest.mark.long
def test_a_scanned_model_reads_and_writes_the_same_files(tmp_path):
  model, whole = adapted("llama")
  interop.save(tmp_path / "hf", model, {k: v for k, v in whole.items() if k != "lora"})
  interop.save_adapter(tmp_path / "a", model, whole["lora"])
  scanned, params = interop.load(tmp_path / "hf", scan=True)
  stacked = interop.load_adapter(tmp_path / "a", scanned)
  close(run(scanned, {**params, "lora": stacked}), run(model, whole))
  interop.save_adapter(tmp_path / "b", scanned, stacked)
  file = "adapter_model.safetensors"
  assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def folder(tmp_path):
  model, whole = adapted("llama")
  interop.save_adapter(tmp_path / "a", model, whole["lora"])
  return tmp_path / "a", model


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("peft_type", "IA3", "only LORA adapters are read"),
    ("bias", "all", "bias='all' is not supported"),
    ("modules_to_save", ["lm_head"], "modules_to_save=.* is not supported"),
    ("init_lora_weights", "pissa", "init_lora_weights='pissa' is not supported"),
    ("lora_alpha", "16", "must be numbers above 0"),
    ("lora_alpha", float("inf"), "must be numbers above 0"),
    ("alpha_pattern", {"q_proj": -1}, "must be numbers above 0"),
    ("lora_alpha", 10**400, "must be numbers above 0"),
    ("alpha_pattern", {"q_proj": 1e300}, "must be numbers above 0"),
    ("rank_pattern", [1], "rank_pattern must be an object"),
    ("alpha_pattern", {r"layers\.[01]\..*": 2}, "only names of modules are read"),
    ("use_dora", True, "module .* has a, b alone"),
  ],
)
def test_settings_that_would_change_the_result_are_refused(folder, field, value, message):
  path, model = folder
  fields = json.loads((path / "adapter_config.json").read_text()) | {field: value}
  (path / "adapter_config.json").write_text(json.dumps(fields))
  with pytest.raises(UserError, match=message):
    interop.load_adapter(path, model)


def change(path, change):
  file = safetensors.File(path / "adapter_model.safetensors")
  tensors = change({name: file.read(name) for name in file.tensors})
  shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
  safetensors.write(path / "adapter_model.safetensors", shapes, tensors.__getitem__)


KEY = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (lambda t: t | {"x.lora_A.weight": np.ones((2, 2), "<f4")}, "x.lora_A.weight fits no layer"),
    (lambda t: {k: v for k, v in t.items() if k != f"{KEY}.lora_B.weight"}, "q_proj has a alone"),
    (lambda t: t | {f"{KEY}.lora_B.weight": np.ones((15, 2), "<f4")}, "the layer from 16 to 16"),
    (lambda t: t | {f"{KEY}.lora_A.weight": np.ones((3, 16), "<f4")}, "are no .r, in. and .out, r"),
    (lambda t: t | {f"{KEY}.lora_A.weight": np.full((2, 16), np.nan, "<f4")}, "is not finite"),
    (lambda t: t | {f"{KEY}.lora_A.weight": np.ones((0, 16), "<f4")}, "q_proj does not fit"),
    (lambda t: {}, "holds no adapter"),
  ],
)
def test_tensors_that_do_not_fit_are_refused(folder, edit, message):
  path, model = folder
  change(path, edit)
  with pytest.raises(UserError, match=message):
    interop.load_adapter(path, model)


def test_an_adapter_of_another_model_and_a_missing_file(folder, tmp_path):
  path, _ = folder
  with pytest.raises(UserError, match="fits no layer of this model"):
    interop.load_adapter(path, made("mpt")[0])
  (path / "adapter_model.safetensors").unlink()
  with pytest.raises(UserError, match="No such file"):
    interop.load_adapter(path, made("llama")[0])
  with pytest.raises(UserError, match="is not empty"):
    interop.save_adapter(path, folder[1], adapted("llama")[1]["lora"])


def test_an_adapter_of_an_encoder_decoder(tmp_path):
  model, params = encoder_decoder()
  whole = lora.attach(params, config.Lora(rank=2, targets=("q", "v")), jax.random.key(0))
  assert len(list(lora.adapted(whole["lora"]))) == 2 * (3 + 2 + 2)
  interop.save_adapter(tmp_path / "a", model, whole["lora"])
  fields = json.loads((tmp_path / "a/adapter_config.json").read_text())
  assert (fields["task_type"], fields["target_modules"]) == ("SEQ_2_SEQ_LM", ["q", "v"])
  loaded = interop.load_adapter(tmp_path / "a", model)
  jax.tree.map(np.testing.assert_array_equal, loaded, whole["lora"])


@pytest.mark.filterwarnings("ignore")
@every_shape
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_rslora": True, "r": 3}])
def test_peft_reads_ours_and_we_read_theirs(name, fields, tmp_path):
  os.environ["HF_HUB_OFFLINE"] = "1"
  torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
  hf = pytest.importorskip("transformers", reason="the extra `parity` is not installed")
  peft = pytest.importorskip("peft", reason="the extra `parity` is not installed")
  model, params = made(name)
  params = jax.tree.map(lambda x: 0.25 * x, params)
  interop.save(tmp_path / "hf", model, params)
  way = "sdpa" if name == "falcon_rw" else "eager"
  base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation=way)

  def theirs(model):
    with torch.no_grad():
      return model.eval()(torch.from_numpy(np.array(IDS))).logits.numpy()

  cfg = {"r": 2, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
  torch.manual_seed(0)
  adapted = peft.get_peft_model(base, peft.LoraConfig(**(cfg | fields)))
  with torch.no_grad():
    for key, value in adapted.named_parameters():
      if "lora_B" in key:
        value.normal_(0, 0.3)
  adapted.save_pretrained(tmp_path / "theirs")
  wanted = theirs(adapted)
  own = interop.load_adapter(tmp_path / "theirs", model)
  whole = {**params, "lora": own}
  close(run(model, whole), wanted)
  assert np.abs(run(model, params) - wanted).max() > 0.1 * wanted.std()
  # Trained on, the factors of queries, keys and values part.
  for path, layer in lora.adapted(own):
    layer["a"] = layer["a"] * (1.5 if path[-1] == "k" else 1.0)
  interop.save_adapter(tmp_path / "ours", model, own, base=str(tmp_path / "hf"))
  base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation=way)
  close(theirs(peft.PeftModel.from_pretrained(base, tmp_path / "ours")), run(model, whole))


def test_patterns_name_a_module_or_its_end(folder):
  path, model = folder
  fields = json.loads((path / "adapter_config.json").read_text())
  fields["alpha_pattern"] = {"q_proj": 10, "^model.layers.0.self_attn.k_proj": 20, "^v_proj": 30}
  (path / "adapter_config.json").write_text(json.dumps(fields))
  own = dict(lora.adapted(interop.load_adapter(path, model)))
  scale = lambda layer, name: float(own[f"blocks_{layer}", "attention", name]["scale"])  # noqa: E731
  assert [scale(0, n) for n in "qkv"] == [5, 10, 3] and [scale(1, n) for n in "qkv"] == [5, 3, 3]


def test_parameters_with_an_adapter_are_not_saved_without_it(tmp_path):
  model, whole = adapted("llama")
  with pytest.raises(UserError, match="no place for lora/.*; `lora.merge` puts an adapter into"):
    interop.save(tmp_path / "hf", model, whole)
  assert not (tmp_path / "hf").exists()


@pytest.mark.long
def test_a_shape_of_two_families_reads_the_adapters_of_both(tmp_path):
  model, whole = adapted("falcon_rw")
  twin = dataclasses.replace(model.cfg, position="rope", alibi="mpt")
  twin = type(model).from_config(twin)
  for kind in ("gpt_neox", "falcon"):
    interop.save_adapter(tmp_path / kind, twin, whole["lora"], kind=kind)
    loaded = interop.load_adapter(tmp_path / kind, twin)
    close(run(twin, {**whole, "lora": loaded}), run(twin, whole))
