"""What pages ask of models directly: no more programs than needed, no position beyond the last."""

import jax
import numpy as np
import pytest

from llm_jax.models.heads import Critic
from llm_jax.serve import probe
from tests.generate import test_sampler as small


def test_one_program_finds_the_likeliest_however_many_are_wanted(play):
  served = play.models.get("sft")
  found = [probe.next_token(served, [1, 5], 1.0, 1.0, 0.5, top) for top in (1, 3, 100)]
  programs = probe._next._cache_size()
  again = [probe.next_token(served, [1, 5], 1.0, 1.0, 0.5, top) for top in (2, 7)]
  assert probe._next._cache_size() == programs
  assert [len(one.ids) for one in (*found, *again)] == [1, 3, 100, 2, 7]
  assert all(one.raw.tolist() == found[2].raw[: len(one.ids)].tolist() for one in again)


def test_a_conversation_has_the_positions_that_were_learned():
  model, _ = small.make(position="learned", max_length=40)
  most = model.cfg.max_length
  critic = Critic(model)
  tokens = (np.arange(most) % model.cfg.vocab_size).tolist()
  params = critic.init(jax.random.key(0), np.array([tokens]))["params"]
  assert probe.scores(critic, params, tokens, 0).shape == (most,)
  with pytest.raises(ValueError, match=f"{most} positions"):
    probe.scores(critic, params, [*tokens, 1], 0)
