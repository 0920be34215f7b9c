"""Drawing answers to questions, and log-probs of given tokens: what online stages share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from llm_jax import config
from llm_jax.data import batches, chat
from llm_jax.data.preferences import Answer
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.generate import Rollout, rollout_to_batch, sample
from llm_jax.losses import token
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training
from llm_jax.train import layout, parallel
from llm_jax.types import Batch, Params

PROMPT_TOKENS = 64  # Room for a question and its markers; a longer one loses its oldest words.
_ROWS = 256  # Answers per call of the sampler, and rows per call of other functions.


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Sampled answers and the arrays behind them.

  Attributes:
    answers: [Q][n] texts.
    batch: LM batch of Q * n rows, a question's samples side by side; numpy.
    ended: [Q * n] bool, whether the model closed its turn.
  """

  answers: list[list[Answer]]
  batch: Batch
  ended: np.ndarray


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
  """The tokens that a model sees before it answers, at most PROMPT_TOKENS."""
  return chat.prompt(tokenizer, [{"role": "user", "content": prompt}], PROMPT_TOKENS)


def draw(
  model: Transformer,
  params: Params,
  tokenizer: Tokenizer,
  prompts: Sequence[list[int]],
  sampling: config.Sampling,
  *,
  seed: int,
  samples: int = 1,
  stop: str = "",
  rows: int = _ROWS,
  place: parallel.Placement | None = None,
  length: int = PROMPT_TOKENS,
  first: int = 0,
) -> Drawn:
  """Draws `samples` answers to each of `prompts`; row r of a seed is the same in any batch.

  Args:
    model: a decoder.
    params: its parameters.
    tokenizer: of the model.
    prompts: token lists.
    sampling: temperature, truncation, length.
    seed: of the draws.
    samples: answers per prompt.
    stop: for a base model, which knows no turns: this text ends an answer, and so does the
      document's end.
    rows: answers per call of the sampler, unless the config has them take turns.
    place: as in `roll`.
    length: slots for a prompt.
    first: number of the first prompt: of many drawn in parts, each part has the keys of its own.
  """
  root = jax.random.key(seed)
  params = layout.gathered(params) if place else params  # Once for all calls.
  end_id = tokenizer.eos_id if stop else tokenizer.end_id
  count = len(prompts) if sampling.rows else max(1, rows // samples)  # Prompts per call.
  rollouts = []
  for start in range(0, len(prompts), count):
    part = prompts[start : start + count]
    # A short last call is padded, so that there is one shape to compile.
    filled = [*part, *[part[-1]] * (count - len(part))]
    tokens, mask = batches.prompt_batch(filled, length)
    begin = (first + start) * samples
    numbers = np.arange(begin, begin + count * samples, dtype=np.uint32)
    keys = jax.vmap(functools.partial(jax.random.fold_in, root))(numbers)
    rolled = roll(
      model, params, tokenizer, tokens, mask, keys, sampling,
      end_id=end_id, samples=samples, place=place,
    )  # fmt: skip
    kept = len(part) * samples
    rollouts.append(jax.tree.map(lambda x, n=kept: x[:n], jax.device_get(rolled)))
  rollout = jax.tree.map(lambda *x: np.concatenate(x), *rollouts)
  said = texts(tokenizer, rollout, stop)
  answers = [said[i : i + samples] for i in range(0, len(said), samples)]
  return Drawn(answers, jax.device_get(rollout_to_batch(rollout)), rollout.ended)


def texts(tokenizer: Tokenizer, rollout: Rollout, stop: str = "") -> list[Answer]:
  """The answer of each row of a rollout of host arrays; `stop` as in `draw`."""
  rows = zip(rollout.tokens, rollout.mask, rollout.ended, strict=True)
  return [_answer(tokenizer, tokens[mask > 0], bool(ended), stop) for tokens, mask, ended in rows]


def roll(
  model,
  params,
  tokenizer,
  tokens,
  mask,
  keys,
  sampling: config.Sampling,
  *,
  end_id: int | None = None,
  samples: int = 1,
  place: parallel.Placement | None = None,
  value: Params | None = None,
) -> Rollout:
  """One call of the sampler with a config's settings; `end_id` is by default the turn's end.

  With `place`, over its devices; `params` are where it has them, and are gathered for the call
  where training splits them.
  """
  given = (tokens, mask, keys)
  return (place.under(sample) if place else sample)(
    model,
    layout.gathered(params) if place else params,
    *(place.rows(given) if place else given),
    max_new=sampling.max_new,
    samples=samples,
    temperature=sampling.temperature,
    top_k=sampling.top_k,
    top_p=sampling.top_p,
    end_id=tokenizer.end_id if end_id is None else end_id,
    pad_id=tokenizer.pad_id,
    rows=sampling.rows,
    value=value,
  )


def logps_fn(model: Transformer, temperature: float = 1.0) -> Callable[[Params, Batch], jax.Array]:
  """Returns a jitted (params, LM batch) -> [B, T] float32 log-probs of the targets, in nats.

  At temperature 0 they are those of temperature 1, as the sampler's are.
  """
  apply = training.decoder_apply(model)
  temperature = temperature if temperature > 0 else 1.0

  @jax.jit
  def logps(params: Params, batch: Batch) -> jax.Array:
    out = apply(params, batch, jax.random.key(0))
    return token.token_stats(
      out.hidden,
      out.head,
      batch["targets"],
      mask=batch["mask"],
      temperature=temperature,
      cap=out.logit_cap,
    ).logps

  return logps


def in_rows(fn: Callable[[Batch], jax.Array], batch: Batch, rows: int = _ROWS) -> np.ndarray:
  """Applies `fn`, LM batch -> one value a row, to `rows` rows at a time; returns [B].

  Rows of like length go together, and columns at the end that none of them uses are left out. The
  widths are multiples of 32 and the last part is filled up, so that few shapes compile.
  """
  size, length = batch["tokens"].shape
  width_B = np.max(np.where(np.asarray(batch["segments"]) > 0, np.arange(1, length + 1), 1), 1)
  order_B = np.argsort(width_B, kind="stable")
  values_B = None
  for start in range(0, size, rows):
    index = order_B[np.minimum(np.arange(start, start + rows), size - 1)]
    width = min(length, -(-width_B[index].max() // 32) * 32)
    part = parallel.to_host(fn(jax.tree.map(lambda x, i=index, w=width: x[i, :w], dict(batch))))
    if values_B is None:
      values_B = np.zeros(size, part.dtype)
    values_B[index] = part  # The rows that fill up the last part say the same again.
  return values_B


def _answer(tokenizer: Tokenizer, drawn: np.ndarray, ended: bool, stop: str) -> Answer:
  text = tokenizer.decode([int(t) for t in drawn])
  if stop and stop in text.lstrip():
    return Answer(text.lstrip().split(stop)[0].strip(), True)
  return Answer(text.strip(), ended)
