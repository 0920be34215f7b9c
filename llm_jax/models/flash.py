"""cuDNN's flash attention on NVIDIA GPUs; all but two calls of it runs, and is tested, anywhere.

Shape letters: B batch, T tokens of a row, H heads, N key-value heads, K head width, M most texts of
a row.
"""

import inspect

import jax
import jax.numpy as jnp

from llm_jax import sharding

try:  # Packed rows are not in the public interface of JAX.
  from jax._src.cudnn import fused_attention_stablehlo as fused
except ImportError:
  fused = None

# The tiles of the kernels. cuDNN's gradient is NaN at some lengths that are not a multiple of it,
# where scores are far below zero (github.com/NVIDIA/cudnn-frontend/pull/628), and other odd lengths
# are refused.
_TILE = 128
# From here on its backward pass of packed rows no longer reads memory that nobody wrote
# (github.com/NVIDIA/TransformerEngine/issues/2186).
_CUDNN_PACKED = 91800
# From here on the offsets of packed keys are right where N < H (github.com/jax-ml/jax/pull/39521);
# before, the attention reads other tokens' keys and raises nothing.
_JAX_GROUPED = (0, 11, 1)
_KEYWORDS = (
  "query", "key", "value", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type",
  "qkv_layout", "sliding_window_length",
)  # fmt: skip


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: jax.Array | None,
  *,
  scale: float,
  window: int,
  max_segments: int,
) -> jax.Array:
  """Causal self-attention within segments by cuDNN; no array of T T elements.

  Segments are runs that are numbered upwards, as packing makes them. A row that has more than
  `max_segments` of them, or one in two pieces, comes out as NaN, never as something else. Padding
  (segment 0) comes out as 0 and has no gradient. Dao et al. 2022, arXiv:2205.14135.

  Args:
    q: [B, T, H, K] bfloat16 or float16.
    k: [B, N, T, K], N divides H.
    v: [B, N, T, K].
    segments: [B, T] int32, or None: one text a row and no padding.
    scale: of the scores.
    window: tokens that a query sees, its own included.
    max_segments: M, the most texts of a row; the backward pass keeps M B H T floats. 1: a row is
      one text from its first slot on, and an older GPU will do.

  Returns:
    [B, T, H, K].
  """
  length = q.shape[1]
  q, k, v = _whole_tiles(q), _whole_tiles(k.swapaxes(1, 2)), _whole_tiles(v.swapaxes(1, 2))
  q, k, v = _placed(q, k, v, packed=segments is not None and max_segments > 1)
  reach = None if window >= length else window
  if segments is None:
    return causal(q, k, v, scale, reach)[:, :length]
  segments = _whole_tiles(segments)
  starts_BM, sizes_BM, fits_B = runs(segments, max_segments)
  real_BT11 = (segments > 0)[:, :, None, None]
  if max_segments == 1:
    fits_B = fits_B & (starts_BM[:, 0] <= 0)
    out = causal(q, k, v, scale, reach)
  else:
    # Of padding cuDNN writes neither output nor gradient: both are whatever was in memory. Where it
    # is replaced on the way in, its gradient is dropped on the way out.
    q, k, v = (jnp.where(real_BT11, x, 0) for x in (q, k, v))
    out = packed(q, k, v, starts_BM, sizes_BM, scale, reach)
  out = jnp.where(real_BT11, out, 0)
  return jnp.where(fits_B[:, None, None, None], out, jnp.nan)[:, :length]


def runs(segments: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Where each text of a row lies.

  Args:
    segments: [B, T] int32, 0 is padding.
    most: M.

  Returns:
    The first slot of each text and its length, int32 [B, M], -1 where there is none; and whether
    the row's texts are at most M, each in one piece and numbered upwards, [B].
  """
  before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
  real = segments > 0
  first = real & (segments != before)
  number = jnp.cumsum(first, axis=1)
  own_BMT = real[:, None] & (number[:, None] == jnp.arange(1, most + 1)[None, :, None])
  sizes_BM = own_BMT.sum(axis=2, dtype=jnp.int32)
  starts_BM = jnp.argmax(own_BMT, axis=2).astype(jnp.int32)
  upwards = jnp.where(first, segments > jax.lax.cummax(before, axis=1), True)
  there = sizes_BM > 0
  fits_B = (number[:, -1] <= most) & upwards.all(axis=1)
  return jnp.where(there, starts_BM, -1), jnp.where(there, sizes_BM, -1), fits_B


def absent(width: int, several: bool) -> str:
  """Returns why cuDNN's attention cannot run on this machine; "" if it can.

  Args:
    width: K.
    several: whether a row may hold several texts.
  """
  found = capability()
  if found is None:
    return "there is no NVIDIA GPU"
  this = f"this GPU has compute capability {found[0]}.{found[1]}"
  if found < (8, 0):
    return f"it needs an Ampere GPU or a newer one, {this}"
  if width > 128 and found < (9, 0):
    return f"heads wider than 128 need a Hopper GPU or a newer one, {this}"
  if several and found < (9, 0):
    return (
      f"packed rows need a Hopper GPU or a newer one, {this} (config.model.attention_segments=1 is "
      "for rows of one text)"
    )
  if fused is None or not set(_KEYWORDS) <= set(
    inspect.signature(fused.dot_product_attention).parameters
  ):
    return f"jax {jax.__version__} has another interface to it"
  try:
    version = fused.check_cudnn_version()
  except RuntimeError:
    return "cuDNN is not installed"
  if several and version < _CUDNN_PACKED:
    needed, own = (f"{v // 10_000}.{v // 100 % 100}" for v in (_CUDNN_PACKED, version))
    return f"packed rows need cuDNN {needed} or newer, this is {own}"
  return ""


def capability() -> tuple[int, int] | None:
  """Returns the compute capability of the NVIDIA GPU that JAX computes on, or None."""
  device = jax.local_devices()[0]
  if device.platform not in ("gpu", "cuda"):
    return None
  try:  # Other vendors' GPUs have names there.
    major, minor = (int(part) for part in str(device.compute_capability).split("."))
  except (AttributeError, ValueError):
    return None
  return major, minor


def causal(q, k, v, scale: float, window: int | None) -> jax.Array:
  """The call for rows that are whole: q [B, T, H, K], k and v [B, T, N, K] -> [B, T, H, K]."""
  return jax.nn.dot_product_attention(
    q, k, v, scale=scale, is_causal=True, implementation="cudnn",
    local_window_size=None if window is None else (window - 1, 0),
  )  # fmt: skip


def packed(q, k, v, starts, sizes, scale: float, window: int | None) -> jax.Array:
  """The call for packed rows: like `causal`, with starts and sizes int32 [B, M], -1 where none."""
  assert fused is not None  # `absent` says so before.
  starts, sizes = (sharding.constrain(x, ("batch", None)) for x in (starts, sizes))
  offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
  return fused.dot_product_attention(
    query=q, key=k, value=v, q_seqlen=sizes, kv_seqlen=sizes, q_offsets=offsets, kv_offsets=offsets,
    scale=scale, mask_type=fused.MaskType.PADDING_CAUSAL, qkv_layout="BTNH",
    sliding_window_length=window,
  )  # fmt: skip


def _whole_tiles(x: jax.Array) -> jax.Array:
  """[B, T, ...], filled up with zeros: later keys are out of sight, and segment 0 is padding."""
  return jnp.pad(x, [(0, 0), (0, -x.shape[1] % _TILE), *[(0, 0)] * (x.ndim - 2)])


def _placed(q, k, v, packed: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The arrays where cuDNN wants them: split by rows and heads, all three in the same way."""
  names, axis = ("batch", None, "heads", None), "kv"
  repeats = q.shape[2] // k.shape[2]
  if repeats > 1 and (k.shape[2] % sharding.ways(axis) or (packed and _grouped_is_wrong())):
    k, v, axis = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2), "heads"
  own = ("batch", None, axis, None)
  return sharding.constrain(q, names), sharding.constrain(k, own), sharding.constrain(v, own)


def _grouped_is_wrong() -> bool:
  """Whether this JAX reads wrong keys of packed rows where N < H.

  There the key-value heads are repeated: memory for H of them, and nothing else.
  """
  return jax.__version_info__ < _JAX_GROUPED
