"""One typed tree of mutable dataclasses: every number of an experiment has its place here.

Only the standard library is imported, so that `--help` answers at once. A path of "" means "none".
"""

import dataclasses
from dataclasses import field

from llm_jax.errors import UserError, nearest

# Fields that change nothing but the time: a run may go on with others.
HOW = ("workers", "engine", "beam_runner", "beam_options")


@dataclasses.dataclass(unsafe_hash=True)  # A static argument of compiled functions.
class Model:
  """A decoder's shape and its few switches. 0 means "the usual value", worked out by the model."""

  vocab_size: int = 0  # 0: the tokenizer's.
  dim: int = 128
  layers: int = 4
  heads: int = 4
  kv_heads: int = 0  # 0: heads. Fewer is grouped-query attention.
  head_dim: int = 0  # 0: dim / heads.
  hidden: int = 0  # 0: 8/3 dim if gated, 4 dim if plain, rounded up to a multiple of 32.
  max_length: int = 256  # Rows of a learned position table; the other positions have no limit.
  norm: str = "rmsnorm"  # rmsnorm | layernorm
  norm_eps: float = 0.0  # 0: 1e-6 of an RMSNorm, 1e-5 of a LayerNorm.
  norm_bias: bool = False  # Of LayerNorms.
  norm_offset: bool = False  # The scale is 1 + weight (Gemma).
  post_norm: bool = False  # What attention and MLP return is normed too (Gemma 2 and 3).
  parallel: str = ""  # "" | one | two: attention and MLP side by side, after one norm or one each.
  position: str = "rope"  # rope | learned | alibi | relative | none
  rope_theta: float = 10_000.0
  rope_local_theta: float = 0.0  # Of layers with a window; 0: rope_theta.
  rope_fraction: float = 1.0  # Of a head's width that turns.
  rope_scaling: str = ""  # "llama3(factor=8, low=1, high=4, length=8192)" | "linear(factor=8)"
  alibi: str = "mpt"  # mpt | falcon: whose slopes.
  relative_buckets: int = 32  # Of relative distances, up to relative_distance.
  relative_distance: int = 128
  windows: tuple[int, ...] = ()  # Tokens that a layer sees, repeated over the layers; 0: all.
  attention_scale: float = 0.0  # Of scores; 0: 1 / sqrt(head_dim).
  attention_cap: float = 0.0  # cap tanh(score / cap); 0: none.
  logit_cap: float = 0.0  # The same of logits.
  qkv_clip: float = 0.0  # Queries, keys and values stay within; 0: none.
  qkv_bias: bool = False  # Of these three alone (Qwen 2).
  qk_norm: bool = True
  mlp: str = "gated"  # gated | plain
  activation: str = ""  # silu | gelu | gelu_tanh | relu; "": silu if gated, else gelu_tanh.
  bias: bool = False  # Of attention and MLP.
  embedding_scale: float = 1.0
  tied: bool = True
  tied_scale: float = 0.0  # Of the states before a tied head (T5); 0: 1.
  encoder_layers: int = 0  # Of an encoder-decoder; 0: a decoder alone.
  dropout: float = 0.0
  scan: bool = False  # lax.scan over layers: flat compile time, stacked parameters.
  remat: str = "none"  # none | full | dots
  dtype: str = "float32"  # Compute dtype; parameters are float32.


@dataclasses.dataclass
class Optimizer:
  """An optimizer and its schedule, in steps."""

  name: str = "adamw"  # adamw | muon
  lr: float = 1e-3
  adam_lr: float = 0.0  # Muon only: the AdamW part's rate (embeddings, norms, heads); 0: lr.
  schedule: str = "wsd"  # constant | linear | cosine | wsd
  warmup: int = 20
  decay: float = 0.3  # wsd: the last fraction of the steps that decays.
  final: float = 0.0  # The last rate as a fraction of `lr`.
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.0  # On matrices only.
  clip: float = 1.0  # Global gradient norm; 0: none.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    known = {"name": ("adamw", "muon"), "schedule": ("constant", "linear", "cosine", "wsd")}
    for name, values in known.items():
      value = getattr(self, name)
      if value not in values:
        raise UserError(f'config.{name}="{value}" is unknown{nearest(value, values)}')


@dataclasses.dataclass
class Mesh:
  """Where arrays live: a named mesh under jit, or plain replication under pmap."""

  kind: str = "mesh"  # mesh | pmap
  data: int = -1  # -1: all devices that the other axes leave.
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass
class Stage:
  """What every training stage has."""

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"  # A directory that `experiments.prepare` wrote.
  loss: str = ""
  steps: int = 100
  batch: int = 16  # Rows per update, over all devices and microbatches.
  accum: int = 1  # Microbatches per update.
  length: int = 128  # Tokens per row.
  log_every: int = 10
  eval_every: int = 100
  checkpoint_every: int = 200
  keep: int = 2  # Checkpoints kept.
  optimizer: Optimizer = field(default_factory=Optimizer)
  mesh: Mesh = field(default_factory=Mesh)

  def validate(self) -> None:
    """Checks across fields, before anything is compiled.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    for name in ("steps", "batch", "accum", "length", "log_every", "checkpoint_every", "keep"):
      if getattr(self, name) < 1:
        raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")
    if self.seed < 0:
      raise UserError(f"config.seed must not be negative, got {self.seed}")
    if self.batch % self.accum:
      raise UserError(f"config.batch={self.batch} must be a multiple of config.accum={self.accum}")


@dataclasses.dataclass
class Tokenizer:
  """How a corpus's tokenizer is made: SentencePiece with byte fallback."""

  kind: str = "bpe"  # bpe | unigram
  split_digits: bool = True  # Every digit is a token of its own.
  newlines: int = 2  # Runs of 1 to so many newlines are tokens.
  space_runs: int = 0  # Runs of 2 to so many spaces are always tokens; 0: what is frequent.
  max_bytes: int = 10_000_000  # Of text that it learns from.
  # "books/*=2", "*=1": relative shares of the sample by a document's file, the first that matches.
  weights: tuple[str, ...] = ()  # (): all documents alike.
  adopt: str = ""  # A SentencePiece .model or a tokenizer.json to take instead.


@dataclasses.dataclass
class Reader:
  """How the records of a source are read."""

  text: str = "text"  # Column of JSON lines and tables that holds the text.
  id: str = "id"  # Column of an id, unique in the source; it may be missing.
  url: str = "url"  # Column of an address; it may be missing.
  html: bool = False  # Whether the column of the text holds pages of HTML.
  max_bytes: int = 67_108_864  # Of a record, decoded; a larger one cannot be read.
  max_ratio: float = 200.0  # Times that compressed data may expand; beyond, it is a bomb.


@dataclasses.dataclass
class Prepare:
  """Raw sources to a tokenised corpus."""

  seed: int = 0
  source: str = "pydocs"  # pydocs | a .warc[.gz], .jsonl[.gz] or .txt file | a folder of them
  workers: int = 2  # Processes of the local engine.
  engine: str = "local"  # local | beam
  beam_runner: str = ""  # "": in this process. Or Flink, Spark, Dataflow: docs/data.md.
  beam_options: tuple[str, ...] = ()  # Further words of Beam's command line.
  reader: Reader = field(default_factory=Reader)
  max_lost: int = 0  # Records that cannot be read: so many are put on record, one more is an error.
  max_bytes: int = 12_000_000  # pydocs: stop the crawl after so many bytes of text; 0: take all.
  # Steps in order, each a call (data/pipeline/steps.py); configs/data/ holds published lists.
  recipe: tuple[str, ...] = ("extract", "repair", "whitespace", "same_address", "duplicates")
  vocab_size: int = 4096
  tokenizer: Tokenizer = field(default_factory=Tokenizer)
  validation: float = 0.05  # Fraction of pages held out, by hash of their address.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if not 0 < self.validation < 1:
      raise UserError(f"config.validation must be between 0 and 1, got {self.validation}")
    if self.workers < 1 or self.seed < 0:
      raise UserError(
        "config.workers must be at least 1 and config.seed not negative, got "
        f"{self.workers} and {self.seed}"
      )
    if not self.reader.text:
      raise UserError("config.reader.text must name a column, got none")
    if self.reader.max_bytes < 1:
      raise UserError(f"config.reader.max_bytes must be at least 1, got {self.reader.max_bytes}")
    if not self.reader.max_ratio > 0:
      raise UserError(f"config.reader.max_ratio must be above 0, got {self.reader.max_ratio}")


@dataclasses.dataclass
class Pack:
  """A prepared corpus to packed rows, once for all runs: any step, on any number of processes."""

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"
  length: int = 2048  # Tokens per row.
  strategy: str = "best_fit"  # best_fit | concat
  workers: int = 2  # Processes.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if self.length < 2 or self.workers < 1:
      raise UserError(
        "config.length must be at least 2 and config.workers at least 1, got "
        f"{self.length} and {self.workers}"
      )
    if self.strategy not in ("best_fit", "concat"):
      hint = nearest(self.strategy, ("best_fit", "concat"))
      raise UserError(f'config.strategy="{self.strategy}" is unknown{hint}')


@dataclasses.dataclass
class Mixture:
  """Several corpora in proportions of their tokens; without sources config.prepared alone."""

  sources: tuple[str, ...] = ()  # "name=directory", prepared or packed, all of one tokenizer.
  weights: tuple[str, ...] = ()  # "web=3, books=1", then maybe "5000: web=1, books=1"; (): by size.
  preset: str = ""  # gpt3 | llama1 | pile: their weights, for sources of their names.
  max_epochs: float = 4.0  # Over one source.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if (self.weights or self.preset) and not self.sources:
      raise UserError("config.weights and config.preset are of config.sources, and there are none")
    if not self.max_epochs > 0:
      raise UserError(f"config.max_epochs must be above 0, got {self.max_epochs}")


@dataclasses.dataclass
class Pretrain(Stage):
  """Next-token prediction on packed documents.

  The tokenizer and the held-out documents are those of `prepared`.
  """

  loss: str = "cross_entropy()"
  packing: str = "first_fit"  # first_fit | best_fit | concat: how documents fill rows.
  mixture: Mixture = field(default_factory=Mixture)
  model: Model = field(default_factory=Model)

  def validate(self) -> None:
    """Checks what every stage checks, and how rows are packed.

    Raises:
      UserError: one line that names the field.
    """
    super().validate()
    known = ("first_fit", "best_fit", "concat")
    if self.packing not in known:
      raise UserError(f'config.packing="{self.packing}" is unknown{nearest(self.packing, known)}')


@dataclasses.dataclass
class Sft(Stage):
  """Next-token prediction on the answers of instruction pairs."""

  loss: str = "cross_entropy()"
  init: str = "runs/quickstart/pretrain"  # A run whose newest checkpoint is the start.


@dataclasses.dataclass
class Sampling:
  """How answers are drawn."""

  temperature: float = 0.8  # Also divides the logits of every log-prob: one distribution.
  top_k: int = 0  # 0: no limit.
  top_p: float = 1.0
  max_new: int = 40

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_new < 1:
      raise UserError(
        "config.temperature and config.top_k must not be negative, config.top_p in (0, 1] and "
        f"config.max_new at least 1, got {dataclasses.asdict(self)}"
      )


@dataclasses.dataclass
class Preferences:
  """How preference pairs are built from questions with a gold answer."""

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"
  init: str = "runs/quickstart/sft"  # The model whose samples are ranked.
  questions: int = 1500  # Training questions that get pairs.
  validation_questions: int = 400
  samples: int = 8  # Answers per question, of which two make a pair.
  easy: float = 0.35  # Training questions that get a cut-off and a repetitive pair, as a fraction.
  others: int = 2  # Pairs of a training question with other objects' answers.
  sampling: Sampling = field(default_factory=Sampling)


@dataclasses.dataclass
class Reward(Stage):
  """A scalar head trained on preference pairs."""

  loss: str = "logistic()"
  init: str = "runs/quickstart/sft"
  kinds: str = ""  # Comma-separated kinds of pairs to train on; "": all.
  preferences: str = "runs/quickstart/preferences"
  shuffle_labels: bool = False  # Negative control: the label of every pair is a coin flip.
  center: float = 0.01  # Weight of (chosen + rejected)^2, which fixes the free offset.


@dataclasses.dataclass
class Dpo(Stage):
  """Direct preference optimisation and its relatives."""

  loss: str = "logistic(beta=0.1)"
  init: str = "runs/quickstart/sft"
  preferences: str = "runs/quickstart/preferences"
  kinds: str = ""  # Comma-separated kinds of pairs to train on; "": all.
  average: bool = False  # Mean instead of summed log-probs over an answer's tokens.


@dataclasses.dataclass
class Ppo(Stage):
  """PPO with a policy, a frozen reference, a reward model and a critic."""

  loss: str = "ppo_clip(clip=0.2)"
  value_loss: str = "value_clip(clip=0.2)"
  init: str = "runs/quickstart/sft"
  reward: str = "runs/quickstart/reward"
  sampling: Sampling = field(default_factory=Sampling)
  rollouts: int = 64  # Answers per iteration.
  epochs: int = 1
  gamma: float = 1.0
  lam: float = 0.95
  value_coef: float = 0.1
  critic_head: str = "zero"  # Or "reward": the critic starts as the whole reward model.
  entropy_coef: float = 0.0
  kl_estimator: str = "k1"  # In the reward; k1 is the unbiased one.
  kl_init: float = 0.05
  kl_target: float = 0.0  # Nats per answer; 0: a fixed coefficient.
  kl_horizon: float = 10_000.0  # Answers.
  max_approxkl: float = 0.05  # Early stop of an iteration's remaining updates; 0: never.
  missing_end_penalty: float = 1.0  # Subtracted from the score of an answer that does not end.

  def validate(self) -> None:
    """Checks what the other stages check, and that rollouts divide into minibatches.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    super().validate()
    if self.rollouts % self.batch:
      raise UserError(
        f"config.rollouts={self.rollouts} must be a multiple of config.batch={self.batch}"
      )
    if self.sampling.temperature <= 0 or self.epochs < 1:
      raise UserError(
        "config.sampling.temperature must be above 0 and config.epochs at least 1, got "
        f"{self.sampling.temperature} and {self.epochs}"
      )
    if self.critic_head not in ("zero", "reward"):
      raise UserError(
        f'config.critic_head="{self.critic_head}" is unknown'
        f"{nearest(self.critic_head, ('zero', 'reward'))}"
      )
    if self.sampling.top_k or self.sampling.top_p < 1:
      raise UserError(
        "config.sampling.top_k and top_p must be 0 and 1: the policy learns from the whole "
        "distribution, so answers must be drawn from it"
      )


@dataclasses.dataclass
class Evaluate:
  """Measures the policies of a finished pipeline on held-out questions, or a model on tasks."""

  seed: int = 0
  run: str = "runs/quickstart"
  tasks: tuple[str, ...] = ()  # Of lm-eval, such as ("arc_easy", "piqa"), for `model` alone.
  task_folder: str = ""  # With tasks of one's own in YAML; "": those of lm-eval.
  model: str = "runs/quickstart/sft"  # A run, or a folder of Hugging Face.
  prepared: str = "runs/quickstart/prepare"  # Has the tokenizer of `model`.
  limit: int = 0  # Examples of each task; 0: all.
  bos: bool = True  # Whether their texts begin with the first token of a document.
  questions: int = 256
  samples: int = 4  # Answers per question.
  sampling: Sampling = field(default_factory=Sampling)


@dataclasses.dataclass
class Pipeline:
  """Everything, in order."""

  seed: int = 0
  prepare: Prepare = field(default_factory=Prepare)
  pretrain: Pretrain = field(default_factory=Pretrain)
  sft: Sft = field(default_factory=Sft)
  preferences: Preferences = field(default_factory=Preferences)
  reward: Reward = field(default_factory=Reward)
  dpo: Dpo = field(default_factory=Dpo)
  ppo: Ppo = field(default_factory=Ppo)
  evaluate: Evaluate = field(default_factory=Evaluate)
