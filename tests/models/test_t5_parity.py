"""The encoder-decoder is transformers' T5, in its three forms: random models, large values."""

import copy
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

# Both are longer than the distance from which on all are alike, 20.
RANDOM = np.random.default_rng(0)
INPUTS, TOKENS = RANDOM.integers(2, 64, (2, 50)), RANDOM.integers(2, 64, (2, 40))
SEEN = (np.arange(50)[None] < np.array([[50], [37]])).astype(np.int32)
KINDS = {"t5": ("relu", False), "v1_1": ("gated-gelu", False), "flan": ("gated-gelu", True)}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
  """(their model, ours, our parameters)."""
  torch.manual_seed(0)
  feed, untied = KINDS[request.param]
  cfg = hf.T5Config(
    vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj=feed,
    tie_word_embeddings=feed == "relu",
  )  # fmt: skip
  model = hf.T5ForConditionalGeneration(cfg).eval()
  if untied:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.25) if parameter.ndim > 1 else parameter.add_(0.1)
  folder = tmp_path_factory.mktemp(request.param) / "hf"
  model.save_pretrained(folder)
  ours, params = interop.load(folder)
  assert ours.cfg.tied != untied and ("lm_head" in params) == untied
  return model, ours, params


def theirs(model):
  with torch.no_grad():
    return model(
      input_ids=torch.from_numpy(INPUTS), attention_mask=torch.from_numpy(SEEN),
      decoder_input_ids=torch.from_numpy(TOKENS),
    ).logits.numpy()  # fmt: skip


def close(got, wanted):
  assert np.abs(np.asarray(got) - wanted).max() <= 2e-4 * wanted.std()


def test_logits_of_rows_padded_and_packed(pair):
  model, ours, params = pair
  wanted = theirs(model)
  given = [jnp.asarray(x) for x in (INPUTS, TOKENS, SEEN)]
  close(ours.apply(params, *given, method="logits"), wanted)
  # Both pairs in one row.
  segments = [np.repeat([[1, 2]], n, axis=1) for n in (50, 40)]
  places = jnp.asarray(np.tile(np.arange(40), 2)[None])
  inside = jnp.asarray(segments[0] * SEEN.reshape(1, -1))
  rows = INPUTS.reshape(1, -1), TOKENS.reshape(1, -1)
  packed = ours.apply(
    params, *map(jnp.asarray, rows), inside, places, jnp.asarray(segments[1]), method="logits"
  )
  close(packed.reshape(wanted.shape), wanted)


def their_gradients(model):
  model.zero_grad()
  # Their decoder reads the labels, one place to the right, from token 0 on.
  model.config.decoder_start_token_id, model.config.pad_token_id = 0, 0
  loss = model(
    input_ids=torch.from_numpy(INPUTS), attention_mask=torch.from_numpy(SEEN),
    labels=torch.from_numpy(TOKENS),
  ).loss  # fmt: skip
  loss.backward()
  return loss.item(), {n: p.grad.double().numpy() for n, p in model.named_parameters()}


def test_loss_and_gradients(pair):
  model, ours, params = pair
  loss, gradients = their_gradients(copy.deepcopy(model).double())
  # Without 1 / sqrt(d) attention is so steep here that float32 itself is the limit, theirs too.
  rounded = their_gradients(model)[1]
  noise = max(np.abs(rounded[name] - gradients[name]).max() for name in gradients)
  largest = max(np.abs(g).max() for g in gradients.values())
  most = max(2e-4 * largest, 3 * noise)
  assert most < 2e-3 * largest
  read = jnp.asarray(np.pad(TOKENS[:, :-1], ((0, 0), (1, 0))))

  def nll(params):
    logits = ours.apply(params, jnp.asarray(INPUTS), read, jnp.asarray(SEEN), method="logits")
    logp = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logp, jnp.asarray(TOKENS)[..., None], axis=-1).mean()

  value, grads = jax.value_and_grad(nll)(params)
  np.testing.assert_allclose(value, loss, rtol=1e-5)
  solved = configs.canonical(ours.cfg)
  for name, (rule, layer) in tensors(configs.ARCHITECTURES["t5"].rules(solved), ours.cfg).items():
    for path, wanted in zip(rule.paths, rule.take(gradients[name], solved), strict=True):
      got = grads
      for key in path.replace("{i}", str(layer)).split("/"):
        got = got[key]
      assert np.abs(np.asarray(got) - wanted).max() <= most, name


def test_greedy_texts_of_64_tokens(pair):
  model, ours, params = pair
  rows = zip(INPUTS, SEEN > 0, strict=True)
  prompts = np.stack([np.roll(np.where(m, row, 0), 50 - m.sum()) for row, m in rows])
  with torch.no_grad():
    wanted = model.generate(
      torch.from_numpy(INPUTS), attention_mask=torch.from_numpy(SEEN).long(),
      max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None,
      decoder_start_token_id=0, pad_token_id=0,
    ).numpy()  # fmt: skip
  rollout = sample(
    ours, params, jnp.asarray(prompts), jnp.asarray(prompts > 0),
    jax.random.split(jax.random.key(0), 2), max_new=64, temperature=0.0, end_id=-1,
  )  # fmt: skip
  np.testing.assert_array_equal(rollout.tokens[:, 50:], wanted[:, 1:])


def test_what_we_save_they_read(pair, tmp_path):
  model, ours, params = pair
  interop.save(tmp_path / "back", ours, params)
  back = hf.T5ForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
  np.testing.assert_array_equal(theirs(back), theirs(model))
  jax.tree.map(np.testing.assert_array_equal, interop.load(tmp_path / "back")[1], params)


def test_adapters_of_peft(pair, tmp_path):
  peft = pytest.importorskip("peft", reason="the extra `parity` is not installed")
  model, ours, params = pair
  interop.save(tmp_path / "hf", ours, params)
  base = hf.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
  cfg = peft.LoraConfig(
    r=2, lora_alpha=5, target_modules=["q", "v", "o", "wo"], task_type="SEQ_2_SEQ_LM"
  )
  adapted = peft.get_peft_model(base, cfg)
  with torch.no_grad():
    for key, value in adapted.named_parameters():
      if "lora_B" in key:
        value.normal_(0, 0.05)
  adapted.save_pretrained(tmp_path / "theirs")
  own = interop.load_adapter(tmp_path / "theirs", ours)
  given = [jnp.asarray(x) for x in (INPUTS, TOKENS, SEEN)]
  got = ours.apply({**params, "lora": own}, *given, method="logits")
  rounded, wanted = theirs(adapted.eval()), theirs(copy.deepcopy(adapted).double().eval())
  noise = np.abs(rounded - wanted).max()
  assert noise < 1e-3 * wanted.std()
  assert np.abs(np.asarray(got) - wanted).max() <= max(2e-4 * wanted.std(), 3 * noise)
