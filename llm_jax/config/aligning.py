"""What comes next: rejection sampling, online DPO, and feedback of models instead of people."""

import dataclasses
import re
from dataclasses import field

from llm_jax.config.data import check_lost
from llm_jax.config.online import Drawing
from llm_jax.config.training import Mesh, Sampling
from llm_jax.errors import UserError, nearest

NO_LEAST = -1e9  # A score that none is below.


@dataclasses.dataclass
class Asking(Drawing):
  """What rejection sampling and online DPO have in common: they choose among scored answers."""

  score: str = "reward_model(run='runs/quickstart/reward')"  # Or a sum (stages/rewards.py).
  prompts: int = 32  # Of one call of the sampler.
  samples: int = 8  # Answers to each of them.

  def validate(self) -> None:
    """Checks what other stages check that draw answers, and that there is something to choose from.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    super().validate()
    self._check_least(1, "prompts")
    if self.samples < 2:
      raise UserError(
        f"config.samples must be at least 2, or there is nothing to choose from; got {self.samples}"
      )
    if self.sampling.temperature <= 0:
      raise UserError(
        "config.sampling.temperature must be above 0, or all answers to a prompt are the same"
      )


@dataclasses.dataclass
class Rejection(Asking):
  """Rejection sampling: SFT on the best of the policy's own answers, in one round or several.

  RAFT (arXiv:2304.06767) and Llama 2 (arXiv:2307.09288, 3.2.2). `steps` are those of all rounds.
  """

  loss: str = "cross_entropy()"
  measure: str = ""  # Another score that nothing is chosen by, of best of n alone; "": none.
  questions: int = 0  # Prompts of a round; 0: all.
  keep: int = 1  # Best answers of a prompt that are learned.
  least: float = NO_LEAST  # Of a lower score none is learned.
  ended_only: bool = True  # Answers that the model did not end are not learned.
  rounds: int = 1  # Each samples anew, from the model that the one before trained.
  earlier: bool = False  # What earlier rounds chose is learned again.

  def validate(self) -> None:
    """Checks what the other stages check, what is kept, and that rounds divide the steps.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    if not 1 <= self.keep <= self.samples:
      raise UserError(
        f"config.keep={self.keep} must be at least 1 and at most config.samples={self.samples}"
      )
    if self.rounds < 1 or self.steps % self.rounds:
      raise UserError(
        f"config.steps={self.steps} must be a multiple of config.rounds={self.rounds}, which is at "
        "least 1: a round has its equal part of them"
      )
    if self.questions < 0:
      raise UserError(f"config.questions must not be negative (0: all), got {self.questions}")


@dataclasses.dataclass
class OnlineDpo(Asking):
  """Online DPO: pairs of the policy's own answers, the best against the worst (arXiv:2405.07863).

  An iteration draws `samples` answers to each of `prompts` prompts and makes at most one pair of
  each prompt; `batch` pairs are an update.
  """

  loss: str = "logistic(beta=0.1)"
  epochs: int = 1  # Passes over the pairs of an iteration.
  reference: str = "fixed"  # fixed: `init` | iteration: the policy as an iteration begins.
  average: bool = False  # Mean instead of summed log-probs over an answer's tokens.

  @property
  def rollouts(self) -> int:
    """Answers of an iteration."""
    return self.prompts * self.samples

  def validate(self) -> None:
    """Checks what the other stages check, and that pairs divide into minibatches.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    if self.prompts % self.batch:
      raise UserError(
        f"config.prompts={self.prompts} must be a multiple of config.batch={self.batch}: a prompt "
        "gives a pair"
      )
    self._check_least(1, "epochs")
    self._check_known("reference", "fixed", "iteration")


@dataclasses.dataclass
class Judge:
  """Who says which of two answers is the better one: a model here, or one behind an endpoint."""

  run: str = ""  # A run, or a folder of Hugging Face, whose log-probs of the letters are compared.
  prepared: str = ""  # Has the tokenizer of `run`; "": that of the stage.
  chat: bool = True  # `run` is asked as a user would; of a base model false: as plain text.
  length: int = 512  # Tokens of a question to `run`; a longer one loses its oldest.
  rows: int = 32  # Questions of a call of `run`.
  endpoint: str = ""  # In the place of `run`: "http://host:port/v1", which speaks as OpenAI's does.
  model: str = ""  # Name of the model there.
  key_variable: str = ""  # Environment variable that holds the key; "": none is sent.
  timeout: float = 60.0  # Seconds.
  retries: int = 4  # After a refusal that may pass, each waiting twice as long as the one before.
  parallel: int = 4  # Questions on their way at a time.

  def validate(self) -> None:
    """Checks that one judge is named.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    if self.run and self.endpoint:
      raise UserError("config.run and config.endpoint are two judges: set one of them")
    if self.endpoint and not re.match(r"https?://[^/\s?#@]+(/[^\s?#]*)?$", self.endpoint):
      raise UserError(
        "config.endpoint must be http://host:port/v1 or the like, without a key in it"
      )
    if self.endpoint and not self.model:
      raise UserError("config.model must name the model that config.endpoint is to use")
    if self.key_variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
      # The value is not shown: it may be the key itself.
      raise UserError(
        "config.key_variable must be the name of an environment variable, such as OPENAI_API_KEY; "
        "the key itself is never part of a config"
      )
    if self.timeout <= 0 or self.retries < 0:
      raise UserError(
        "config.timeout must be above 0 and config.retries not negative, got "
        f"{self.timeout} and {self.retries}"
      )
    for name in ("length", "rows", "parallel"):
      if getattr(self, name) < 1:
        raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass
class Rlaif:
  """Data without people: a model revises its own answers, or a judge compares them.

  Constitutional AI (Bai et al. 2022, arXiv:2212.08073): `part` "revise" is of its supervised half,
  "prefer" of the other.
  """

  seed: int = 0
  part: str = "prefer"  # revise | prefer
  prepared: str = "runs/quickstart/prepare"  # Has the tokenizer of `init`.
  init: str = "runs/quickstart/sft"  # The model that answers, criticises and revises.
  data: tuple[str, ...] = ()  # Files of conversations to ask from; (): the prepared questions.
  max_lost: float = 0.0  # Rows that may be unreadable: so many, or a share of all; 0: none.
  questions: int = 0  # Prompts; 0: all.
  principles: str = "configs/data/principles.json"
  revisions: int = (
    2  # revise: critiques and revisions of an answer, each by a principle of its own.
  )
  drawn: int = 4  # prefer: principles by which a pair is judged.
  clamp: float = 0.0  # prefer: labels stay in [clamp, 1 - clamp], 0.4 in the paper's CoT; 0: none.
  ended_only: bool = True  # revise: answers that end in the middle are left out.
  length: int = 256  # Tokens that `init` reads; a longer conversation loses its oldest.
  prompts: int = 32  # Of one call of the sampler, and of a part that is kept once it is done.
  sampling: Sampling = field(default_factory=Sampling)
  judge: Judge = field(default_factory=Judge)
  mesh: Mesh = field(default_factory=Mesh)

  def validate(self) -> None:
    """Checks what is done, and that there is a judge where one is needed.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    check_lost(self.max_lost)
    known = ("revise", "prefer")
    if self.part not in known:
      raise UserError(f'config.part="{self.part}" is unknown{nearest(self.part, known)}')
    for name in ("revisions", "drawn", "length", "prompts"):
      if getattr(self, name) < 1:
        raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")
    if self.seed < 0 or self.questions < 0:
      raise UserError(
        f"config.seed and config.questions must not be negative, got {self.seed} and "
        f"{self.questions}"
      )
    if not 0 <= self.clamp < 0.5:
      raise UserError(
        f"config.clamp must be at least 0 (none) and below 0.5 (labels that say nothing), got "
        f"{self.clamp}"
      )
    if self.part == "prefer" and self.sampling.temperature <= 0:
      raise UserError(
        "config.sampling.temperature must be above 0, or the two answers to a prompt are the same"
      )
    if self.part == "prefer" and not (self.judge.run or self.judge.endpoint):
      raise UserError(
        "config.judge.run or config.judge.endpoint must name who compares the answers"
      )


@dataclasses.dataclass
class Agreement:
  """How often a score, or a judge, prefers the answer of two that people prefer."""

  seed: int = 0
  data: tuple[str, ...] = ()  # Files of preferences in any format: LLMBar, PandaLM, HH, ...
  max_lost: float = 0.0  # Rows that may be unreadable: so many, or a share of all; 0: none.
  score: str = ""  # Reward models, or any other score (stages/rewards.py); "": the judge is asked.
  prepared: str = "runs/quickstart/prepare"  # Has the tokenizer.
  length: int = 512  # Tokens that reward models read; a longer conversation loses its oldest.
  rows: int = 16  # Pairs of a call.
  principles: str = "configs/data/principles.json"
  drawn: int = 1  # Principles by which the judge compares a pair, in both orders each.
  judge: Judge = field(default_factory=Judge)
  mesh: Mesh = field(default_factory=Mesh)

  def validate(self) -> None:
    """Checks that there is something to compare, and one who does it.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    check_lost(self.max_lost)
    if not self.data:
      raise UserError(
        """config.data is empty: name files of preferences, --config.data='("pairs.jsonl",)'"""
      )
    judged = bool(self.judge.run or self.judge.endpoint)
    if judged == bool(self.score):
      raise UserError(
        "set either config.score or one of config.judge.run and config.judge.endpoint: they say "
        "who compares the answers"
      )
    for name in ("length", "rows", "drawn"):
      if getattr(self, name) < 1:
        raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")
