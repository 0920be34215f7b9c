"""The models of PPO: which parameters each role has, and which they share.

Parameters are {"policy": a decoder's, "critic": ...}. The critic is {"decoder", "head"}; {"head"}
alone where it reads the policy's states; {"lora", "head"} where it is an adapter on the decoder
that the policy's adapter is on.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax import config
from llm_jax.losses import token
from llm_jax.models import heads, lora
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training
from llm_jax.types import Apply, Batch, Outputs, Params


@dataclasses.dataclass(frozen=True)
class Roles:
  """Policy, critic and reference.

  Attributes:
    model: the decoder of policy and reference.
    critic: the critic's module; of one that reads the policy's states only the head is used.
    kind: "reward", "policy" or "shared", as `config.Ppo.critic`.
    adapter: of policy and critic, if it has a rank.
  """

  model: Transformer
  critic: heads.Critic
  kind: str
  adapter: config.Lora

  @classmethod
  def of(cls, cfg: config.Ppo, shape: config.Model, judge: config.Model | None) -> "Roles":
    """The roles of a run: the decoder has `shape`, the reward model's, if there is one, `judge`."""
    own = judge if cfg.critic == "reward" and judge else shape
    model = Transformer.from_config(shape)
    return cls(model, heads.Critic.from_config(own), cfg.critic, cfg.lora)

  def make_params(self, key: jax.Array) -> Params:
    """Returns new parameters of both that are trained, in their boxes; adapters come later."""
    critic = training.initializer(self.critic)(key)
    if not self._has_decoder:
      critic = {"head": critic["head"]}
    return {"policy": training.initializer(self.model)(key), "critic": critic}

  def loaded(self, policy: Params, critic: Params) -> Params:
    """Returns what replaces the new parameters: a decoder's, and a critic's with all its parts."""
    return {"policy": policy, "critic": critic if self._has_decoder else {"head": critic["head"]}}

  def attach(self, params: Params, key: jax.Array) -> Params:
    """Returns the parameters with new adapters, which change nothing yet."""
    critic, keys = params["critic"], jax.random.split(key)
    policy = lora.attach(params["policy"], self.adapter, keys[0])
    if self._has_decoder:
      critic = critic | {"decoder": lora.attach(critic["decoder"], self.adapter, keys[1])}
    elif self.kind == "policy":
      critic = critic | {lora.KEY: lora.attach(params["policy"], self.adapter, keys[1])[lora.KEY]}
    return {"policy": policy, "critic": critic}

  def trained(self, path: tuple[str, ...]) -> bool:
    """Whether training with adapters changes the parameter at this path."""
    return path[:2] == ("critic", "head") or lora.trained(path)

  def apply(self, params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    """Hidden states of the policy, values [B, T] of the critic: what the objective needs."""
    out = training.decoder_apply(self.model)(params["policy"], batch, rng)
    return out._replace(values=self._values(params, batch, out))

  def annotate(
    self,
    params: Params,
    reference: Params | None,
    batch: Batch,
    temperature: float,
    sampled: bool = False,
  ) -> Batch:
    """Returns old_logps, ref_logps and old_values [B, T] of a rollout's LM batch.

    Args:
      params: of policy and critic.
      reference: of the reference; None: the policy without its adapter is the reference.
      batch: the rollout.
      temperature: that it was drawn with.
      sampled: whether old_logps are the sampler's, and old_values too if it has them: the policy is
        then not read again.
    """
    key, apply = jax.random.key(0), training.decoder_apply(self.model)
    reference = lora.without(params["policy"]) if reference is None else reference

    def logps(out: Outputs) -> jax.Array:
      options = {"mask": batch["mask"], "temperature": temperature, "cap": out.logit_cap}
      return token.token_stats(out.hidden, out.head, batch["targets"], **options).logps

    found = {"ref_logps": logps(apply(reference, batch, key))}
    if sampled and "sampler_values" in batch:
      old_logps, values = batch["sampler_logps"], batch["sampler_values"]
    else:
      out = self.apply(params, batch, key)
      old_logps, values = batch["sampler_logps"] if sampled else logps(out), out.values
    mask = batch["mask"]
    return found | {"old_logps": old_logps * mask, "old_values": values * mask}

  def read_while_drawn(self, params: Params) -> Params | None:
    """A shared critic's head, which the sampler can ask of the states that it draws from."""
    return params["critic"]["head"] if self.kind == "shared" else None

  def judge(self, params: Params) -> Params | None:
    """The reward model's decoder if the critic is an adapter on it, else None."""
    shares = self.adapter.rank and self.kind == "reward"
    return lora.without(params["critic"]["decoder"]) if shares else None

  def _values(self, params: Params, batch: Batch, out: Outputs) -> jax.Array:
    own = params["critic"]
    if self.kind == "shared":
      return heads.ScalarHead().apply({"params": own["head"]}, out.hidden.astype(jnp.float32))
    if not self._has_decoder:
      decoder = {**lora.without(params["policy"]), lora.KEY: own[lora.KEY]}
      own = {"decoder": decoder, "head": own["head"]}
    given = (batch[name] for name in ("tokens", "positions", "segments"))
    return self.critic.apply(lora.variables(own), *given)

  @property
  def _has_decoder(self) -> bool:
    """Whether the critic's decoder is no part of the policy's parameters."""
    return self.kind == "reward" or (self.kind == "policy" and not self.adapter.rank)


def policy_of(apply: Apply) -> Callable:
  """Binds an `apply` of a decoder to the policy among the parameters of all roles."""
  return lambda params, batch, rng: apply(params["policy"], batch, rng)
