"""lm-eval's requests answered by a tiny decoder, against the softmax written out."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.losses import stats
from llm_jax.models.transformer import Transformer
from llm_jax.stages import evaluate, runs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_likeliest_token_is_the_argmax_of_the_logits():
  hidden, head = (
    jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 7, 4), (4, 9)])
  )
  np.testing.assert_array_equal(
    stats.most_likely(hidden, head, chunk=6), jnp.argmax(hidden @ head, axis=-1)
  )


@pytest.fixture(scope="module")
def harness(prepared):
  pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
  from llm_jax.stages import harness as module

  coder = runs.tokenizer(str(prepared))
  shape = config.Model(vocab_size=coder.vocab_size, dim=32, layers=1, heads=2)
  model = Transformer.from_config(shape)
  params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  params = jax.tree.map(lambda x: 6 * x, nn.unbox(params))
  return module.make(runs.Run(model, params, shape), coder, length=64, batch=3)


def logps(harness, ids):
  run = harness._run
  logits = run.model.apply({"params": run.params}, jnp.array([ids[:-1]]), method="logits")[0]
  logp = jax.nn.log_softmax(logits)
  return np.asarray(logp[jnp.arange(len(ids) - 1), jnp.array(ids[1:])]), np.asarray(
    logits.argmax(-1)
  )


def request(*args):
  return types.SimpleNamespace(args=args)


def test_continuations_have_their_log_probability(harness):
  pairs = [
    ("Return all", " the rows"),
    ("Count", " x"),
    ("", "Sort all"),
    ("Delete all", " rows of a"),
  ]
  found = harness.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
  for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
    if context:
      own, rest = harness._encode_pair(context, continuation)
    else:
      own, rest = [harness.prefix_token_id], harness._coder.encode(continuation)
    each, best = logps(harness, own + rest)
    np.testing.assert_allclose(value, each[-len(rest) :].sum(), rtol=1e-5)
    assert greedy == (best[-len(rest) :] == np.array(rest)).all()


def test_a_long_text_is_the_sum_of_its_windows(harness):
  short, long = "Count all the files of a table.", "Sort all the names. " * 40
  found = harness.loglikelihood_rolling([request(short), request(long)])
  ids = harness.tok_encode(short)
  assert ids[0] == harness.prefix_token_id
  np.testing.assert_allclose(found[0], logps(harness, ids)[0].sum(), rtol=1e-5)
  assert len(harness.tok_encode(long)) > 64 and found[1] < 3 * found[0]


def test_greedy_texts_end_at_their_stop(harness):
  options = {"until": ["zzz"], "max_gen_toks": 12, "do_sample": False}
  contexts = ["Return all", "Count", "Sort all the names of", "Delete"]
  texts = harness.generate_until([request(c, options) for c in contexts])
  for context, text in zip(contexts, texts, strict=True):
    ids = harness.tok_encode(context)
    for _ in range(12):
      ids.append(int(logps(harness, [*ids, 0])[1][-1]))
    assert text == harness._coder.decode(
      [i for i in ids[len(harness.tok_encode(context)) :] if i not in harness._coder.control]
    )
  stop = texts[0][3:5]
  cut = harness.generate_until([request(contexts[0], options | {"until": [stop]})])
  assert cut == [texts[0][: texts[0].index(stop)]]


def test_tasks_without_the_package_or_of_no_name(prepared, tmp_path, monkeypatch):
  cfg = config.Evaluate(tasks=("none",), prepared=str(prepared), task_folder=str(tmp_path / "no"))
  monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'llm_jax\[eval\]'"):
    evaluate.run(cfg, str(tmp_path))
