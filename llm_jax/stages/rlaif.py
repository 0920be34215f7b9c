"""Constitutional AI: a model revises its own answers by principles, or a judge compares them."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from llm_jax import config, rundir
from llm_jax.data import chat, principles
from llm_jax.data.formats import Messages
from llm_jax.data.preferences import Answer
from llm_jax.data.principles import Principle
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models.transformer import Transformer
from llm_jax.stages import answers, asking, own, parts, prompts, runs, training
from llm_jax.stages import judge as judging
from llm_jax.stages.prompts import Asked
from llm_jax.train import checkpoint, parallel, processes
from llm_jax.types import Params

_WIDTH = 32  # Prompts are padded to a multiple of it, so that few shapes compile.
_NOTHING = "nothing is left to write, of {count} prompts: {drops}; raise config.questions, "
_REMEDY = "config.sampling.max_new or config.sampling.temperature, or name another judge"


def run(
  cfg: config.Rlaif, workdir: str, *, judge: judging.Judge | None = None
) -> dict[str, int | float]:
  """Writes data for SFT (`revised.jsonl`) or soft preferences (`train.jsonl`); returns counts.

  Bai et al. 2022 (arXiv:2212.08073), sections 3.1 and 4.1. The counts are in `counts.json` too.

  Args:
    cfg: the configuration.
    workdir: where the files go; a part that is there is not done again.
    judge: swaps who compares answers (stages/judge.py).

  Raises:
    UserError: if something is missing, or nothing is left to write.
  """
  cfg.validate()
  constitution = principles.read(cfg.principles)
  out = pathlib.Path(workdir)
  writer = Writer.load(cfg)
  with own.intake(cfg, out) as taken:
    asked = prompts.load(cfg.data, cfg.prepared, intake=taken)
  asked = asked[: cfg.questions] if cfg.questions else asked
  kept = parts.Parts(
    out / "parts",
    {
      "init": checkpoint.fingerprint(cfg.init),
      "judge": checkpoint.fingerprint(cfg.judge.run) if cfg.judge.run else "",
      "principles": [list(principle) for principle in constitution],
    },
  )
  if cfg.part == "prefer":
    asks = judge if judge else judging.load(cfg.judge, cfg.prepared, writer.place, "judge.run")
    name, make = "train.jsonl", Comparer(writer, asks, constitution)
  else:
    name, make = "revised.jsonl", Reviser(writer, constitution)

  def part(number: int) -> list[parts.Row]:
    first = number * cfg.prompts
    return make(asked[first : first + cfg.prompts], first)

  rows = kept.rows(f"{out.name}: {cfg.part}", -(-len(asked) // cfg.prompts), part)
  written, counts = make.finish(rows)
  if not written:
    drops = ", ".join(f"{key} {n}" for key, n in counts.items() if n and isinstance(n, int))
    raise UserError(_NOTHING.format(count=len(asked), drops=drops) + _REMEDY)
  parts.write(out / name, written)
  counts = {"prompts": len(asked), "written": len(written)} | counts
  # Written last: its presence says that the file is complete.
  rundir.write_json(out / "counts.json", counts)
  shown = ", ".join(f"{key} {n:.3g}" for key, n in counts.items())
  processes.say(f"{out / name}: {shown}")
  return counts


@dataclasses.dataclass(frozen=True)
class Writer:
  """The model that answers, criticises and revises.

  Attributes:
    cfg: the configuration.
    tokenizer: of the model.
    model: the decoder.
    params: its parameters, as placed.
    place: where they are.
  """

  cfg: config.Rlaif
  tokenizer: Tokenizer
  model: Transformer
  params: Params
  place: parallel.Placement

  @classmethod
  def load(cls, cfg: config.Rlaif) -> "Writer":
    """Reads the model of `cfg.init`.

    Raises:
      UserError: if there is none.
    """
    tokenizer, place = runs.tokenizer(cfg.prepared), parallel.make(cfg.mesh)
    start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size)
    params = training.placed(place, start.model, start.params)
    return cls(cfg, tokenizer, start.model, params, place)

  def say(
    self, conversations: Sequence[Messages], step: int, first: int, samples: int = 1
  ) -> list[list[Answer]]:
    """Draws what the model says next in each conversation.

    Args:
      conversations: the user spoke last.
      step: 0 for an answer, then 1, 2, ... for what follows it; each has draws of its own.
      first: number of the first conversation among all prompts.
      samples: of each.
    """
    cfg = self.cfg
    rows = [chat.prompt(self.tokenizer, messages, cfg.length) for messages in conversations]
    width = min(cfg.length, -(-max(map(len, rows)) // _WIDTH) * _WIDTH)
    drawn = answers.draw(
      self.model, self.params, self.tokenizer, rows, cfg.sampling,
      seed=asking.seed_of(cfg.seed, [step]), samples=samples, rows=cfg.prompts * samples,
      place=self.place, length=width, first=first,
    )  # fmt: skip
    return drawn.answers


@dataclasses.dataclass(frozen=True)
class Reviser:
  """Answers, and as often as the config says a critique and a revision by a drawn principle.

  Attributes:
    writer: the model.
    constitution: principles to draw from.
  """

  writer: Writer
  constitution: Sequence[Principle]

  def __call__(self, asked: Sequence[Asked], first: int) -> list[parts.Row]:
    """Returns for each prompt the first answer, and every principle, critique and revision."""
    cfg = self.writer.cfg
    talks = [list(row.messages) for row in asked]
    said = [answer for (answer,) in self.writer.say(talks, 0, first)]
    traces = [{"first": answer.text, "rounds": []} for answer in said]
    drawn = [
      principles.draw(self.constitution, cfg.revisions, [cfg.seed, first + i])
      for i in range(len(asked))
    ]
    for k in range(cfg.revisions):
      by = [chosen[k] for chosen in drawn]
      for talk, answer, principle in zip(talks, said, by, strict=True):
        talk += [_assistant(answer.text), _user(principle.critique)]
      critiques = [answer for (answer,) in self.writer.say(talks, 2 * k + 1, first)]
      for talk, critique, principle in zip(talks, critiques, by, strict=True):
        talk += [_assistant(critique.text), _user(principle.revision)]
      said = [answer for (answer,) in self.writer.say(talks, 2 * k + 2, first)]
      for trace, critique, answer, principle in zip(traces, critiques, said, by, strict=True):
        trace["rounds"].append(
          {"principle": principle.name, "critique": critique.text, "revision": answer.text}
        )
      # A revision stands in the place of the answer: the next round is about it alone.
      talks = [list(row.messages) for row in asked]
    return [
      {
        "messages": [*row.messages, _assistant(answer.text)],
        "ended": answer.ended,
        "trace": trace,
      }
      for row, answer, trace in zip(asked, said, traces, strict=True)
    ]

  def finish(self, rows: Sequence[parts.Row]) -> tuple[list[parts.Row], dict[str, int | float]]:
    """Returns the rows to learn from, and counts of the others."""
    ended_only = self.writer.cfg.ended_only
    said = [row for row in rows if row["messages"][-1]["content"].strip()]
    kept = [row for row in said if row["ended"] or not ended_only]
    changed = [row for row in kept if row["messages"][-1]["content"] != row["trace"]["first"]]
    return kept, {
      "empty": len(rows) - len(said),
      "not_ended": len(said) - len(kept),
      "changed": len(changed),
    }


@dataclasses.dataclass(frozen=True)
class Comparer:
  """Two answers to each prompt, and what a judge thinks of them.

  Attributes:
    writer: the model that answers.
    judge: who compares.
    constitution: principles to draw from.
  """

  writer: Writer
  judge: judging.Judge
  constitution: Sequence[Principle]

  def __call__(self, asked: Sequence[Asked], first: int) -> list[parts.Row]:
    """Returns for each prompt both answers, and where they differ the verdict on them."""
    cfg = self.writer.cfg
    said = self.writer.say([row.messages for row in asked], 0, first, samples=2)
    texts = [(one.text, two.text) for one, two in said]
    numbers = [i for i, (one, two) in enumerate(texts) if one != two and one and two]
    drawn = {
      i: principles.draw(self.constitution, cfg.drawn, [cfg.seed, first + i]) for i in numbers
    }
    verdicts = judging.compare(
      self.judge,
      [asked[i].messages for i in numbers],
      [texts[i] for i in numbers],
      [drawn[i] for i in numbers],
    )
    rows = [
      {
        "prompt": row.messages,
        "answers": list(pair),
        "ended": [answer.ended for answer in answered],
      }
      for row, pair, answered in zip(asked, texts, said, strict=True)
    ]
    for i, probability, changed, letter in zip(numbers, *verdicts, strict=True):
      rows[i]["verdict"] = {
        "first": float(probability),
        "order_changed": float(changed),
        "letter_a": float(letter),
        "principles": [principle.name for principle in drawn[i]],
      }
    return rows

  def finish(self, rows: Sequence[parts.Row]) -> tuple[list[parts.Row], dict[str, int | float]]:
    """Returns pairs with soft labels, and what became of the others and of the order."""
    judged = [row for row in rows if "verdict" in row]
    written = [pair for row in judged if (pair := preference(row, self.writer.cfg.clamp))]
    verdicts = [row["verdict"] for row in judged]
    means = {
      "order_changed": _mean([verdict["order_changed"] for verdict in verdicts]),
      "letter_a": _mean([verdict["letter_a"] for verdict in verdicts]),
      "probability": _mean([pair["probability"] for pair in written]),
    }
    return written, {
      "same_or_empty": len(rows) - len(judged),
      "ties": len(judged) - len(written),
    } | means


def preference(row: parts.Row, clamp: float = 0.0) -> parts.Row | None:
  """Returns a judged row as a pair with a soft label, in the format `pairs`; None of a tie.

  Args:
    row: as `Comparer` makes it.
    clamp: the label stays in [clamp, 1 - clamp]; 0: as it is.
  """
  first = float(np.clip(row["verdict"]["first"], clamp, 1 - clamp))
  if first == 0.5:
    return None
  chosen = 0 if first > 0.5 else 1
  return {
    "prompt": row["prompt"],
    "chosen": row["answers"][chosen],
    "rejected": row["answers"][1 - chosen],
    "probability": max(first, 1 - first),
    "verdict": row["verdict"],
  }


def _mean(values: Sequence[float]) -> float:
  return float(np.mean(values)) if values else 0.0


def _user(text: str) -> dict[str, str]:
  return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
  return {"role": "assistant", "content": text}
