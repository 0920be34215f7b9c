"""The models of PPO in numbers: bytes of each role at rest, and how often each is read."""

import re

from llm_jax.config import Model, Ppo
from llm_jax.scaling import budget, flops

_JUDGES = re.compile(r"\breward_model\(")
_ENSEMBLE = re.compile(r"\bensemble\(\s*runs\s*=\s*[(\[]([^)\]]*)[)\]]")


def at_rest(cfg: Ppo, shape: Model) -> dict[str, int]:
  """Returns float32 bytes by role between two updates, on one device; all decoders are of `shape`.

  With adapters the reference is the policy without its own, and a critic that starts from the
  reward model shares the decoder with it: what both are on counts once, as the reference's and the
  reward model's.

  Args:
    cfg: the stage.
    shape: of its decoders.

  Returns:
    {"policy", "reference", "critic", "reward", "moments"}: bytes; of Adafactor's moments none.
  """
  decoder, head = 4 * flops.parameters(shape), 4 * (shape.dim + 1)
  adapter = 4 * flops.adapter_parameters(shape, cfg.lora) if cfg.lora.rank else 0
  policy = adapter or decoder
  critic = head + (0 if cfg.critic == "shared" else policy)
  count = judges(cfg)
  judge = count * (decoder + head)
  if adapter and cfg.critic == "reward" and not count:
    judge = decoder  # Nobody asks it, but the critic's adapter is on its decoder.
  moments = budget.MOMENTS[cfg.optimizer.name] * (policy + critic)
  return {
    "policy": policy, "reference": decoder, "critic": critic, "reward": judge, "moments": moments,
  }  # fmt: skip


def judges(cfg: Ppo) -> int:
  """How many reward models an iteration asks."""
  if not cfg.score:
    return 1
  runs = sum(len(re.findall(r"['\"][^'\"]+['\"]", x)) for x in _ENSEMBLE.findall(cfg.score))
  return len(_JUDGES.findall(cfg.score)) + runs


def forwards(cfg: Ppo) -> float:
  """Forward passes' worth of FLOPs for a token that is trained on.

  An update is three of policy and critic, two where adapters are trained: frozen kernels have no
  gradient. Once an iteration's answers are drawn, read by policy, reference and critic, and scored.
  """
  models = 1 if cfg.critic == "shared" else 2
  update = (2 if cfg.lora.rank else 3) * models
  again = cfg.critic == "shared" or cfg.old_logps == "learner"
  once = 2 + again + (models - 1) + judges(cfg)
  return update + once / max(cfg.epochs, 1)
