"""cuDNN's two attention calls in plain JAX: the same keywords, the same meaning of their arguments.

Where the real one writes nothing, at padding of packed rows, this one gives NaN, forward and
backward.
"""

import inspect

import jax
import jax.numpy as jnp

from llm_jax.models import flash

REAL = inspect.signature(flash.fused.dot_product_attention)
PUBLIC = jax.nn.dot_product_attention


class Fake:
  """Stands in for `jax._src.cudnn.fused_attention_stablehlo`.

  Attributes:
    version: of cuDNN.
    overflows: whether the gradient is NaN of rows whose scores are all below -90.
    grouped: [(H, N)] of the calls.
  """

  MaskType = flash.fused.MaskType

  def __init__(self, version=92000, overflows=False):
    self.version, self.overflows, self.grouped = version, overflows, []

  def check_cudnn_version(self):
    return self.version

  def dot_product_attention(
    self, query, key, value, bias=None, mask=None, q_seqlen=None, kv_seqlen=None, q_offsets=None,
    kv_offsets=None, fp8_params=None, *, scale=1.0, mask_type=None, seed=42, dropout_rate=0.0,
    qkv_layout="BTNH", sliding_window_length=None, use_fp8=False, return_residual=False,
  ):  # fmt: skip
    assert (mask_type, qkv_layout) == (self.MaskType.PADDING_CAUSAL, "BTNH")
    assert q_offsets.shape[1] == q_seqlen.shape[1] + 1 > 2, "one segment is no packed layout"
    assert {x.dtype.name for x in (q_seqlen, kv_seqlen, q_offsets, kv_offsets)} == {"int32"}
    self.grouped.append((query.shape[2], key.shape[2]))
    q_BT = owners(q_offsets, q_seqlen, query.shape[1])
    k_BS = owners(kv_offsets, kv_seqlen, key.shape[1])
    mask = (q_BT[:, :, None] == k_BS[:, None, :]) & (q_BT > 0)[:, :, None]
    return self._attend(query, key, value, mask, q_BT > 0, scale, sliding_window_length)

  def _attend(self, q, k, v, mask_BTS, real_BT, scale, window):
    real_BT11 = real_BT[:, :, None, None]

    def plain(q, k, v):
      group = q.shape[2] // k.shape[2]
      k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
      scores = scale * jnp.einsum("BTHK,BSHK->BHTS", q, k, preferred_element_type=jnp.float32)
      behind = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])[None, :]
      near = (behind >= 0) & (behind < (window or q.shape[1]))
      scores = jnp.where(mask_BTS[:, None] & near, scores, -1e30)
      out = jnp.einsum("BHTS,BSHK->BTHK", jax.nn.softmax(scores), v.astype(jnp.float32))
      return out.astype(q.dtype), scores.max(axis=(1, 2, 3)) < -90

    @jax.custom_vjp
    def call(q, k, v):
      return jnp.where(real_BT11, plain(q, k, v)[0], jnp.nan)

    def backward(saved, grad):
      _, vjp, low_B = jax.vjp(plain, *saved, has_aux=True)
      low_B = low_B & self.overflows
      spoilt = ~real_BT11 | low_B[:, None, None, None]
      return tuple(jnp.where(spoilt, jnp.nan, g) for g in vjp(jnp.where(real_BT11, grad, 0)))

    call.defvjp(lambda *given: (call(*given), given), backward)
    return call(q, k, v)


def owners(offsets, sizes, length):
  """[B, T]: which text, from 1 on, each slot is of; 0: none."""
  slots = jnp.arange(length)[None, None]
  starts, sizes = offsets[:, :-1, None], sizes[:, :, None]
  own_BMT = (starts >= 0) & (slots >= starts) & (slots < starts + sizes)
  return (own_BMT * jnp.arange(1, own_BMT.shape[1] + 1)[None, :, None]).sum(axis=1)


def public(*args, implementation, **how):
  """`jax.nn.dot_product_attention`, of which the plain implementation does what cuDNN's would."""
  assert implementation == "cudnn"
  return PUBLIC(*args, implementation="xla", **how)


def install(monkeypatch, capability=(9, 0), **how):
  """A machine with such a GPU; returns the fake."""
  fake = Fake(**how)
  monkeypatch.setattr(flash, "fused", fake)
  monkeypatch.setattr(flash, "capability", lambda: capability)
  monkeypatch.setattr(jax.nn, "dot_product_attention", public)
  return fake
