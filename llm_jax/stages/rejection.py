"""Rejection sampling: the policy's own best answers, by a score, are what it is fine-tuned on."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_jax import config, rundir, spec
from llm_jax.data import batches, posttraining
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.stages import asking, best_of, own, parts, rewards, runs, training
from llm_jax.train import feeds, parallel, processes
from llm_jax.types import Batch, Params, TrainState


def run(
  cfg: config.Rejection,
  workdir: str,
  *,
  loss: Callable | None = None,
  score: Callable | None = None,
  measure: Callable | None = None,
) -> TrainState:
  """Fine-tunes the model of `cfg.init` on the best of its own answers, in `cfg.rounds` rounds.

  Dong et al. 2023 (arXiv:2304.06767, RAFT) and Touvron et al. 2023 (arXiv:2307.09288, section
  3.2.2). A round writes into its own directory `round-<n>`: the samples with their scores,
  `selected.jsonl`, which is a file of conversations for `experiments.sft` too, and `best_of.json`.
  One schedule of the learning rate goes over all rounds.

  Args:
    cfg: the configuration.
    workdir: where the run goes.
    loss: swaps the token loss.
    score: swaps the score: (rewards.Answered) -> [B].
    measure: swaps the score that nothing is chosen by.
  """
  cfg.validate()
  token_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.token")
  place = parallel.make(cfg.mesh)
  asker, start = asking.Asker.load(cfg, workdir, place, score)
  gold = None
  if measure or cfg.measure:
    gold = asking.scores_of(cfg, measure or cfg.measure, place, asker.tokenizer, "config.measure")
    asker.fit(gold, start)
  runs.save_shape(workdir, asker.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.next_token(training.decoder_apply(asker.model, train=True), token_loss),
    make_params=training.initializer(asker.model),
    loaded=start,
    feed=RoundFeed(cfg, Chooser(cfg, pathlib.Path(workdir), asker, gold)),
    evaluate=asker.measurer(),
    place=place,
  )


class RoundFeed:
  """Batches of what each round has chosen, `cfg.steps / cfg.rounds` of them.

  Args:
    cfg: the configuration.
    choose: (parameters, round) -> metrics; it writes what `choose.rows(round)` reads.
  """

  wants_metrics = False

  def __init__(self, cfg: config.Rejection, choose: "Chooser"):
    self._cfg, self._choose = cfg, choose
    self._round, self._used = -1, 0
    self._batches: feeds.IteratorFeed | None = None
    self._metrics: dict[str, float] = {}

  def next(self, state: TrainState) -> Batch:
    """The next batch; a new round samples first, with the newest parameters."""
    if self._batches is None or self._used == self._cfg.steps // self._cfg.rounds:
      self._round, self._used = self._round + 1, 0
      self._metrics = self._choose(state.params, self._round)
      self._batches = self._packed()
    self._used += 1
    return self._batches.next(state)

  def metrics(self) -> dict[str, float]:
    """What the round's samples were worth, once."""
    found, self._metrics = self._metrics, {}
    return found

  def observe(self, step: int, metrics: dict[str, float]) -> None:
    """Learns nothing from metrics."""

  def get_state(self) -> dict[str, Any]:
    """JSON-able; the rows themselves are in the round's file."""
    return {
      "round": self._round,
      "used": self._used,
      "metrics": self._metrics,
      "batches": self._batches and self._batches.get_state(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Takes back what `get_state` gave."""
    self._round, self._used = state["round"], state["used"]
    self._metrics = state["metrics"]
    if state["batches"]:
      self._batches = self._packed()
      self._batches.set_state(state["batches"])

  def _packed(self) -> feeds.IteratorFeed:
    cfg, rows = self._cfg, self._choose.rows(self._round)
    seed = asking.seed_of(cfg.seed, [self._round])
    return feeds.IteratorFeed(
      batches.pack_examples(rows, cfg.length, cfg.batch, seed=seed, epochs=-1, numbered=True)
    )


@dataclasses.dataclass(frozen=True)
class Chooser:
  """Samples, scores and chooses; each round in a directory of its own.

  Attributes:
    cfg: the configuration.
    workdir: of the run.
    asker: draws and scores.
    gold: a score that nothing is chosen by; None: there is none.
  """

  cfg: config.Rejection
  workdir: pathlib.Path
  asker: asking.Asker
  gold: rewards.Scores | None

  def __call__(self, params: Params, number: int) -> dict[str, float]:
    """Writes the files of a round; returns its metrics.

    Raises:
      UserError: if nothing is chosen.
    """
    params = self.asker.place.unreplicate(params)
    directory = self.workdir / f"round-{number}"
    rows = self._samples(params, number, directory)
    selected = [row | {"number": number} for i, x in enumerate(rows) for row in self._best(i, x)]
    if not selected:
      ended = np.mean([answer["ended"] for row in rows for answer in row["answers"]])
      raise UserError(
        f"config.least={self.cfg.least:g}, config.ended_only={self.cfg.ended_only}: none of "
        f"{len(rows) * self.cfg.samples} answers is chosen, {ended:.0%} of them end by themselves; "
        "lower config.least, or raise config.sampling.max_new"
      )
    curve = self._curve(rows)
    metrics = _metrics(rows, selected, curve)
    rundir.write_json(directory / "best_of.json", {"metrics": metrics, "curve": curve})
    # Written last: its presence says that the round's files are complete.
    parts.write(directory / "selected.jsonl", selected)
    _report(number, metrics, curve)
    return metrics

  def rows(self, number: int) -> list[posttraining.Tokens]:
    """Returns (tokens, mask) of what a round learns from."""
    first = 0 if self.cfg.earlier else number
    data = posttraining.load(
      "conversations",
      [str(self.workdir / f"round-{i}" / "selected.jsonl") for i in range(first, number + 1)],
      lambda item: posttraining.conversation(self.asker.tokenizer, item, self.cfg.length),
    )
    own.report(data)
    return data.train

  def _samples(self, params: Params, number: int, directory: pathlib.Path) -> list[parts.Row]:
    """Returns a row for every prompt: its messages, its true answer, all answers with scores."""
    asker, cfg = self.asker, self.cfg
    count = cfg.questions if cfg.questions else len(asker.asked)
    chosen = asker.choose([number], min(count, len(asker.asked)))
    asked = [asker.asked[i] for i in chosen]
    units = {run: dataclasses.asdict(normal) for run, normal in asker.scores.normals.items()}
    inputs = {"params": parts.fingerprint(params), "units": json.loads(json.dumps(units))}

    def sampled(part: int) -> list[parts.Row]:
      first = part * cfg.prompts
      own_rows = asked[first : first + cfg.prompts]
      said = asker.ask(params, own_rows, [number], first=first)
      columns = {"score": said.scores}
      if self.gold is not None:
        columns["measure"] = asker.score(self.gold, own_rows, said.drawn)[0]
      tokens = said.drawn.batch["mask"].sum(1).astype(int).reshape(len(own_rows), -1)
      return [
        {"messages": row.messages, "truth": row.truth, "answers": [
          {"text": answer.text, "ended": answer.ended, "tokens": int(tokens[q, i])}
          | {name: float(values[q, i]) for name, values in columns.items()}
          for i, answer in enumerate(said.drawn.answers[q])
        ]}
        for q, row in enumerate(own_rows)
      ]  # fmt: skip

    name = f"{self.workdir.name}: samples of round {number}"
    kept = parts.Parts(directory / "samples", inputs)
    return kept.rows(name, -(-len(asked) // cfg.prompts), sampled)

  def _best(self, prompt: int, row: parts.Row) -> list[parts.Row]:
    """Returns the best answers of a prompt as conversations; the same text is learned once."""
    cfg = self.cfg
    fit = {
      answer["text"]: answer
      for answer in sorted(row["answers"], key=lambda answer: answer["score"])
      if answer["text"].strip()
      and answer["score"] >= cfg.least
      and (answer["ended"] or not cfg.ended_only)
    }
    best = sorted(fit.values(), key=lambda answer: -answer["score"])[: cfg.keep]
    return [
      {
        "messages": [*row["messages"], {"role": "assistant", "content": answer["text"]}],
        "prompt_number": prompt,
      }
      | {name: answer[name] for name in ("score", "measure", "tokens") if name in answer}
      for answer in best
    ]

  def _curve(self, rows: list[parts.Row]) -> list[dict[str, float]]:
    """Returns the value of the best of n for each n, with standard errors over prompts."""
    columns = {"score": _column(rows, "score")}
    if self.gold is not None:
      columns["measure"] = _column(rows, "measure")
    sizes = best_of.sizes(self.cfg.samples)
    table = [{"n": n, "kl_bound": best_of.kl_bound(n)} for n in sizes]
    for name, values_QN in columns.items():
      found_QS = best_of.expected(columns["score"], values_QN, sizes)
      errors_S = found_QS.std(0, ddof=1 if len(rows) > 1 else 0) / np.sqrt(len(rows))
      for line, mean, error in zip(table, found_QS.mean(0), errors_S, strict=True):
        line |= {name: float(mean), f"{name}_error": float(error)}
    return table


def _column(rows: list[parts.Row], name: str) -> np.ndarray:
  """[Q, N] float64 numbers of the answers."""
  return np.array([[answer[name] for answer in row["answers"]] for row in rows])


def _metrics(
  rows: list[parts.Row], selected: list[parts.Row], curve: list[dict[str, float]]
) -> dict[str, float]:
  metrics = {
    "objective/scores": float(_column(rows, "score").mean()),
    "rollout/length": float(_column(rows, "tokens").mean()),
    "rollout/end_rate": float(_column(rows, "ended").mean()),
    "chosen/scores": float(np.mean([row["score"] for row in selected])),
    "chosen/length": float(np.mean([row["tokens"] for row in selected])),
    "chosen/answers": len(selected),
    "chosen/prompts": len({row["prompt_number"] for row in selected}) / len(rows),
  }
  for line in curve:
    metrics |= {f"best_of/{line['n']}/{k}": line[k] for k in ("score", "measure") if k in line}
  return metrics


def _report(number: int, metrics: dict[str, float], curve: list[dict[str, float]]) -> None:
  """Says what a round's samples and its best answers are worth."""
  processes.say(
    f"round {number}: score {metrics['objective/scores']:.3f} of all answers, "
    f"{metrics['chosen/scores']:.3f} of the {metrics['chosen/answers']} chosen, for "
    f"{metrics['chosen/prompts']:.0%} of the prompts"
  )
  for line in curve:
    measured = f", measure {line['measure']:.3f}" if "measure" in line else ""
    processes.say(
      f"  best of {line['n']}: score {line['score']:.3f}{measured}, KL at most "
      f"{line['kl_bound']:.2f} nats"
    )
