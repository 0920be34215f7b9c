"""What --dry_run prints: the resolved config, and the cost of each stage that trains a model."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_jax import config
from llm_jax.scaling import budget, flops, roles


class Passes(NamedTuple):
  """How a stage uses its decoder.

  Attributes:
    sequences: sequences a row holds; a pair has two.
    forwards: forward passes' worth of FLOPs a trained token; a training pass counts three.
    trained: decoders that have gradients and Adam moments.
    frozen: decoders that are only read.
  """

  sequences: int = 1
  forwards: float = 3
  trained: int = 1
  frozen: int = 0


HEADINGS = ("stage", "parameters", "tokens", "FLOPs", "state", "activations")


def describe(stage: str, cfg: Any) -> str:
  """Returns the resolved config and a table of costs; reads small files, compiles nothing."""
  trained = stages(stage, cfg)
  rows, notes = [], []
  for name, part in trained.items():
    shape, note = shape_of(cfg, part)
    notes += [f"{name}: {note}"] if note else []
    if shape:
      rows.append(_row(name, part, shape))
  text = json.dumps(dataclasses.asdict(cfg), indent=2)
  if rows:
    text += "\n\n" + table([HEADINGS, *rows])
    text += "\nstate: weights, gradients, moments, frozen copies; activations: an estimate; both on"
    text += " one device; python -m tools.plan has them by part and over a mesh"
  text = "\n".join([text, *dict.fromkeys(notes)])
  return "\n\n".join([text, *filter(None, map(_mixture, trained.values()))])


def passes(part: config.Stage) -> Passes:
  """How the stage of this config uses its decoder."""
  if isinstance(part, config.Ppo):
    trained = 0 if part.lora.rank else 1 if part.critic == "shared" else 2
    return Passes(forwards=roles.forwards(part), trained=trained, frozen=1 + roles.judges(part))
  if isinstance(part, config.Grpo):
    # Once an epoch's rows: sampling, the log-probs of policy and reference, and a reward model's
    # score, if there is one.
    judges = part.score.count("reward_model")
    return Passes(forwards=3 + (3 + judges) / max(part.epochs, 1), frozen=1 + judges)
  if isinstance(part, config.Rejection):
    # Beside the training: each of the answers is sampled, and maybe read by a reward model.
    judges = part.score.count("reward_model")
    drawn = part.rounds * part.questions * part.samples
    return Passes(forwards=3 + (1 + judges) * drawn / (part.steps * part.batch), frozen=judges)
  if isinstance(part, config.OnlineDpo):
    # Of a pair two answers are learned; all of them are sampled, read by policy and reference, and
    # maybe by a reward model, once an epoch.
    judges = part.score.count("reward_model")
    answers = part.samples * (3 + judges) / (2 * max(part.epochs, 1))
    return Passes(sequences=2, forwards=3 + answers, frozen=1 + judges)
  if isinstance(part, config.Dpo):
    return Passes(sequences=2, forwards=4, frozen=1)
  return Passes(sequences=2) if isinstance(part, config.Reward) else Passes()


def stages(stage: str, cfg: Any) -> dict[str, config.Stage]:
  """The parts of a config that train a model, by name."""
  parts = {stage: cfg} | {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
  return {name: part for name, part in parts.items() if isinstance(part, config.Stage)}


def shape_of(cfg: Any, part: Any) -> tuple[config.Model | None, str]:
  """The decoder of a stage, and a note where it is unknown or assumed."""
  if isinstance(cfg, config.Pipeline):
    vocab_size = cfg.pretrain.model.vocab_size or cfg.prepare.vocab_size
    return dataclasses.replace(cfg.pretrain.model, vocab_size=vocab_size), ""
  if isinstance(part, config.Pretrain):
    if part.model.vocab_size:
      return part.model, ""
    vocab_size, note = config.Prepare().vocab_size, ""
    prepared = pathlib.Path(part.prepared) / "config.json"
    if prepared.exists():
      vocab_size = json.loads(prepared.read_text()).get("vocab_size", vocab_size)
    else:
      note = f"a vocabulary of {vocab_size} is assumed, as {part.prepared} is not prepared yet"
    vocab_size += 100 if part.model.encoder_layers else 0  # Sentinels: data/seq2seq.py.
    return dataclasses.replace(part.model, vocab_size=vocab_size), note
  whole = isinstance(cfg, config.Recipe)  # All of its stages train the same decoder.
  field, init = ("base", cfg.base) if whole else ("init", part.init)
  saved = pathlib.Path(init) / "model.json"
  if not saved.exists() and any(saved.parent.glob("*.safetensors")):
    return None, f"cost unknown, as --config.{field}={init} is a folder of Hugging Face"
  if not saved.exists():
    return None, f"cost unknown, as --config.{field}={init} holds no trained model yet"
  return config.Model(**json.loads(saved.read_text())), ""


def _mixture(part: config.Stage) -> str:
  """What each corpus of a mixture gives in the run.

  Raises:
    UserError: if one of them is missing or does not fit.
  """
  if not isinstance(part, config.Pretrain) or not part.mixture.sources:
    return ""
  from llm_jax.data import blend, mixture  # Grain takes its time, and few plans need it.

  own = part.mixture
  planned = blend.blend(
    own.sources, own.weights, own.preset, own.max_epochs,
    steps=part.steps, batch=part.batch, length=part.length, seed=part.seed, strategy=part.packing,
  )  # fmt: skip
  return mixture.table(planned.shares)


def _row(name: str, part: config.Stage, shape: config.Model) -> tuple[str, ...]:
  use = passes(part)
  length, inputs = lengths(part, shape)
  rows = part.steps * part.batch * use.sequences
  tokens, forward = rows * (length + inputs), length * flops.forward_flops_per_token(shape, length)
  if inputs:
    forward = flops.seq2seq_forward_flops(shape, inputs, length)
  count = flops.parameters(shape)
  own_rows = part.batch * use.sequences // part.accum
  memory = budget.memory(
    shape, config.Mesh(data=1), 1, rows=own_rows, length=length + inputs,
    optimizer=part.optimizer.name, roles=budget.Roles(use.trained, use.frozen),
  )  # fmt: skip
  state = memory.parameters + memory.gradients + memory.moments + memory.frozen
  adapter = getattr(part, "lora", config.Lora())
  if isinstance(part, config.Ppo):
    state = sum(roles.at_rest(part, shape).values()) + memory.gradients
  elif adapter.rank:  # The reference is the model without it.
    state = 4 * count + 16 * flops.adapter_parameters(shape, adapter)
  return (
    name,
    f"{count:,}",
    f"{tokens:,}",
    f"{rows * forward * use.forwards:.2e}",
    *(f"{size / 2**20:,.0f} MiB" for size in (state, memory.kept + memory.working)),
  )


def lengths(part: config.Stage, shape: config.Model) -> tuple[int, int]:
  """Tokens of a row that are predicted, and those that an encoder reads."""
  if isinstance(part, config.Online):
    return part.prompt_length + part.sampling.max_new - 1, 0
  if not shape.encoder_layers:
    return part.length, 0
  if isinstance(part, config.Pretrain):
    from llm_jax.data import seq2seq  # Grain takes its time, and few plans need it.

    how = dataclasses.asdict(part.corruption)
    return seq2seq.target_length(part.length, **how), part.length
  return part.length, getattr(part, "input_length", 0) or part.length


def table(rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells with their columns in line."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join(
    "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
  )
