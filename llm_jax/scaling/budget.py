"""What a run needs before it starts, and what a budget buys: memory, FLOPs, time, money, energy."""

import math
from typing import NamedTuple

from llm_jax.config import Mesh, Model
from llm_jax.scaling import chinchilla, flops
from llm_jax.scaling.chinchilla import Law

GIB = 2**30
LONG = 1024  # Tokens of a row above which attention goes by blocks if it is "auto".
# Float32 numbers that an optimizer keeps for each parameter; Adafactor's rows and columns are few.
MOMENTS = {"adamw": 2, "muon": 2, "lion": 1, "adafactor": 0, "schedule_free": 2}

_NEAR = 1.5  # Within this factor of the optimal tokens per parameter a run is near the optimum.
_SECONDS = 86400.0  # Of a day.
_MOST = 1e30  # Of any number that is given: what is beyond is a slip of the hand.


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


class Budget(NamedTuple):
  """One run, and what its FLOPs would be best for.

  Attributes:
    params: N.
    tokens: D.
    flops: 6 N D.
    device_hours: of all devices.
    days: on the wall clock.
    dollars: for them.
    kilowatt_hours: at the devices' rated power, without hosts and cooling; None: it is not known.
    loss: of the law, nats per token.
    best: (N, D) of least loss for these FLOPs by the law.
    best_loss: of that.
    rule: (N, D) by 20 tokens per parameter.
    kaplan: (N, D) by Kaplan et al. 2020.
    waste: these FLOPs over the least that reach the same loss.
  """

  params: float
  tokens: float
  flops: float
  device_hours: float
  days: float
  dollars: float
  kilowatt_hours: float | None
  loss: float
  best: tuple[float, float]
  best_loss: float
  rule: tuple[float, float]
  kaplan: tuple[float, float]
  waste: float

  @property
  def verdict(self) -> str:
    """One line: under-trained, near the optimum, or over-trained."""
    own, best = self.tokens / self.params, self.best[1] / self.best[0]
    beside = f"{own:.3g} tokens per parameter, {best:.3g} would be optimal"
    if own < best / _NEAR:
      return f"under-trained ({beside}): a smaller model on more tokens would be better"
    if own > best * _NEAR:
      return (
        f"over-trained ({beside}): {self.waste:.2f} times the FLOPs that its loss needs, for a"
        f" model of 1/{self.best[0] / self.params:.2g} of the size that would be best"
      )
    return f"near the optimum ({beside})"


def plan(
  *,
  devices: int,
  peak: float,
  mfu: float = 0.4,
  params: float = 0.0,
  days: float = 0.0,
  tokens: float = 0.0,
  price: float = 0.0,
  watts: float | None = None,
  law: Law = chinchilla.PUBLISHED["besiroglu"],
) -> Budget:
  """What a run is of which two of N, D and days are known, or only the days.

  Args:
    devices: how many.
    peak: FLOPs per second of one.
    mfu: the share of it that is reached.
    params: N; 0: what days and tokens leave, or the best for the days.
    days: of all devices; 0: as many as it takes.
    tokens: D; 0: as many as the days are enough for.
    price: of a device and hour, in dollars.
    watts: of a device.
    law: what loss to expect; by default the refit of Chinchilla's runs, on their text.

  Raises:
    ValueError: if all three or too few are given, or a number is out of range.
  """
  if not all(0 <= x <= _MOST for x in (days, tokens, params, price, devices, peak)):
    raise ValueError(f"numbers must be 0 to {_MOST:.0e}")
  known = sum(x > 0 for x in (days, tokens, params))
  if known != 2 and not (known == 1 and days):
    raise ValueError("give two of them, or days alone")
  if devices < 1 or peak <= 0 or not 0 < mfu <= 1:
    raise ValueError("devices and peak must be above 0, mfu in (0, 1]")
  speed = devices * peak * mfu
  total = speed * days * _SECONDS if days else chinchilla.FLOPS * params * tokens
  if not total >= chinchilla.FLOPS:
    raise ValueError("this is less than one parameter and token")
  best = tuple(float(x) for x in chinchilla.optimal(law, total))
  params = params or (total / (chinchilla.FLOPS * tokens) if tokens else best[0])
  tokens = total / (chinchilla.FLOPS * params)
  hours = total / speed / 3600
  reached = float(chinchilla.loss(law, params, tokens))
  return Budget(
    params, tokens, total, hours * devices, hours / 24, hours * devices * price,
    None if watts is None else hours * devices * watts / 1000,
    reached, best, float(chinchilla.loss(law, *best)),
    tuple(float(x) for x in chinchilla.rule(total)),
    tuple(float(x) for x in chinchilla.kaplan(total)),
    total / chinchilla.flops_for(law, reached),
  )  # fmt: skip


def mfu(params: float, tokens: float, device_hours: float, peak: float) -> float:
  """The share of the peak that a run reached, by 6 N D.

  Llama 2 (arXiv:2307.09288, table 2) gives the hours of its A100s: .39, .38 and .43 for 7B, 13B and
  70B on 2e12 tokens.
  """
  return chinchilla.FLOPS * params * tokens / (device_hours * 3600 * peak)


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
  own_rows = math.ceil(rows / (data * fsdp))
  tokens = own_rows * length // sequence
  layer, scores, kept = _activations(cfg, own_rows, length, sequence, tensor, block)
  kernels = size * 2 * math.ceil(flops.layer_matmuls(cfg) / tensor)
  vocabulary = math.ceil(cfg.vocab_size / tensor)
  # A layer with its gradients, the states before and behind the head in float32, and logits.
  working = 2 * layer + scores + 2 * 4 * tokens * cfg.dim + 3 * 4 * min(chunk, tokens) * vocabulary
  own_cached = math.ceil(cached / (data * fsdp)) * math.ceil(flops.kv_heads(cfg) / tensor)
  return Memory(
    parameters=roles.trained * weights,
    gradients=weights if roles.trained else 0,
    moments=roles.trained * moments,
    frozen=roles.frozen * weights,
    gathered=kernels + (2 * size + 4) * vocabulary * cfg.dim,
    kept=kept,
    working=working,
    cache=2 * own_cached * cfg.layers * width * size,
  )


def _activations(
  cfg: Model, rows: int, length: int, sequence: int, tensor: int, block: int
) -> tuple[int, int, int]:
  """Bytes of all that one layer makes, of scores that it makes again, and of what all layers keep.

  The rows are a device's; a row of `length` is split over `sequence`, and features over `tensor`.
  """
  size, width = flops.BYTES[cfg.dtype], flops.head_width(cfg)
  heads, kv = math.ceil(cfg.heads / tensor), math.ceil(flops.kv_heads(cfg) / tensor)
  inner = math.ceil(flops.mlp_width(cfg) / tensor)
  tokens, stream = rows * length // sequence, rows * length // (sequence * tensor)
  projected = (heads + 2 * kv) * width
  # What each part of a layer reads again in its backward pass. Residual stream, norms and outputs
  # of both halves; projections before and after the rotation; the inner arrays of the MLP.
  outside = size * 6 * cfg.dim
  inside = size * (2 * projected + heads * width + inner * (4 if cfg.mlp == "gated" else 3))
  layer = stream * outside + tokens * inside
  # Scores in float32, and the weights.
  by_blocks = not (cfg.attention == "xla" or (cfg.attention == "auto" and length <= LONG))
  scores = rows * heads * length * (block if by_blocks else length // sequence) * (4 + size)
  if not by_blocks:
    layer, scores = layer + scores, 0
  if cfg.remat == "none":
    return layer, scores, cfg.layers * layer
  between, within = _named(cfg, projected, heads * width, inner)
  kept = cfg.layers * size * (stream * cfg.dim * (1 + between) + tokens * within)
  return layer, scores, kept


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


def _named(cfg: Model, projected: int, mixed: int, inner: int) -> tuple[int, int]:
  """What a policy keeps of a layer on the device, besides its input (models/remat.py).

  Returns:
    Arrays of the model's width, and other numbers of a token.
  """
  if cfg.remat == "save_attention":
    return 0, mixed
  if cfg.remat != "save_dots":
    return 0, 0
  outputs = 2 if cfg.post_norm else 0 if cfg.parallel else 1
  return outputs, projected + mixed + inner * (2 if cfg.mlp == "gated" else 1)
