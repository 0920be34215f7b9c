"""Answers a second of a PPO iteration, part by part, in turn with a peer.

python -m tools.bench_ppo
python -m tools.bench_ppo --rollouts=64 --batch=16 --epochs=4 --prompt=64 --new=128 --json=ppo.json
python -m tools.bench_ppo --peer='other/bin/python their_ppo.py' --rounds=3

An iteration is what a run does: answers are drawn, their log-probabilities under the policy and the
reference and the critic's values are worked out, the reward model scores them, rewards become
advantages, and policy and critic are updated on minibatches. All four roles have random weights and
the same size, and no answer ends early, so that both sides do all of the work; compilation is not
counted. The peer is any command that prints "<number> tokens/s", new tokens of an iteration over
its seconds; it is run in turn with ours.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config, spec
from llm_jax.errors import UserError
from llm_jax.generate import rollout_to_batch, sample
from llm_jax.losses import objectives
from llm_jax.models import heads
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import flops
from llm_jax.stages import answers, labels, ppo, scores, training
from llm_jax.train import allocator, compiling, optim, parallel
from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import Batch, Params
from tools import _figures, _mesh, bench_train

_NEVER = -1  # An end token that is never drawn.
PARTS = ("sample", "annotate", "score", "label", "update")


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=bench_train.SIZES, default="tiny")
  parser.add_argument("--rollouts", type=int, default=64, help="answers an iteration")
  parser.add_argument("--batch", type=int, default=16, help="answers a minibatch")
  parser.add_argument("--epochs", type=int, default=1, help="passes over an iteration's answers")
  parser.add_argument("--prompt", type=int, default=64, help="tokens a prompt")
  parser.add_argument("--new", type=int, default=64, help="tokens an answer")
  _mesh.add_options(parser)
  parser.add_argument("--dtype", default="float32", help="compute dtype")
  parser.add_argument(
    "--repeats", type=int, default=3, help="timed iterations a round; best counts"
  )
  parser.add_argument("--rounds", type=int, default=1, help="turns of both sides")
  parser.add_argument("--peer", default="", help="command that prints tokens/s")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options = parser.parse_args(argv)
  compiling.cache()
  return _figures.finish(lambda: race(options), table, options.json)


def race(options: argparse.Namespace) -> dict:
  """Returns the figures of all rounds.

  Raises:
    UserError: if a number is below 1, minibatches do not divide an iteration, or the peer fails.
  """
  for name in ("rollouts", "batch", "epochs", "prompt", "new", "repeats", "rounds"):
    if getattr(options, name) < 1:
      raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
  if options.rollouts % options.batch:
    raise UserError(f"--rollouts={options.rollouts} must be a multiple of --batch={options.batch}")
  shape = bench_train.SIZES[options.size][0]
  shape.dtype = options.dtype
  iteration = prepared(shape, options)
  tokens = options.rollouts * options.new
  own: list[dict[str, float]] = []
  theirs: list[float] = []
  for _ in range(options.rounds):
    timed = [iteration() for _ in range(options.repeats)]
    own.append(min(timed, key=lambda seconds: sum(seconds.values())))
    if options.peer:
      theirs.append(bench_train.peer(options.peer))
  return {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "size": options.size,
    "parameters": flops.parameters(shape),
    "rollouts": options.rollouts,
    "batch": options.batch,
    "epochs": options.epochs,
    "prompt": options.prompt,
    "new": options.new,
    "dtype": options.dtype,
    "mesh": options.mesh,
    "seconds": {part: statistics.median(x[part] for x in own) for part in PARTS},
    "tokens_per_second": [tokens / sum(seconds.values()) for seconds in own],
    "peer_tokens_per_second": theirs,
  }


def prepared(shape: config.Model, options: argparse.Namespace) -> Callable[[], dict[str, float]]:
  """Returns a function that makes one iteration and gives the seconds of each part; compiled."""
  cfg = config.Ppo(batch=options.batch, rollouts=options.rollouts, epochs=options.epochs)
  iteration = _Iteration(cfg, shape, options.prompt, options.new, _mesh.make(options))
  iteration()
  return iteration


class _Iteration:
  """Four roles of random weights, and what a run does with them between two rollouts."""

  def __init__(
    self,
    cfg: config.Ppo,
    shape: config.Model,
    prompt: int,
    new: int,
    place: parallel.Placement,
  ):
    self.cfg, self.new = cfg, new
    self.model, self.critic = Transformer.from_config(shape), heads.Critic.from_config(shape)
    self.place = place
    self.step, self.state = _learner(cfg, self.model, self.critic, place)
    scorer = heads.Scorer.from_config(shape)
    self.judge = training.placed(place, scorer, _fresh(scorer, 1))
    self.reference = training.placed(place, self.model, _fresh(self.model, 0))
    self.score, self.label = place.under(scores.reward_model(scorer)), labels.actor_critic(cfg)
    self.logps = place.under(answers.logps_fn(self.model))
    self.values = place.under(jax.jit(self._values))
    random = np.random.default_rng(0)
    self.prompts = random.integers(1, shape.vocab_size, (cfg.rollouts, prompt), np.int32)
    self.keys = jax.random.split(jax.random.key(2), cfg.rollouts)

  def __call__(self) -> dict[str, float]:
    """Returns the seconds of each part."""
    times = [time.perf_counter()]
    lap = lambda: times.append(time.perf_counter())  # noqa: E731
    batch = self._draw()
    lap()
    batch = self._annotate(batch)
    lap()
    scores_B = jax.device_get(self.score(self.judge, self.place.rows(batch)))
    lap()
    ended_B = jnp.ones(self.cfg.rollouts)
    batch, _ = jax.device_get(self.label(batch, scores_B, ended_B, self.cfg.kl_init))
    lap()
    self._update(batch)
    lap()
    return dict(zip(PARTS, np.diff(times).tolist(), strict=True))

  def _draw(self) -> Batch:
    policy, mask = self.place.unreplicate(self.state.params)["policy"], np.ones_like(self.prompts)
    rows = self.place.rows((self.prompts, mask, self.keys))
    draw = self.place.under(sample)
    rollout = draw(self.model, policy, *rows, max_new=self.new, end_id=_NEVER)
    return jax.device_get(rollout_to_batch(rollout))

  def _annotate(self, batch: Batch) -> Batch:
    params, rows = self.place.unreplicate(self.state.params), self.place.rows(batch)
    return batch | jax.device_get({
      "old_logps": self.logps(params["policy"], rows),
      "ref_logps": self.logps(self.reference, rows),
      "old_values": self.values(params["critic"], rows) * rows["mask"],
    })  # fmt: skip

  def _values(self, params: Params, batch: Batch) -> jax.Array:
    given = (batch[name] for name in ("tokens", "positions", "segments"))
    return self.critic.apply({"params": params}, *given)

  def _update(self, batch: Batch) -> None:
    for epoch in range(self.cfg.epochs):
      order = np.random.default_rng(epoch).permutation(self.cfg.rollouts)
      for rows in order.reshape(-1, self.cfg.batch):
        part = {name: value[rows] for name, value in batch.items()}
        self.state, _ = self.step(self.state, self.place.batch(part))
    jax.block_until_ready(self.state)


def _fresh(module, seed: int) -> Params:
  return nn.unbox(jax.jit(training.initializer(module))(jax.random.key(seed)))


def _learner(cfg: config.Ppo, model: Transformer, critic: heads.Critic, place):
  """Returns (the compiled step of policy and critic, its first state)."""
  objective = objectives.actor_critic(
    ppo.policy_apply(model, critic),
    spec.resolve(cfg.loss, "llm_jax.losses.policy"),
    spec.resolve(cfg.value_loss, "llm_jax.losses.policy"),
    value_coef=cfg.value_coef,
    entropy_coef=cfg.entropy_coef,
    temperature=1.0,
  )
  tx = optim.make(config.Optimizer(lr=1e-5, schedule="constant", warmup=0), 1000)

  def make_params(key: jax.Array):
    roles = {"policy": training.initializer(model), "critic": training.initializer(critic)}
    return {name: make(key) for name, make in roles.items()}

  state = place.init(state_maker(make_params, tx), jax.random.key(0))
  return place.compile(make_train_step(objective, tx)), state


def table(figures: dict) -> str:
  """Returns the figures as Markdown."""
  own, theirs = figures["tokens_per_second"], figures["peer_tokens_per_second"]
  whole = sum(figures["seconds"].values())
  lines = [
    f"{_mesh.described(figures)}, jax {figures['jax']}; {figures['size']}, four roles of"
    f" {figures['parameters']:,} parameters, {figures['dtype']}; {figures['rollouts']} answers of"
    f" {figures['prompt']} + {figures['new']} tokens, {figures['epochs']} x"
    f" {figures['rollouts'] // figures['batch']} updates",
    "",
    "| part | seconds | share |",
    "|---|--:|--:|",
  ]
  for part, seconds in figures["seconds"].items():
    lines.append(f"| {part} | {seconds:.3f} | {100 * seconds / whole:.0f} % |")
  lines += [f"| all | {whole:.3f} | 100 % |", ""]
  lines.append(f"new tokens/s: {', '.join(f'{rate:,.0f}' for rate in own)}")
  if theirs:
    ratio = statistics.median(own) / statistics.median(theirs)
    lines.append(f"peer, tokens/s: {', '.join(f'{rate:,.0f}' for rate in theirs)}")
    lines.append(f"ratio of the medians: {ratio:.2f}")
  return "\n".join(lines)


if __name__ == "__main__":
  allocator.huge_pages()
  sys.exit(main())
