"""Logits, loss, gradients and greedy texts equal transformers', from random models of theirs.

Initial values are large (std .25): the usual .02 hides errors. Rows are longer than the sliding
window and than the length that rotary positions were stretched from.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.generate import sample
from llm_jax.models import interop
from llm_jax.models.interop import configs
from llm_jax.models.interop.weights import tensors

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
hf = pytest.importorskip("transformers", reason="the extra `parity` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = {
  "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
  "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
  "eos_token_id": 2,
}  # fmt: skip
FALCON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
WIDE = SIZE | {"num_key_value_heads": 2, "head_dim": 16}


def rope(kind="default", **fields):
  return {"rope_theta": 1000.0, "rope_type": kind, **fields}


LLAMA3 = rope(
  "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=16,
)  # fmt: skip
CONFIGS = {
  "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=128, vocab_size=64),
  "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZE, rope_parameters=rope(partial_rotary_factor=0.25)),
  "gpt_neox_sequential": lambda: hf.GPTNeoXConfig(**SIZE, use_parallel_residual=False),
  "llama2": lambda: hf.LlamaConfig(**SIZE, rope_parameters=rope()),
  "llama3": lambda: hf.LlamaConfig(
    **SIZE, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=LLAMA3
  ),
  "llama_linear": lambda: hf.LlamaConfig(**SIZE, rope_parameters=rope("linear", factor=4.0)),
  "mistral": lambda: hf.MistralConfig(**WIDE, sliding_window=7, rope_parameters=rope()),
  "qwen2": lambda: hf.Qwen2Config(**SIZE, num_key_value_heads=2),
  "qwen2_window": lambda: hf.Qwen2Config(
    **SIZE, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1
  ),
  "qwen3": lambda: hf.Qwen3Config(**WIDE),
  "gemma": lambda: hf.GemmaConfig(**SIZE, num_key_value_heads=1, head_dim=16),
  "gemma2": lambda: hf.Gemma2Config(**WIDE, sliding_window=6, query_pre_attn_scalar=24),
  "gemma3": lambda: hf.Gemma3TextConfig(
    **(WIDE | {"num_hidden_layers": 7}), sliding_window=6, query_pre_attn_scalar=24
  ),
  "falcon_7b": lambda: hf.FalconConfig(**FALCON),
  "falcon_40b": lambda: hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
  "falcon_11b": lambda: hf.FalconConfig(
    **FALCON, num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1
  ),
  "falcon_rw": lambda: hf.FalconConfig(
    **FALCON, multi_query=False, alibi=True, bias=True, parallel_attn=False
  ),
  "mpt": lambda: hf.MptConfig(d_model=32, n_layers=3, n_heads=4, max_seq_len=128, vocab_size=64),
  "mpt_clip": lambda: hf.MptConfig(
    d_model=36, n_layers=3, n_heads=6, max_seq_len=128, vocab_size=64,
    attn_config={"clip_qkv": 2.0, "softmax_scale": 0.3, "alibi": True},
  ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  """(their model, ours, our parameters, the folder)."""
  torch.manual_seed(0)
  # The eager path of 5.24 adds ALiBi twice in a Falcon; Gemma 2's caps need the eager path.
  way = "sdpa" if request.param == "falcon_rw" else "eager"
  model = hf.AutoModelForCausalLM.from_config(CONFIGS[request.param](), attn_implementation=way)
  model = model.eval().float()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim > 1:
        parameter.normal_(0, 0.25)
      else:
        parameter.add_(torch.randn_like(parameter) * 0.2)
  folder = tmp_path_factory.mktemp(request.param) / "hf"
  model.save_pretrained(folder)
  return model, *interop.load(folder), folder


def tokens(rows=2, length=48):
  return np.random.default_rng(1).integers(3, 64, (rows, length))


def ours(model, params, ids, *args):
  return np.asarray(model.apply(params, jnp.asarray(ids), *args, method="logits"))


def theirs(model, ids, **kwargs):
  with torch.no_grad():
    return model(torch.from_numpy(ids), **kwargs).logits.numpy()


def close(got, wanted, most=2e-4):
  assert np.abs(got - wanted).max() <= most * wanted.std()


def test_logits_of_rows_padded_and_packed(pair):
  model, own, params, _ = pair
  ids = tokens()
  wanted = theirs(model, ids)
  close(ours(own, params, ids), wanted)
  # Padding on the left: segment 0, and positions that start at the first token.
  padded = np.pad(ids, ((0, 0), (5, 0)))
  segments = np.pad(np.ones_like(ids), ((0, 0), (5, 0)))
  places = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
  close(ours(own, params, padded, jnp.asarray(places), jnp.asarray(segments))[:, 5:], wanted)
  # Two documents in a row.
  both = ids.reshape(1, -1)
  places = np.tile(np.arange(48), 2)[None]
  segments = np.repeat([1, 2], 48)[None]
  packed = ours(own, params, both, jnp.asarray(places), jnp.asarray(segments))
  close(packed.reshape(wanted.shape), wanted)


def test_a_scanned_model_and_cached_steps(pair):
  model, own, params, folder = pair
  ids = tokens()
  wanted = theirs(model, ids)
  close(ours(*interop.load(folder, scan=True), ids), wanted)
  step = jax.jit(lambda x, cache: own.apply(params, x, cache=cache))
  hidden, cache = step(jnp.asarray(ids[:, :10]), own.empty_cache(2, 48))
  parts = [hidden]
  for t in range(10, 48):
    hidden, cache = step(jnp.asarray(ids[:, t : t + 1]), cache)
    parts.append(hidden)
  cached = jnp.concatenate(parts, axis=1) @ own.head(params)
  if cap := own.cfg.logit_cap:
    cached = cap * jnp.tanh(cached / cap)
  close(np.asarray(cached), wanted)


def test_loss_and_gradients(pair):
  model, own, params, _ = pair
  ids = tokens()
  given = torch.from_numpy(ids)
  model.zero_grad()
  loss = model(given, labels=given).loss
  loss.backward()

  def nll(params):
    logits = own.apply(params, jnp.asarray(ids), method="logits")
    logp = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logp, jnp.asarray(ids)[:, 1:, None], axis=-1).mean()

  value, grads = jax.value_and_grad(nll)(params)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  solved = configs.canonical(own.cfg)
  gradients = {n: p.grad.numpy() for n, p in model.named_parameters()}
  kind = configs.ARCHITECTURES[model.config.model_type]
  largest = max(np.abs(g).max() for g in gradients.values())
  for name, (rule, layer) in tensors(kind.rules(solved), own.cfg).items():
    theirs_ = gradients.get(name, gradients.get("lm_head.weight"))
    for path, wanted in zip(rule.paths, rule.take(theirs_, solved), strict=True):
      got = grads
      for key in path.replace("{i}", str(layer)).split("/"):
        got = got[key]
      assert np.abs(np.asarray(got) - wanted).max() <= 2e-4 * largest, name


def test_greedy_texts_of_64_tokens(pair):
  model, own, params, _ = pair
  prompt = tokens(2, 12)
  with torch.no_grad():
    wanted = model.generate(
      torch.from_numpy(prompt), attention_mask=torch.ones(2, 12, dtype=torch.long),
      max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None,
    ).numpy()  # fmt: skip
  rollout = sample(
    own, params, jnp.asarray(prompt), jnp.ones((2, 12)),
    jax.random.split(jax.random.key(0), 2), max_new=64, temperature=0.0, end_id=-1,
  )  # fmt: skip
  np.testing.assert_array_equal(rollout.tokens, wanted)


def test_what_we_save_they_read(pair, tmp_path):
  model, own, params, _ = pair
  interop.save(tmp_path / "ours", own, params)
  way = model.config._attn_implementation
  back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation=way)
  np.testing.assert_array_equal(theirs(back.eval(), tokens()), theirs(model, tokens()))
  again, loaded = interop.load(tmp_path / "ours")
  assert configs.canonical(again.cfg) == configs.canonical(own.cfg)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
