"""Which backend computes an attention: what is asked for, what each can do, what "auto" takes."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from llm_jax import sharding
from llm_jax.errors import UserError
from llm_jax.models import flash

BACKENDS = ("auto", "xla", "xla_chunked", "cudnn")
NO_WINDOW = 1 << 30  # Wider than any text.
LONG = 1024  # Keys of a row above which "auto" never makes all scores at once.

_REFUSED = (
  'config.model.attention="cudnn" cannot be used: {}; set it to "xla_chunked", or to "auto" for '
  "what there is"
)
_NOTED: contextvars.ContextVar["dict[Request, Choice] | None"] = contextvars.ContextVar(
  "noted", default=None
)
_OFFSETS = 1 << 31  # cuDNN counts a packed batch's elements in int32.


@dataclasses.dataclass(frozen=True)
class Request:
  """What a call of `dot_product.attention` is about, as far as it is known while it is traced.

  Attributes:
    backend: the one that is asked for, of `BACKENDS`.
    batch: B, rows.
    length: T, queries of a row.
    keys: S.
    heads: H.
    kv_heads: N.
    width: K, of a head.
    dtype: of queries, keys and values.
    packed: whether there are segments.
    max_segments: the most texts in a row, for cuDNN.
    own: whether keys and queries are those of the same tokens, and there is no cache.
    scale: of the scores; 0: 1 / sqrt(K).
    cap: of the scores; 0: none.
    bias: whether something is added to the scores.
    window: tokens that a query sees; None: known only at run time.
    causal: whether later keys are out of sight.
  """

  backend: str
  batch: int
  length: int
  keys: int
  heads: int
  kv_heads: int
  width: int
  dtype: str
  packed: bool = True
  max_segments: int = 64
  own: bool = True
  scale: float = 0.0
  cap: float = 0.0
  bias: bool = False
  window: int | None = NO_WINDOW
  causal: bool = True

  @classmethod
  def of(cls, q: jax.Array, k: jax.Array, *, own: bool, window: Any, **rest: Any) -> "Request":
    """What is asked of queries [B, T, H, K] and keys [B, N, S, K]; `rest` as the attributes."""
    batch, length, heads, width = q.shape
    return cls(
      batch=batch,
      length=length,
      keys=k.shape[2],
      heads=heads,
      kv_heads=k.shape[1],
      width=width,
      dtype=str(q.dtype),
      own=own and length == k.shape[2],
      window=window if isinstance(window, int) else None,
      **rest,
    )

  def __str__(self) -> str:
    """One phrase for people."""
    keys = "" if self.keys == self.length else f" to {self.keys}"
    groups = "" if self.kv_heads == self.heads else f" over {self.kv_heads} of keys"
    window = ", window by layer" if self.window is None else f", window {self.window}"
    return (
      f"{self.batch} x {self.length} tokens{keys}, {self.heads} heads{groups} of {self.width}, "
      f"{self.dtype}{'' if self.window == NO_WINDOW else window}"
    )


class Choice(NamedTuple):
  """A backend, and why it is this one; "" where it was asked for."""

  backend: str
  why: str


def choose(request: Request) -> str:
  """Returns the backend for a request: "xla", "xla_chunked" or "cudnn".

  "auto" is cuDNN wherever it can do what is asked; else "xla_chunked" for rows of more than `LONG`
  keys and "xla" for the others.

  Raises:
    ValueError: if there is no such backend.
    UserError: if it cannot do what is asked.
  """
  choice = _choice(request)
  noted = _NOTED.get()
  if noted is not None:
    noted[request] = choice
  return choice.backend


def at_once(backend: str, keys: int) -> bool:
  """Whether attention with a position bias has all scores of a row of `keys` keys at once."""
  return backend == "xla" or (backend == "auto" and keys <= LONG)


@contextlib.contextmanager
def recorded() -> Iterator[dict[Request, Choice]]:
  """Collects what is chosen while the body traces a function."""
  noted: dict[Request, Choice] = {}
  token = _NOTED.set(noted)
  try:
    yield noted
  finally:
    _NOTED.reset(token)


def refuse(request: Request) -> None:
  """Checks that cuDNN can do what is asked on some machine.

  Raises:
    UserError: if it cannot.
  """
  reason = _unfit(request)
  if reason:
    raise UserError(_REFUSED.format(reason))


def _unfit(request: Request) -> str:
  """Returns what of a request cuDNN's attention cannot do on any machine; "" if nothing."""
  if request.bias:
    return "it has no position biases (ALiBi, relative positions)"
  if request.cap:
    return "it has no cap of scores (config.model.attention_cap)"
  if not request.causal:
    return "it is causal here, and an encoder or a cross-attention is not"
  if not request.own:
    return (
      "its queries and keys are those of the same tokens: no cache, no rows that are split along "
      "time (config.mesh.sequence)"
    )
  if request.window is None:
    return "its window is one number, and scanned layers have several (config.model.scan)"
  if request.dtype not in ("bfloat16", "float16"):
    return f"it computes in bfloat16 or float16, not in {request.dtype} (config.model.dtype)"
  if request.width % 8 or request.width > 256:
    return (
      "its heads are a multiple of 8 wide and at most 256, not "
      f"{request.width} (config.model.head_dim)"
    )
  return ""


def _choice(request: Request) -> Choice:
  if request.backend not in BACKENDS:
    raise ValueError(
      f'there is no attention backend "{request.backend}"; there are {", ".join(BACKENDS)}'
    )
  if request.backend not in ("auto", "cudnn"):
    return Choice(request.backend, "")
  reason = flash.absent(request.width, _several(request)) or _unfit(request) or _too_large(request)
  if request.backend == "cudnn" and reason:
    raise UserError(_REFUSED.format(reason))
  if not reason:
    return Choice("cudnn", "")
  long = request.keys > LONG
  size = f"rows of {'more than' if long else 'at most'} {LONG} tokens"
  return Choice("xla_chunked" if long else "xla", f"{size}; not cudnn: {reason}")


def _several(request: Request) -> bool:
  """Whether a row may hold several texts."""
  return request.packed and request.max_segments > 1


def _too_large(request: Request) -> str:
  local = request.batch // sharding.ways("batch") * request.length * request.width
  local *= request.heads // sharding.ways("heads")
  if _several(request) and local >= _OFFSETS:
    return (
      f"a device's {local} elements of packed queries are more than it can count, {_OFFSETS} "
      "(raise config.accum)"
    )
  return ""
