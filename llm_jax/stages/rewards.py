"""What answers are worth: scores by name, of models and of rules, and their weighted sums.

    --config.score="reward_model(run='runs/reward') + 0.5*ended"
    --config.score='my_pkg.scores:politeness(words=3)'

A score is a function `(answered, ...) -> [B]`, one number an answer, higher is better; of one's own
it may do what it likes, for it runs on the host, once an iteration.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax import config, spec
from llm_jax.data import formats
from llm_jax.data import gold as documentation
from llm_jax.data.formats import Messages
from llm_jax.data.preferences import Answer
from llm_jax.data.principles import read as read_principles
from llm_jax.errors import UserError
from llm_jax.losses.inputs import name_of
from llm_jax.models import heads
from llm_jax.stages import judge as judging
from llm_jax.stages import runs, scores, training
from llm_jax.train import parallel
from llm_jax.types import Batch

__all__ = [
  "constant",
  "ended",
  "ensemble",
  "exact",
  "gold",
  "judge",
  "number",
  "overlong",
  "reward_model",
]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Answered(NamedTuple):
  """B answers, and all that there is to judge them by.

  Attributes:
    prompts: the messages before each answer.
    answers: the texts, and whether the model ended them.
    truths: the answer that the data has to each prompt.
    batch: the LM batch of the rollout, numpy.
    models: of each run that a score names, LM batch -> [B] scores.
  """

  prompts: Sequence[Messages]
  answers: Sequence[Answer]
  truths: Sequence[str]
  batch: Batch
  models: Mapping[str, Callable[[Batch], np.ndarray]]


def reward_model(answered: Answered, *, run: str) -> np.ndarray:
  """A reward model's score, in standard deviations from the mean of the reference's answers.

  Args:
    answered: the answers.
    run: directory of the reward model.
  """
  return answered.models[run](answered.batch)


def ensemble(
  answered: Answered, *, runs: tuple[str, ...], how: str = "mean", coef: float = 0.5
) -> np.ndarray:
  """Several reward models as one, each in its own units, which is harder to exploit than any.

    mean: their mean.  worst: the least of them (WCO).
    uncertainty: the mean less `coef` times their variance (UWO).

  Coste et al. 2023, arXiv:2310.02743, eqs. 2 to 4.

  Args:
    answered: the answers.
    runs: directories of the reward models.
    how: "mean", "worst" or "uncertainty".
    coef: of the variance.
  """
  if how not in ("mean", "worst", "uncertainty"):
    raise UserError(f'config.score: how="{how}" of ensemble is unknown: mean, worst or uncertainty')
  scores_RB = np.stack([answered.models[run](answered.batch) for run in runs])
  if how == "worst":
    return scores_RB.min(0)
  return scores_RB.mean(0) - (coef * scores_RB.var(0) if how == "uncertainty" else 0.0)


def exact(answered: Answered) -> np.ndarray:
  """1 if an answer ends and is the true one, but for case, punctuation and spaces; else 0."""
  return np.array(
    [a.ended and _plain(a.text) == _plain(truth) for a, truth in _pairs(answered)], np.float32
  )


def number(answered: Answered) -> np.ndarray:
  """1 if the last number of an answer is that of the true one (GSM8K: after "####"); else 0."""
  return np.array(
    [_last_number(a.text) == _last_number(truth) != "" for a, truth in _pairs(answered)],
    np.float32,
  )


def ended(answered: Answered) -> np.ndarray:
  """1 if the model ended the answer by itself, else 0."""
  return np.array([a.ended for a in answered.answers], np.float32)


def overlong(answered: Answered, *, most: int, soft: int) -> np.ndarray:
  """0 up to `most - soft` tokens, falling to -1 at `most` and beyond.

  Yu et al. 2025, DAPO, arXiv:2503.14476, eq. 13.

  Args:
    answered: the answers.
    most: tokens, the end token included.
    soft: tokens over which it falls.
  """
  tokens_B = np.asarray(answered.batch["mask"]).sum(1)
  return np.clip((most - soft - tokens_B) / max(soft, 1), -1.0, 0.0).astype(np.float32)


def gold(answered: Answered) -> np.ndarray:
  """The gold score of an answer whose true answer is known (data/gold.py), in [0, 1]."""
  pairs = _pairs(answered)
  found = [documentation.score(a.text, truth, a.ended).total for a, truth in pairs]
  return np.array(found, np.float32)


def judge(
  answered: Answered,
  *,
  run: str = "",
  endpoint: str = "",
  model: str = "",
  key_variable: str = "",
  prepared: str = "",
  chat: bool = True,
  length: int = 512,
  principles: str = "configs/data/principles.json",
  drawn: int = 2,
  asks: judging.Judge | None = None,
) -> np.ndarray:
  """How often a judge prefers an answer to another one to the same prompt, in [0, 1].

  The mean over the other answers to the prompt, over principles, and over both orders in which two
  answers can be shown (stages/judge.py); 0.5 where there is no other answer.

  Args:
    answered: the answers, those to one prompt side by side.
    run, endpoint, model, key_variable, prepared, chat, length: as in `config.Judge`.
    principles: file of questions to judge by.
    drawn: principles by which the answers to a prompt are judged, always the same ones.
    asks: who answers; it is made of the above.
  """
  if asks is None:
    raise ValueError("judge needs what Scores.load makes of its keywords")
  return judging.win_rates(asks, answered, read_principles(principles), drawn)


def constant(answered: Answered, *, value: float = 0.0) -> np.ndarray:
  """The same for every answer: a control, under which nothing but the KL can move a policy."""
  return np.full(len(answered.answers), value, np.float32)


class RewardModel:
  """A reward model on the devices of a placement: LM batch -> [B] float32 raw scores.

  Attributes:
    params: {"decoder", "head"}, as placed. Whoever has the same decoder may put its own arrays here
      before each use, so that there is one of it.
  """

  def __init__(self, found: runs.Run, place: parallel.Placement):
    """Puts a loaded reward model on the devices of `place`."""
    scorer = heads.Scorer.from_config(found.shape)
    self.params = training.placed(place, scorer, found.params)
    self._score = place.under(scores.reward_model(scorer))
    self._place = place

  def __call__(self, batch: Batch) -> np.ndarray:
    """Returns the scores of a rollout's answers."""
    return np.asarray(self._score(self.params, self._place.rows(dict(batch))), np.float32)


@dataclasses.dataclass
class Scores:
  """A score, or a weighted sum of scores, ready to be asked.

  Attributes:
    terms: (weight, score), in order.
    models: of each run that they name.
    normals: of each run, the units of its scores; set by `fit`.
    field: of the config, that errors name.
  """

  terms: tuple[tuple[float, Callable[[Answered], np.ndarray]], ...]
  models: dict[str, RewardModel]
  normals: dict[str, scores.Normal] = dataclasses.field(default_factory=dict)
  field: str = "config.score"

  @classmethod
  def load(
    cls,
    text: str | Callable,
    place: parallel.Placement,
    vocab_size: int,
    prepared: str = "",
    field: str = "config.score",
    loaded: Mapping[str, runs.Run] | None = None,
  ) -> "Scores":
    """Reads the reward models and the judges that a score names.

    Args:
      text: the score's spec, or a function.
      place: whose devices the models are put on.
      vocab_size: of the tokenizer.
      prepared: corpus with the tokenizer of judges that name none.
      field: of the config.
      loaded: reward models that need not be read again.

    Raises:
      UserError: if a score is unknown, or a model is missing or does not fit.
    """
    found = spec.terms_of(spec.resolve(text, __name__, "score", ("answered",)))
    models = {}
    for run in sorted({run for _, fn in found for run in _named(fn)}):
      model = (loaded or {}).get(run) or runs.load(run, "score", reward=True, vocab_size=vocab_size)
      models[run] = RewardModel(model, place)
    terms = tuple((weight, _ready(fn, prepared, place)) for weight, fn in found)
    return cls(terms, models, field=field)

  def fit(self, batch: Batch, rows: int = 0) -> None:
    """Fixes the units of reward models on answers of the reference, `rows` a call; 0: all."""
    for run, model in self.models.items():
      self.normals[run] = scores.standard(model, batch, rows or len(batch["tokens"]))

  def raw(self, means: Mapping[str, float]) -> dict[str, float]:
    """The mean score as the reward model gives it, where there is one and nothing else."""
    if [getattr(fn, "func", fn) for _, fn in self.terms] != [reward_model]:
      return {}
    normal = next(iter(self.normals.values()))
    return {"objective/raw_scores": means["scores/reward_model"] * normal.std + normal.mean}

  def __call__(
    self,
    prompts: Sequence[Messages],
    answers: Sequence[Answer],
    truths: Sequence[str],
    batch: Batch,
  ) -> tuple[np.ndarray, dict[str, float]]:
    """Returns [B] float32 scores, and the mean of each term under its name.

    Raises:
      UserError: if a score does not give one finite number an answer.
    """
    answered = Answered(
      prompts, answers, truths, batch, {run: self._units(run) for run in self.models}
    )
    total_B = np.zeros(len(answers), np.float32)
    means = {}
    for weight, fn in self.terms:
      value_B = np.asarray(fn(answered), np.float32)
      if value_B.shape != total_B.shape or not np.isfinite(value_B).all():
        raise UserError(
          f"{self.field}: {name_of(fn)} must give {len(answers)} finite numbers, one an answer; it "
          f"gave {value_B.shape}, {int((~np.isfinite(value_B)).sum())} of them not finite"
        )
      total_B += weight * value_B
      means[f"scores/{name_of(fn)}"] = float(value_B.mean())
    return total_B, means

  def _units(self, run: str) -> Callable[[Batch], np.ndarray]:
    normal, model = self.normals[run], self.models[run]
    return lambda batch: (model(batch) - normal.mean) / normal.std


def _named(fn: Callable) -> tuple[str, ...]:
  """The runs of the reward models that a score asks."""
  given, known = getattr(fn, "keywords", {}), getattr(fn, "func", fn)
  if known is ensemble:
    if isinstance(given["runs"], str) or not given["runs"]:
      raise UserError(f"config.score: runs={given['runs']!r} of ensemble must be ('run', 'run')")
    return tuple(given["runs"])
  return (given["run"],) if known is reward_model else ()


def _ready(fn: Callable, prepared: str, place: parallel.Placement) -> Callable:
  """Returns a score with what it reads; of a judge that is the judge."""
  if getattr(fn, "func", fn) is not judge:
    return fn
  known = {f.name for f in dataclasses.fields(config.Judge)}
  given = getattr(fn, "keywords", {})
  cfg = config.Judge(**{name: value for name, value in given.items() if name in known})
  return functools.partial(judge, **given, asks=judging.load(cfg, prepared, place, "score"))


def _pairs(answered: Answered) -> list[tuple[Answer, str]]:
  return list(zip(answered.answers, answered.truths, strict=True))


def _plain(text: str) -> str:
  return " ".join(re.findall(r"\w+", text.lower()))


def _last_number(text: str) -> str:
  found = formats.final_number(text)
  if not found:
    numbers = _NUMBER.findall(text)
    found = numbers[-1] if numbers else ""
  found = found.replace(",", "")
  return found.rstrip("0").rstrip(".") if "." in found else found
