"""A language small enough to over-optimise in minutes: its model, its gold score, its proxies.

Answers are N words. The gold score is a rule: each word has a value, which counts once, and the
r repeats of an answer cost r^2. A reference seldom repeats itself, so a reward model that has seen
its answers alone knows the values well and the repeats badly.
Shape letters: B answers, N words of one, P pairs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.generate import rollout_to_batch, sample
from llm_jax.losses import objectives, policy, preference, token
from llm_jax.models import heads
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, labels, scores, training
from llm_jax.stages import ppo as stage
from llm_jax.stages.roles import Roles
from llm_jax.train import optim
from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import Batch, LossFn, Params

WORDS, LENGTH = 64, 12  # Word 0 begins an answer.
SHAPE = config.Model(WORDS, 32, 2, 2, max_length=LENGTH + 1, attention="xla")
MODEL = Transformer.from_config(SHAPE)
SIZES = {"small": (8, 1), "middle": (16, 1), "large": (32, 2)}  # Width and layers of proxies.
REPEAT = 0.3  # What r repeats cost, over r^2, in units of a word's value.
ROWS = 128  # Answers of a PPO iteration.
_TOKEN_LOGPS = answers.logps_fn(MODEL)
_NEVER = -1  # An end token that is never drawn.
_PROMPTS = np.zeros((ROWS, 1), np.int32)

Score = Callable[[Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class World:
  """One language.

  Attributes:
    seed: of the words' values, of what follows what, and of all training.
    values: [WORDS] of each word.
    reference: parameters of the model that has learned the language.
    mean: of raw gold scores of the reference's answers.
    std: of the same.
  """

  seed: int
  values: np.ndarray
  reference: Params
  mean: float = 0.0
  std: float = 1.0

  @classmethod
  def make(cls, seed: int, steps: int) -> "World":
    """Draws a language and trains its model on it."""
    rng = np.random.default_rng(seed)
    follows = rng.normal(size=(WORDS, WORDS)) * 1.2
    follows[:, 0] = -np.inf
    np.fill_diagonal(follows, -2.0)
    chain = np.exp(follows) / np.exp(follows).sum(1, keepdims=True)
    values = rng.normal(size=WORDS)
    walk = _walks(chain, rng)
    loss_fn = objectives.next_token(training.decoder_apply(MODEL), token.cross_entropy)
    params = fit(loss_fn, MODEL, lambda i: next(walk), steps, seed, lr=1e-2)
    world = cls(seed, values, params)
    raw = world.raw(world.draw(2048, 999)["targets"])
    return dataclasses.replace(world, mean=float(raw.mean()), std=float(raw.std()))

  def draw(self, rows: int, key: int, params: Params | None = None) -> Batch:
    """Returns the LM batch of that many answers of the reference, or of others; host arrays."""
    params = self.reference if params is None else params
    root = jax.random.fold_in(jax.random.key(self.seed), key)
    parts = []
    for first in range(0, rows, ROWS):  # Of one shape, whatever the number of rows.
      keys = jax.random.split(jax.random.fold_in(root, first), ROWS)
      rollout = sample(MODEL, params, _PROMPTS, _PROMPTS + 1, keys, max_new=LENGTH, end_id=_NEVER)
      parts.append(jax.device_get(rollout_to_batch(rollout)))
    return jax.tree.map(lambda *x: np.concatenate(x)[:rows], *parts)

  def logps(self, batch: Batch) -> np.ndarray:
    """[B] log-probs of answers under the reference, in nats."""
    return answers.in_rows(lambda part: _TOKEN_LOGPS(self.reference, part).sum(1), batch, ROWS)

  def raw(self, answers_BN: np.ndarray) -> np.ndarray:
    """[B, N] words -> [B] the gold score before it is put into units."""
    counts_BW = np.zeros((len(answers_BN), WORDS))
    np.add.at(counts_BW, (np.arange(len(answers_BN))[:, None], np.asarray(answers_BN)), 1)
    repeats_B = np.maximum(counts_BW - 1, 0).sum(1)
    return (counts_BW > 0) @ self.values - REPEAT * repeats_B**2

  def gold(self, batch: Batch) -> np.ndarray:
    """[B] gold scores in standard deviations of the reference's answers."""
    return (self.raw(np.asarray(batch["targets"])) - self.mean) / self.std

  def pairs(self, count: int, shuffled: bool = False) -> dict[str, Batch]:
    """Two answers of the reference each, labelled by a coin that knows the gold scores.

    Bradley-Terry at twice the gold difference: the better one wins 86 % of the pairs one standard
    deviation apart. Shuffled labels are fair coins.
    """
    one, two = self.draw(count, 1), self.draw(count, 2)
    gap_P = 2 * (self.gold(one) - self.gold(two))
    coin = np.random.default_rng([self.seed, count]).random(count)
    wins_P = coin < (0.5 if shuffled else 1 / (1 + np.exp(-gap_P)))

    def pick(first_P: np.ndarray) -> Batch:
      return {name: np.where(first_P[:, None], one[name], two[name]) for name in one}

    return {"chosen": pick(wins_P), "rejected": pick(~wins_P)}


def lm_batch(tokens_BS: np.ndarray) -> Batch:
  """[B, N + 1] words, the first one 0 -> an LM batch [B, N]."""
  tokens_BN = np.asarray(tokens_BS[:, :-1], np.int32)
  ones = np.ones(tokens_BN.shape, np.int32)
  return {
    "tokens": tokens_BN, "targets": np.asarray(tokens_BS[:, 1:], np.int32),
    "mask": ones.astype(np.float32), "segments": ones,
    "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (len(ones), 1)),
  }  # fmt: skip


def fit(
  loss_fn: LossFn,
  module,
  batches: Callable[[int], Batch],
  steps: int,
  seed: int,
  lr: float,
  start: Params | None = None,
  decay: float = 0.0,
) -> Params:
  """Trains new parameters, or from a start, on batch number 0, 1, ...; returns them."""
  cfg = config.Optimizer(lr=lr, schedule="cosine", warmup=10, weight_decay=decay)
  tx = optim.make(cfg, steps)
  step = jax.jit(make_train_step(loss_fn, tx), donate_argnums=0)
  make_state = state_maker(training.initializer(module), tx)
  state = nn.unbox(make_state(jax.random.key(seed), *([] if start is None else [start])))
  state = jax.tree.map(jnp.copy, state)  # What is given to the step is gone after it.
  for i in range(steps):
    state, _ = step(state, batches(i))
  return state.params


def proxy(world: World, size: str, pairs: int, steps: int, *, kind: str = "trained") -> Score:
  """A reward model trained on so many pairs: LM batch -> [B] in units of the reference's answers.

  Args:
    world: the language.
    size: of SIZES.
    pairs: to train on.
    steps: updates of 64 pairs.
    kind: "trained"; "shuffled", on labels of a fair coin; "random", not trained at all.
  """
  dim, layers = SIZES[size]
  shape = dataclasses.replace(SHAPE, dim=dim, layers=layers)
  scorer = heads.Scorer.from_config(shape)
  loss_fn = objectives.score_pairs(scores.scorer_apply(scorer), preference.logistic)
  data = world.pairs(pairs, kind == "shuffled")
  rng = np.random.default_rng(world.seed)

  def batch(i: int) -> dict[str, Batch]:
    rows = rng.integers(pairs, size=64)
    return {side: {k: v[rows] for k, v in lm.items()} for side, lm in data.items()}

  updates = 0 if kind == "random" else steps
  params = fit(loss_fn, scorer, batch, updates, world.seed + 7, lr=3e-3, decay=0.1)
  score = lambda batch: answers.in_rows(functools.partial(_scorer(shape), params), batch, ROWS)  # noqa: E731
  raw_B = score(world.draw(1024, 998))
  mean, std = float(raw_B.mean()), max(float(raw_B.std()), 1e-6)
  return lambda batch: (score(batch) - mean) / std


@functools.cache
def _scorer(shape: config.Model):
  return scores.reward_model(heads.Scorer.from_config(shape))


def ppo(world: World, score: Score, beta: float, iterations: int) -> list[dict[str, float]]:
  """Optimises the reference for a score; returns KL, score and gold of each iteration's answers.

  One update of ROWS answers an iteration, KL in the reward, the roles and the labels of
  stages/ppo.py. KL is k1 summed over an answer, in nats.
  """
  roles, label, annotate, step, tx = _ppo(iterations)
  start = {"policy": world.reference, "critic": heads.critic_from_decoder(world.reference)}
  make_state = state_maker(roles.make_params, tx)
  state = nn.unbox(make_state(jax.random.key(world.seed), start))
  state = jax.tree.map(jnp.copy, state)  # What is given to the step is gone after it.
  rows = []
  for i in range(iterations):
    batch = world.draw(ROWS, 5000 + i, state.params["policy"])
    batch |= jax.device_get(annotate(state.params, world.reference, batch))
    score_B = np.asarray(score(batch), np.float32)
    labelled, metrics = label(batch, score_B, np.ones(ROWS, np.float32), beta)
    found = {"kl": metrics["objective/kl"], "proxy": score_B.mean()}
    found["gold"] = world.gold(batch).mean()
    rows.append({name: float(value) for name, value in found.items()})
    state, _ = step(state, labelled)
  return rows


@functools.cache
def _ppo(iterations: int):
  cfg = config.Ppo(
    reward="", score="constant", critic="policy", rollouts=ROWS, batch=ROWS, value_coef=0.5,
    missing_end_penalty=0.0,
  )  # fmt: skip
  cfg.sampling.temperature = 1.0
  cfg.validate()
  roles = Roles.of(cfg, SHAPE, None)
  loss_fn = stage.objective(cfg, roles, policy.ppo_clip, policy.value_clip)
  tx = optim.make(config.Optimizer(lr=3e-3, schedule="constant", warmup=5), iterations)
  annotate = jax.jit(functools.partial(roles.annotate, temperature=1.0))
  step = jax.jit(make_train_step(loss_fn, tx), donate_argnums=0)
  return roles, labels.actor_critic(cfg), annotate, step, tx


def dpo(world: World, pairs: int, beta: float, steps: int) -> dict[str, float]:
  """Trains the reference by DPO; returns KL and gold of 1,024 answers."""
  data = world.pairs(pairs)
  for side in ("chosen", "rejected"):
    data[f"ref_{side}"] = world.logps(data[side])
  rng = np.random.default_rng(world.seed)

  def batch(_: int) -> Batch:
    rows = rng.integers(pairs, size=64)
    return jax.tree.map(lambda x: x[rows], data)

  loss = functools.partial(preference.logistic, beta=beta)
  loss_fn = objectives.logratio_pairs(training.decoder_apply(MODEL), loss)
  params = fit(loss_fn, MODEL, batch, steps, world.seed, lr=1e-3, start=world.reference)
  drawn = world.draw(1024, 7000, params)
  gaps_B = drawn["sampler_logps"].sum(1) - world.logps(drawn)
  return {"kl": float(gaps_B.mean()), "gold": float(world.gold(drawn).mean())}


def _walks(chain: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
  """Endless batches of the language: walks on a chain of words."""
  edges = chain.cumsum(1)
  while True:
    tokens_BS = np.zeros((64, LENGTH + 1), np.int32)
    for i in range(LENGTH):
      chance_B1 = rng.random((64, 1)) * edges[tokens_BS[:, i], -1:]
      tokens_BS[:, i + 1] = (edges[tokens_BS[:, i]] < chance_B1).sum(1)
    yield lm_batch(tokens_BS)
