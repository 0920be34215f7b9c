"""Which of two answers is better, asked of a model: by log-probs of two letters, in both orders.

A judge is a function: texts of Q questions -> [Q, 2] float64, log-probabilities in nats of the
letters A and B as its answer, up to a constant of each question. Both 0 say nothing.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config
from llm_jax.data import batches, chat, principles
from llm_jax.data.formats import Messages
from llm_jax.data.principles import Principle
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.losses import token
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, endpoint, runs, training
from llm_jax.train import parallel
from llm_jax.types import Batch, Params

LETTERS = ("A", "B")
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
_ENDING = "Reply with the letter of the better answer and nothing else: A or B."

Judge = Callable[[Sequence[str]], np.ndarray]


class Verdicts(NamedTuple):
  """What a judge said of P pairs of answers.

  Attributes:
    first: [P] float64, probability that the first answer of a pair is the better one: the mean over
      principles and over both orders.
    changed: [P] float64, share of the principles by which the order decided: the same letter won
      whichever answer stood behind it.
    letter: [P] float64, probability of the letter A, mean over both orders: 0.5 without a bias.
  """

  first: np.ndarray
  changed: np.ndarray
  letter: np.ndarray


def load(
  cfg: config.Judge, prepared: str, place: parallel.Placement, field: str = "judge"
) -> Judge:
  """Returns the judge that `cfg` names.

  Args:
    cfg: of the judge.
    prepared: corpus with the tokenizer of a run that names none.
    place: whose devices a run is put on.
    field: of the config, that errors name.

  Raises:
    UserError: if there is none, or it cannot be read.
  """
  whole = field.partition(".")[0]
  try:
    cfg.validate()
  except UserError as error:
    raise UserError(str(error).replace("config.", f"config.{whole}: ", 1)) from error
  if cfg.endpoint:
    return endpoint.Endpoint(cfg, LETTERS)
  if not cfg.run:
    raise UserError(f"config.{whole}: a judge needs run=... or endpoint=...")
  tokenizer = runs.tokenizer(cfg.prepared if cfg.prepared else prepared)
  return Local(cfg, runs.load(cfg.run, field, vocab_size=tokenizer.vocab_size), tokenizer, place)


def compare(
  judge: Judge,
  prompts: Sequence[Messages],
  pairs: Sequence[tuple[str, str]],
  drawn: Sequence[Sequence[Principle]],
) -> Verdicts:
  """Asks which answer of each pair is better, by each principle, in both orders.

  Bai et al. 2022 (arXiv:2212.08073, section 4.1): the target is the normalised probability of the
  letters, averaged over principles. Averaged over both orders too, a judge that looks at the place
  of an answer alone gives one half.

  Args:
    judge: who is asked.
    prompts: P prompts.
    pairs: two answers to each.
    drawn: for each pair the principles, as many for every pair.
  """
  if not pairs:
    return Verdicts(*[np.zeros(0)] * 3)
  questions = [
    question(prompt, *shown, principle.preference)
    for prompt, pair, chosen in zip(prompts, pairs, drawn, strict=True)
    for principle in chosen
    for shown in (pair, pair[::-1])
  ]
  logps_PK22 = np.asarray(judge(questions), np.float64).reshape(len(pairs), -1, 2, 2)
  letter_PK2 = _sigmoid(logps_PK22[..., 0] - logps_PK22[..., 1])
  first_PK2 = np.stack([letter_PK2[..., 0], 1 - letter_PK2[..., 1]], -1)
  changed_PK = (first_PK2[..., 0] - 0.5) * (first_PK2[..., 1] - 0.5) < 0
  return Verdicts(first_PK2.mean((1, 2)), changed_PK.mean(1), letter_PK2.mean((1, 2)))


def question(prompt: Messages, first: str, second: str, asked: str) -> str:
  """Returns the text of a question to a judge; the answer to it is a letter."""
  said = "\n\n".join(f"{_NAMES[m['role']]}: {m['content']}" for m in prompt)
  return (
    f"Here is a conversation, and two answers with which the assistant could go on.\n\n{said}\n\n"
    f"(A) {first}\n\n(B) {second}\n\n{asked}\n{_ENDING}"
  )


def win_rates(
  judge: Judge, answered: Any, constitution: Sequence[Principle], drawn: int
) -> np.ndarray:
  """Returns [B] float32: each answer's mean probability of being better than the prompt's others.

  Args:
    judge: who is asked.
    answered: B answers (rewards.Answered), those to one prompt side by side.
    constitution: principles to draw from.
    drawn: of them, for each prompt; the same ones whenever it comes again.
  """
  groups = _groups(answered.prompts)
  found_B = np.full(len(answered.answers), 0.5)
  places = [two for group in groups for two in itertools.combinations(group, 2)]
  texts = [answer.text for answer in answered.answers]
  asked = [two for two in places if texts[two[0]] != texts[two[1]]]
  by = [principles.draw(constitution, drawn, seed_of(answered.prompts[i])) for i, _ in asked]
  verdicts = compare(
    judge,
    [answered.prompts[i] for i, _ in asked],
    [(texts[i], texts[j]) for i, j in asked],
    by,
  )
  known = dict(zip(asked, verdicts.first, strict=True))
  for group in groups:
    if len(group) > 1:
      found_B[group] = 0.0
      for i, j in itertools.combinations(group, 2):
        won = known.get((i, j), 0.5)
        found_B[i] += won / (len(group) - 1)
        found_B[j] += (1 - won) / (len(group) - 1)
  return found_B.astype(np.float32)


class Local:
  """A decoder here, which is not sampled: the log-probs of both letters are compared.

  Args:
    cfg: of the judge.
    run: the decoder.
    tokenizer: of the decoder.
    place: whose devices it is put on.
  """

  def __init__(
    self, cfg: config.Judge, run: runs.Run, tokenizer: Tokenizer, place: parallel.Placement
  ):
    self._cfg, self._tokenizer = cfg, tokenizer
    params = training.placed(place, run.model, run.params)
    logps = place.under(answers.logps_fn(run.model))
    gaps = place.under(_gaps_fn(run.model))
    self._logps = lambda batch: logps(params, place.rows(batch)).sum(1)
    self._gaps = lambda batch: gaps(params, place.rows(batch))

  def __call__(self, questions: Sequence[str]) -> np.ndarray:
    """Returns [Q, 2] log-probs of the letters, summed over the tokens in which they differ.

    Where that is one token, as usual, a question is read once, and what is known is how much more
    likely A is than B.
    """
    rows = [self._rows(text) for text in questions]
    first, second = (
      batches.lm_batch([both[k] for both in rows], self._cfg.length) for k in range(2)
    )
    one = (first["segments"] == second["segments"]).all() and (first["mask"].sum(1) == 1).all()
    if one:
      batch = first | {"others": second["targets"]}
      gaps_Q = answers.in_rows(self._gaps, batch, self._cfg.rows)
      return np.stack([gaps_Q, np.zeros_like(gaps_Q)], 1).astype(np.float64)
    logps = [answers.in_rows(self._logps, batch, self._cfg.rows) for batch in (first, second)]
    return np.stack(logps, 1).astype(np.float64)

  def _rows(self, text: str) -> list[tuple[list[int], list[int]]]:
    """Returns (tokens, mask) of a question with either letter; what both share is not counted."""
    tokens = [self._tokens(text, letter) for letter in LETTERS]
    least = min(map(len, tokens))
    pairs = list(zip(*(ids[:least] for ids in tokens), strict=True))
    begin = next((i for i, (a, b) in enumerate(pairs) if a != b), least)
    turned = zip(*(ids[::-1][: least - begin] for ids in tokens), strict=True)
    same = next((i for i, (a, b) in enumerate(turned) if a != b), least - begin)
    return [(ids, [int(begin <= i < len(ids) - same) for i in range(len(ids))]) for ids in tokens]

  def _tokens(self, text: str, letter: str) -> list[int]:
    coder, limit = self._tokenizer, self._cfg.length + 1
    if self._cfg.chat:
      messages = [{"role": "user", "content": text}, {"role": "assistant", "content": letter}]
      return chat.render(coder, messages, limit)[0]
    ids = coder.encode(f"{text}\nThe better answer is: {letter}")
    return [coder.bos_id, *ids[-(limit - 1) :]]


def _gaps_fn(model: Transformer) -> Callable[[Params, Batch], jax.Array]:
  """Returns a jitted (params, LM batch) -> [B], log-prob of the target less that of "others".

  Of the batch's mask the first place counts; `others` [B, T] are other targets.
  """
  apply = training.decoder_apply(model)

  @jax.jit
  def gaps(params: Params, batch: Batch) -> jax.Array:
    out = apply(params, batch, jax.random.key(0))
    place_B1 = jnp.argmax(batch["mask"] > 0, axis=1)[:, None]
    hidden_B1D = jnp.take_along_axis(out.hidden, place_B1[..., None], axis=1)

    def logps_B(name: str) -> jax.Array:
      targets_B1 = jnp.take_along_axis(batch[name], place_B1, axis=1)
      return token.token_stats(hidden_B1D, out.head, targets_B1, cap=out.logit_cap).logps[:, 0]

    return logps_B("targets") - logps_B("others")

  return gaps


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0.0, -x))


def _groups(prompts: Sequence[Messages]) -> list[list[int]]:
  """Returns the numbers of neighbours with the same prompt."""
  numbers = range(len(prompts))
  return [list(group) for _, group in itertools.groupby(numbers, key=lambda i: prompts[i])]


def seed_of(prompt: Messages) -> int:
  """Returns the seed of the principles by which answers to a prompt are judged, below 2^48."""
  text = "\n".join(m["content"] for m in prompt)
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
