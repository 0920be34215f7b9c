"""Runs to folders of Hugging Face and back, and stages that start from such a folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.data.tokenizers import files as tokenizer_files
from llm_jax.errors import UserError
from llm_jax.models import interop
from llm_jax.models.transformer import Transformer
from llm_jax.stages import pretrain, runs, sft, training
from llm_jax.train import parallel
from llm_jax.train.step import state_maker
from tests.stages.conftest import SHAPE, tiny
from tools import convert_hf

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory):
  path = tmp_path_factory.mktemp("base") / "pretrain"
  pretrain.run(tiny(config.Pretrain, prepared, model=SHAPE), str(path))
  return path


def converted(*words):
  return convert_hf.main([str(word) for word in words])


def test_there_and_back_is_the_same_model(prepared, base, tmp_path, capsys):
  assert converted("--run", base, "--prepared", prepared, "--out", tmp_path / "hf") == 0
  assert "a qwen3 of" in capsys.readouterr().out
  fields = json.loads((tmp_path / "hf/config.json").read_text())
  assert fields["eos_token_id"] == runs.tokenizer(str(prepared)).eos_id
  coder = runs.tokenizer(str(prepared))
  ends = json.loads((tmp_path / "hf/generation_config.json").read_text())["eos_token_id"]
  assert ends == [coder.eos_id, coder.end_id]
  assert (tmp_path / "hf/tokenizer.json").exists()
  assert converted("--hf", tmp_path / "hf", "--out", tmp_path / "run") == 0
  capsys.readouterr()
  there, back = runs.load(str(base), "init"), runs.load(str(tmp_path / "run"), "init")
  jax.tree.map(np.testing.assert_array_equal, there.params, back.params)
  ids = jnp.arange(12).reshape(2, 6)
  np.testing.assert_array_equal(
    *(run.model.apply({"params": run.params}, ids) for run in (there, back))
  )


@pytest.mark.slow
def test_weights_of_a_folder_go_straight_to_their_shards(base, tmp_path):
  run = runs.load(str(base), "init")
  interop.save(tmp_path / "hf", run.model, run.params)
  place = parallel.make(config.Mesh(data=2, fsdp=2, tensor=2))
  there = runs.load(str(tmp_path / "hf"), "init", put=place.put).params
  jax.tree.map(np.testing.assert_array_equal, there, run.params)
  state = place.init(
    state_maker(training.initializer(run.model), optax.sgd(1.0)), jax.random.key(0)
  )
  jax.tree.map(lambda a, b: same_place(a.sharding, b.sharding, a.ndim), there, state.params)
  shard = there["blocks_0"]["attention"]["q"]["kernel"].addressable_shards[0].data
  assert shard.shape == (16, 16)


def same_place(a, b, ndim):
  assert a.is_equivalent_to(b, ndim)


def test_sft_starts_from_a_folder_and_a_smaller_vocabulary_grows(prepared, base, tmp_path, capsys):
  run = runs.load(str(base), "init")
  small = 290
  params = run.params | {"embedding": run.params["embedding"][:small]}
  shape = config.Model(**(vars(run.shape) | {"vocab_size": small}))
  interop.save(tmp_path / "hf", Transformer.from_config(shape), params)
  grown = runs.load(str(tmp_path / "hf"), "init", vocab_size=300)
  new, known = grown.params["embedding"][small:], params["embedding"]
  np.testing.assert_allclose(new, np.tile(known.mean(0), (10, 1)), atol=0.5 * known.std())
  assert grown.grown == 10 and len(np.unique(new, axis=0)) == 10
  with pytest.raises(UserError, match="no rows for 10 tokens .* adapter cannot learn them"):
    sft.run(
      tiny(config.Sft, prepared, init=str(tmp_path / "hf"), lora=config.Lora(rank=2)),
      tmp_path / "lora",
    )
  assert not (tmp_path / "lora").exists()
  assert "10 new tokens" in capsys.readouterr().out
  cfg = tiny(config.Sft, prepared, init=str(tmp_path / "hf"))
  state = sft.run(cfg, str(tmp_path / "sft"))
  assert state.params["embedding"].shape[0] == runs.tokenizer(str(prepared)).vocab_size
  assert runs.load(str(tmp_path / "sft"), "init").shape.vocab_size == 300


def test_a_run_of_ours_does_not_grow(base):
  with pytest.raises(UserError, match="set --config.prepared"):
    runs.load(str(base), "init", vocab_size=10_000)


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--run=nowhere", "--out=OUT"], "holds no trained model"),
    (["--hf=nowhere", "--out=OUT"], "name a folder with config.json"),
    (["--hf=nowhere", "--out=."], "is not empty"),
  ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, says):
  assert converted(*(word.replace("OUT", str(tmp_path / "out")) for word in words)) == 2
  said = capsys.readouterr().err
  assert says in said and said.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_flags_that_would_do_nothing_are_refused(base, tmp_path, capsys):
  for words, message in [
    (("--hf", "x", "--dtype", "bfloat16"), "--dtype is of --run"),
    (("--run", base, "--adapter", "x"), "--adapter takes no folder with --run"),
    (("--run", base, "--adapter", "--prepared", "x"), "--prepared does nothing with --adapter"),
    (("--run", tmp_path / "none"), "or set --run"),
  ]:
    assert converted(*words, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_a_template_that_cannot_go_out_leaves_nothing(prepared, base, tmp_path, capsys):
  folder = tmp_path / "prepared"
  tokenizer_files.adopt(prepared / "tokenizer", folder / "tokenizer", template="zephyr")
  assert converted("--run", base, "--prepared", folder, "--out", tmp_path / "hf") == 2
  assert "writes <|system|> as text" in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ["prepared"]
