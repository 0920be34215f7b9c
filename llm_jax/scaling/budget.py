"""What a run needs before it starts: memory of a device by part, FLOPs, hours and money."""

import math
from typing import NamedTuple

from llm_jax.config import Mesh, Model
from llm_jax.scaling import flops

GIB = 2**30
# Float32 numbers that an optimizer keeps for each parameter; Adafactor's rows and columns are few.
MOMENTS = {"adamw": 2, "muon": 2, "lion": 1, "adafactor": 0, "schedule_free": 2}


class Roles(NamedTuple):
  """The models of a stage, all of one shape.

  Attributes:
    trained: with gradients and an optimizer; PPO has a policy and a critic.
    frozen: only read; PPO has a reference and a reward model.
  """

  trained: int = 1
  frozen: int = 0


_ONE = Roles()


class Memory(NamedTuple):
  """Bytes on each device.

  Attributes:
    parameters: float32, of what is trained.
    gradients: float32.
    moments: the optimizer's.
    frozen: float32 parameters of the other roles.
    gathered: kernels of a layer in use, of the tables and the head, in the compute dtype, and the
      head's float32 gradient before it is scattered.
    kept: what the forward pass keeps for the backward pass.
    working: of the layer at work, of the final states and of one chunk of logits.
    cache: keys and values of the answers that are drawn at a time.
  """

  parameters: int
  gradients: int
  moments: int
  frozen: int
  gathered: int
  kept: int
  working: int
  cache: int

  @property
  def total(self) -> int:
    """The sum."""
    return sum(self)


def memory(
  cfg: Model,
  mesh: Mesh,
  devices: int,
  *,
  rows: int,
  length: int,
  optimizer: str = "adamw",
  roles: Roles = _ONE,
  cached: int = 0,
  chunk: int = 512,
  block: int = 128,
) -> Memory:
  """Returns the memory of a training step in closed form; activations are an estimate.

  Args:
    cfg: the decoder.
    mesh: how it is split; of its sizes one may be -1.
    devices: in all.
    rows: of a microbatch, over all devices.
    length: tokens a row.
    optimizer: see `MOMENTS`.
    roles: the models.
    cached: tokens over all devices whose keys and values exist at once, for sampling.
    chunk: tokens of a device whose logits exist at once (losses/stats.py).
    block: queries at a time of attention by blocks (models/dot_product.py).

  Raises:
    ValueError: if the vocabulary's size is 0.
  """
  data, fsdp, sequence, tensor = sizes(mesh, devices)
  size, width = flops.BYTES[cfg.dtype], flops.head_width(cfg)
  weights = 4 * math.ceil(flops.parameters(cfg) / (fsdp * tensor))
  moments = MOMENTS[optimizer] * weights // (data if mesh.zero else 1)
  heads, kv = math.ceil(cfg.heads / tensor), math.ceil(flops.kv_heads(cfg) / tensor)
  inner = math.ceil(flops.mlp_width(cfg) / tensor)
  own_rows = math.ceil(rows / (data * fsdp))
  tokens, stream = own_rows * length // sequence, own_rows * length // (sequence * tensor)
  projected = (heads + 2 * kv) * width
  # Of one token in one layer: what each part of it reads again in its backward pass.
  outside = size * 6 * cfg.dim
  inside = size * (2 * projected + heads * width + inner * (4 if cfg.mlp == "gated" else 3))
  by_blocks = cfg.attention != "xla"
  scores = own_rows * heads * length * (block if by_blocks else length // sequence) * (4 + size)
  layer = stream * outside + tokens * inside
  if not by_blocks:
    layer += scores
  if cfg.remat in ("none", ""):
    kept = cfg.layers * layer
  else:
    kept = cfg.layers * stream * size * cfg.dim
    kept += cfg.layers * tokens * size * _named(cfg.remat, projected, heads * width, inner, cfg.dim)
  kernels = size * 2 * math.ceil(flops.layer_matmuls(cfg) / tensor)
  table = math.ceil(cfg.vocab_size / tensor) * cfg.dim
  logits = 3 * 4 * min(chunk, tokens) * math.ceil(cfg.vocab_size / tensor)
  # A layer with its gradients, the states before and behind the head in float32.
  working = 2 * layer + (scores if by_blocks else 0) + 2 * 4 * tokens * cfg.dim + logits
  each = math.ceil(cached / (data * fsdp))
  return Memory(
    parameters=roles.trained * weights,
    gradients=weights,
    moments=roles.trained * moments,
    frozen=roles.frozen * weights,
    gathered=kernels + (2 * size + 4) * table,
    kept=kept,
    working=working,
    cache=2 * each * cfg.layers * kv * width * size,
  )


def sizes(mesh: Mesh, devices: int) -> tuple[int, int, int, int]:
  """Returns (data, fsdp, sequence, tensor), the -1 worked out.

  Raises:
    ValueError: if they do not make up the devices.
  """
  found = [mesh.data, mesh.fsdp, mesh.sequence, mesh.tensor]
  known = math.prod(n for n in found if n != -1)
  if -1 in found and devices % known == 0:
    found[found.index(-1)] = devices // known
  if math.prod(found) != devices:
    raise ValueError(f"data, fsdp, sequence, tensor = {found} do not make up {devices} devices")
  return found[0], found[1], found[2], found[3]


def hours(step_flops: float, steps: int, devices: int, peak: float, mfu: float) -> float:
  """Returns the hours that a run takes.

  Args:
    step_flops: of a step over all devices, those of the model.
    steps: of the run.
    devices: that share them.
    peak: FLOPs per second of a device.
    mfu: the share of the peak that is reached, of model FLOPs.
  """
  return step_flops * steps / (devices * peak * mfu) / 3600


def _named(remat: str, projected: int, mixed: int, inner: int, dim: int) -> int:
  """Numbers of a token and layer that a policy keeps besides the layer's input."""
  dots = projected + 2 * inner + 2 * dim
  return {"save_attention": mixed, "save_dots": dots, "dots": dots}.get(remat, 0)
