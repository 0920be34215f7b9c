"""What a layer keeps of its forward pass for its backward pass, by name: config.model.remat."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from llm_jax import config
from llm_jax.errors import UserError

POLICIES = ("none", "full", "save_attention", "save_dots", "offload")

# What layers name (`checkpoint_name`), each what a matrix product gives.
_ATTENTION = "attention"
_INNER = ("q", "k", "v", _ATTENTION, "up", "gate")
_HOST = "pinned_host"
# A fused kernel gives what its gradient reads, outputs and log-denominators, where no name reaches.
_FUSED = "dot_product_attention_fwd"

Policy = Callable[..., Any]


def policy(cfg: config.Model) -> Policy | None:
  """Returns what `jax.checkpoint` asks of each array of a layer; None: nothing is kept.

  Args:
    cfg: a model whose remat is not "none".

  Raises:
    UserError: if arrays cannot be kept on this host.
  """
  if cfg.remat == "full":
    return None
  if cfg.remat == "save_attention":
    return _named((_ATTENTION,))
  if cfg.remat == "save_dots":
    return _named(kept(cfg))
  memories = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
  if _HOST not in memories:
    kind = jax.local_devices()[0].device_kind
    raise UserError(
      f'config.model.remat="offload" cannot be used: a device of this kind ({kind}) has no memory '
      f'"{_HOST}"; set it to "save_dots" or "full"'
    )
  return _named(kept(cfg), _HOST)


def kept(cfg: config.Model) -> tuple[str, ...]:
  """Returns the names of all products of a layer that its gradient reads.

  What a branch returns is only added to the stream, so its gradient needs it in two cases: a norm
  reads it, or the sum with it is what the next norm reads.
  """
  out = () if cfg.parallel and not cfg.post_norm else ("o",)
  return (*_INNER, *out, *(("down",) if cfg.post_norm else ()))


@functools.cache
def _named(names: tuple[str, ...], where: str = "") -> Policy:
  """Keeps arrays of these names, and what fused kernels return, on the device or in a memory."""
  if not where:
    by_name, keep = jax.checkpoint_policies.save_only_these_names(*names), True
  else:
    by_name = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(names),
      offload_src="device",
      offload_dst=where,
    )
    # The public way to the answer "keep it there", which a policy of ours may give too.
    products = jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", where)
    keep = products(jax.lax.dot_general_p, dimension_numbers=(((), ()), ((), ())))

  def decide(primitive: Any, *avals: Any, **params: Any) -> Any:
    if primitive.name.startswith(_FUSED):
      return keep
    return by_name(primitive, *avals, **params)

  return decide
