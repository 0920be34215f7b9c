"""The start-up test of a backend: it lets rounding pass, and finds what a broken kernel does."""

import dataclasses

import jax.numpy as jnp
import pytest

from llm_jax.errors import UserError
from llm_jax.models import flash, selftest
from llm_jax.models.backends import Request
from tests.models import fake_cudnn

PACKED = Request(
  "auto", 8, 40, 40, 4, 2, 16, "bfloat16", max_segments=3, window=9, scale=0.2, packed=True
)
ACROSS = dataclasses.replace(
  PACKED, own=False, causal=False, window=None, bias=True, dtype="float16", length=140, keys=200
)


def figures(text):
  return [float(part.split("%")[0]) for part in text.split("within ")[1:]]


def test_a_sound_cudnn_passes_with_rounding_far_below_the_tolerance(monkeypatch):
  fake = fake_cudnn.install(monkeypatch)
  worst = max(figures(selftest.check(PACKED, "cudnn")))
  assert fake.grouped and 0 < worst < 100 * selftest.TOLERANCES["bfloat16"] / 3


def test_xla_chunked_passes_across_with_a_bias_and_a_window_that_is_traced():
  assert max(figures(selftest.check(ACROSS, "xla_chunked"))) < 0.34


SOUND = flash.packed
BROKEN = {
  "other_heads": lambda q, k, v, *rest: SOUND(q, k[:, :, ::-1], v, *rest),
  "later_keys": lambda q, k, v, *rest: SOUND(q, jnp.roll(k, -1, axis=1), v, *rest),
  "scale": lambda *given: SOUND(*given[:5], 1.5 * given[5], given[6]),
  "window": lambda *given: SOUND(*given[:6], given[6] + 1),
  "one_text": lambda q, k, v, starts, sizes, *rest: SOUND(
    q, k, v, starts.at[:, 1:].set(-1), sizes.at[:, 0].set(q.shape[1]).at[:, 1:].set(-1), *rest
  ),
}


@pytest.mark.parametrize(
  "fault",
  [
    "other_heads", "one_text", "window",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("later_keys", "scale")),
  ],
)  # fmt: skip
def test_a_wrong_kernel_is_found(fault, monkeypatch):
  fake_cudnn.install(monkeypatch)
  monkeypatch.setattr(flash, "packed", BROKEN[fault])
  with pytest.raises(UserError, match=r"cudnn attention is wrong here: .* to \"xla_chunked\""):
    selftest.check(PACKED, "cudnn")


def test_a_gradient_that_overflows_where_scores_are_low_is_found(monkeypatch):
  fake_cudnn.install(monkeypatch, overflows=True)
  with pytest.raises(UserError, match="gradients by nan%"):
    selftest.check(PACKED, "cudnn")


def test_a_kernel_that_does_not_compile_is_named():
  with pytest.raises(UserError, match="cudnn attention does not run here: .*no NVIDIA GPU"):
    selftest.check(dataclasses.replace(PACKED, backend="cudnn"), "cudnn")


def test_long_rows_are_compared_in_part(monkeypatch):
  monkeypatch.setattr(selftest, "_SCORES", 2 * 40 * 16)  # Sixteen queries of two heads.
  sizes = []
  plain = selftest.attention

  def spy(q, *rest, **how):
    sizes.append(q.shape[1])
    return plain(q, *rest, **how)

  monkeypatch.setattr(selftest, "attention", spy)
  assert max(figures(selftest.check(PACKED, "xla_chunked"))) < 5
  assert sizes == [40, 16]
