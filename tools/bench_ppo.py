"""Answers a second of a PPO iteration, part by part, in turn with a peer.

python -m tools.bench_ppo
python -m tools.bench_ppo --rollouts=64 --batch=16 --epochs=4 --prompt=64 --new=128 --json=ppo.json
python -m tools.bench_ppo --lora=8 --critic=shared --old_logps=sampler
python -m tools.bench_ppo --peer='other/bin/python their_ppo.py' --rounds=3

An iteration is what a run does: answers are drawn, their log-probabilities under the policy and the
reference and the critic's values are worked out, the reward model scores them, rewards become
advantages, and policy and critic are updated on minibatches. All four roles have random weights and
the same size, and no answer ends early, so that both sides do all of the work; compilation is not
counted. With --lora policy and critic are adapters, and the reference is the policy without it.
The peer is any command that prints "<number> samples/s", answers of an iteration over its seconds;
it is run in turn with ours.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config, spec
from llm_jax.errors import UserError
from llm_jax.generate import rollout_to_batch, sample
from llm_jax.losses import objectives, token
from llm_jax.models import heads, lora
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import flops, roles
from llm_jax.stages import labels, ppo, scores, training
from llm_jax.stages.roles import Roles
from llm_jax.train import allocator, compiling, optim, parallel
from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import Batch, Params, TrainState
from tools import _figures, _mesh, bench_train

_ROLLOUT = ("old_logps", "ref_logps", "old_values", "advantages", "returns")
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
  parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all is trained")
  parser.add_argument("--critic", default="reward", help="see config.Ppo: reward, policy or shared")
  parser.add_argument("--old_logps", default="learner", help="see config.Ppo: learner or sampler")
  _mesh.add_options(parser)
  parser.add_argument("--dtype", default="float32", help="compute dtype")
  parser.add_argument("--matmul_precision", default="", help="see config.model.matmul_precision")
  parser.add_argument(
    "--repeats", type=int, default=3, help="timed iterations a round; best counts"
  )
  parser.add_argument("--rounds", type=int, default=1, help="turns of both sides")
  parser.add_argument("--peer", default="", help="command that prints samples/s")
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
  shape.dtype, shape.matmul_precision = options.dtype, options.matmul_precision
  iteration = prepared(shape, options)
  live, update, tuned = iteration.live(), iteration.temporaries(), tuning(shape, options)
  own: list[dict[str, float]] = []
  theirs: list[float] = []
  for _ in range(options.rounds):
    timed = [iteration() for _ in range(options.repeats)]
    own.append(min(timed, key=lambda seconds: sum(seconds.values())))
    if options.peer:
      theirs.append(bench_train.peer(options.peer, "samples/s"))
  return {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "size": options.size,
    "parameters": flops.parameters(shape),
    "rollouts": options.rollouts,
    "batch": options.batch,
    "epochs": options.epochs,
    "lora": options.lora,
    "critic": options.critic,
    "old_logps": options.old_logps,
    "prompt": options.prompt,
    "new": options.new,
    "dtype": options.dtype,
    "matmul_precision": options.matmul_precision,
    "mesh": options.mesh,
    "seconds": {part: statistics.median(x[part] for x in own) for part in PARTS},
    "answers_per_second": [options.rollouts / sum(seconds.values()) for seconds in own],
    "peer_answers_per_second": theirs,
    "bytes": {
      "planned": roles.at_rest(iteration.cfg, shape),
      "live": live,
      "update": update,
      "tuning": tuned,
    },
  }


def prepared(shape: config.Model, options: argparse.Namespace) -> "_Iteration":
  """Returns what makes one iteration and gives the seconds of each part; compiled."""
  cfg = config.Ppo(
    batch=options.batch, rollouts=options.rollouts, epochs=options.epochs,
    lora=config.Lora(options.lora), critic=options.critic, old_logps=options.old_logps,
  )  # fmt: skip
  cfg.sampling.temperature = 1.0
  cfg.validate()
  iteration = _Iteration(cfg, shape, options.prompt, options.new, _mesh.make(options))
  iteration()
  return iteration


class _Iteration:
  """Roles of random weights, and what a run does with them between two rollouts."""

  def __init__(
    self,
    cfg: config.Ppo,
    shape: config.Model,
    prompt: int,
    new: int,
    place: parallel.Placement,
  ):
    self.cfg, self.new, self.place = cfg, new, place
    self.roles = Roles.of(cfg, shape, shape)
    self.step, self.state = _learner(cfg, self.roles, place)
    scorer = heads.Scorer.from_config(shape)
    self.judge = training.placed(place, scorer, _fresh(scorer, 1))
    if self.roles.judge(self.state.whole) is not None:
      self.judge = {"head": self.judge["head"]}
    self.score, self.label = place.under(scores.reward_model(scorer)), labels.actor_critic(cfg)
    model, self.reference = self.roles.model, None
    if not cfg.lora.rank:
      self.reference = training.placed(place, model, _fresh(model, 0))
    sampled = cfg.old_logps == "sampler"
    annotate = functools.partial(self.roles.annotate, temperature=1.0, sampled=sampled)
    self.annotate = place.under(jax.jit(annotate))
    random = np.random.default_rng(0)
    self.prompts = random.integers(1, shape.vocab_size, (cfg.rollouts, prompt), np.int32)
    self.keys = jax.random.split(jax.random.key(2), cfg.rollouts)

  def __call__(self) -> dict[str, float]:
    """Returns the seconds of each part."""
    times = [time.perf_counter()]
    lap = lambda: times.append(time.perf_counter())  # noqa: E731
    params = self.place.unreplicate(self.state.whole)
    batch = self._draw(params)
    lap()
    batch |= jax.device_get(self.annotate(params, self.reference, self.place.rows(batch)))
    lap()
    scores_B = jax.device_get(self.score(self.lent(params), self.place.rows(batch)))
    lap()
    ended_B = jnp.ones(self.cfg.rollouts)
    batch, _ = jax.device_get(self.label(batch, scores_B, ended_B, self.cfg.kl_init))
    lap()
    self._update(batch)
    lap()
    return dict(zip(PARTS, np.diff(times).tolist(), strict=True))

  def lent(self, params: Params) -> Params:
    """The reward model, on the decoder that the critic's adapter is on if there is one."""
    decoder = self.roles.judge(params)
    return self.judge if decoder is None else {"decoder": decoder, "head": self.judge["head"]}

  def live(self) -> dict[str, int]:
    """Bytes that each role has between two updates, an array of two roles once."""
    params = self.state.whole
    parts = {
      "reference": self.reference or lora.without(params["policy"]),
      "reward": self.lent(params),
      "policy": params["policy"], "critic": params["critic"], "moments": self.state.opt_state,
    }  # fmt: skip
    seen: set[int] = set()
    sizes = {}
    for name, tree in parts.items():
      own = {id(x): x.nbytes for x in jax.tree.leaves(tree) if id(x) not in seen}
      sizes[name], seen = sum(own.values()), seen | own.keys()
    return sizes

  def temporaries(self) -> int:
    """Bytes that an update needs beside what lives."""
    rows = self.cfg.batch, self.prompts.shape[1] + self.new - 1
    return _temporaries(self.step, self.state, self.place, _blank(*rows, _ROLLOUT))

  def _draw(self, params: Params) -> Batch:
    mask = np.ones_like(self.prompts)
    rows = self.place.rows((self.prompts, mask, self.keys))
    draw = self.place.under(sample)
    sampled = self.cfg.old_logps == "sampler"
    rollout = draw(
      self.roles.model, params["policy"], *rows, max_new=self.new, end_id=_NEVER,
      value=self.roles.read_while_drawn(params) if sampled else None,
    )  # fmt: skip
    return jax.device_get(rollout_to_batch(rollout))

  def _update(self, batch: Batch) -> None:
    for epoch in range(self.cfg.epochs):
      order = np.random.default_rng(epoch).permutation(self.cfg.rollouts)
      for rows in order.reshape(-1, self.cfg.batch):
        part = {name: value[rows] for name, value in batch.items()}
        self.state, _ = self.step(self.state, self.place.batch(part))
    jax.block_until_ready(self.state)


def _fresh(module, seed: int) -> Params:
  return nn.unbox(jax.jit(training.initializer(module))(jax.random.key(seed)))


def _learner(cfg: config.Ppo, roles: Roles, place: parallel.Placement):
  """Returns (the compiled step of policy and critic, its first state)."""
  losses = (spec.resolve(x, "llm_jax.losses.policy") for x in (cfg.loss, cfg.value_loss))
  loss_fn = ppo.objective(cfg, roles, *losses)
  tx = optim.make(config.Optimizer(lr=1e-5, schedule="constant", warmup=0), 1000)
  adapters = (roles.trained, roles.attach) if cfg.lora.rank else ()
  state = place.init(state_maker(roles.make_params, tx, *adapters), jax.random.key(0))
  return place.compile(make_train_step(loss_fn, tx)), state


def tuning(shape: config.Model, options: argparse.Namespace) -> int:
  """Bytes that supervised tuning of all parameters takes on rows as many and as long."""
  place, model = _mesh.make(options), Transformer.from_config(shape)
  loss_fn = objectives.next_token(training.decoder_apply(model), token.cross_entropy)
  tx = optim.make(config.Optimizer(), 1000)
  state = place.init(state_maker(training.initializer(model), tx), jax.random.key(0))
  step = place.compile(make_train_step(loss_fn, tx))
  rows = _blank(options.batch, options.prompt + options.new - 1, ())
  live = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
  return live + _temporaries(step, state, place, rows)


def _blank(rows: int, length: int, more: Sequence[str]) -> Batch:
  batch = {n: np.ones((rows, length), np.int32) for n in ("tokens", "targets", "segments")}
  batch["positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
  return batch | {n: np.ones((rows, length), np.float32) for n in ("mask", *more)}


def _temporaries(step: Callable, state: TrainState, place, batch: Batch) -> int:
  return step.lower(state, place.batch(batch)).compile().memory_analysis().temp_size_in_bytes


def table(figures: dict) -> str:
  """Returns the figures as Markdown."""
  own, theirs = figures["answers_per_second"], figures["peer_answers_per_second"]
  whole = sum(figures["seconds"].values())
  lines = [
    f"{_mesh.described(figures)}, jax {figures['jax']}; {figures['size']}, {_roles(figures)} of"
    f" {figures['parameters']:,} parameters, {_figures.numbers(figures)};"
    f" {figures['rollouts']} answers of {figures['prompt']} + {figures['new']} tokens,"
    f" {figures['epochs']} x {figures['rollouts'] // figures['batch']} updates",
    "",
    "| part | seconds | share |",
    "|---|--:|--:|",
  ]
  for part, seconds in figures["seconds"].items():
    lines.append(f"| {part} | {seconds:.3f} | {100 * seconds / whole:.0f} % |")
  lines += [f"| all | {whole:.3f} | 100 % |", ""]
  lines.append(f"answers/s: {', '.join(f'{rate:.2f}' for rate in own)}")
  if theirs:
    lines.append(f"peer, answers/s: {', '.join(f'{rate:.2f}' for rate in theirs)}")
    ratio = statistics.median(own) / statistics.median(theirs)
    lines.append(f"ratio of the medians: {ratio:.2f}")
  return "\n".join([*lines, "", _memory(figures["bytes"])])


def _memory(sizes: dict) -> str:
  lines = ["| role | live, MiB | planned |", "|---|--:|--:|"]
  live, planned = sizes["live"], sizes["planned"]
  for name in (*planned, "all"):
    pair = [sum(x.values()) if name == "all" else x[name] for x in (live, planned)]
    lines.append(f"| {name} | {pair[0] / 2**20:,.1f} | {pair[1] / 2**20:,.1f} |")
  whole = sum(live.values()) + sizes["update"]
  lines += [
    "",
    f"with an update's temporaries {whole / 2**20:,.0f} MiB, {whole / sizes['tuning']:.2f}",
  ]
  return "\n".join(lines) + " times those of supervised tuning on such rows"


def _roles(figures: dict) -> str:
  if not figures["lora"]:
    return "four roles" if figures["critic"] != "shared" else "three roles, a head for critic,"
  critic = "a head" if figures["critic"] == "shared" else "another"
  return f"an adapter of rank {figures['lora']} for policy, {critic} for critic, on decoders"


if __name__ == "__main__":
  allocator.huge_pages()
  sys.exit(main())
