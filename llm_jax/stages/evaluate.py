"""Judges the policies of a pipeline on held-out questions: gold, reward, KL, win rates."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from llm_jax import config, rundir
from llm_jax.data import gold
from llm_jax.data.questions import Question
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models import heads
from llm_jax.stages import answers, pairs, pretrain, reward, runs, scores
from llm_jax.stages.answers import Drawn
from llm_jax.train import checkpoint
from llm_jax.train.metrics import read as read_metrics

# What a base model can be asked with: the question itself, or the start of a page.
BASE_PROMPTS = {
  "question": "{prompt}\n",
  "answer": "Question: {prompt}\nAnswer:",
  "page": "{heading}\n",
  "page, blank line": "{heading}\n\n",
}


_TRIED = 80  # Questions that the base model's prompts are compared on.
INPUTS = ("pretrain", "sft", "reward", "reward_shuffled", "dpo", "ppo")


def run(cfg: config.Evaluate, workdir: str) -> dict:
  """Measures base, SFT, DPO and PPO models; writes and returns `evaluate.json`.

  Every policy answers the same held-out questions, `cfg.samples` times each. KL is to the SFT
  model, log pi/pi_sft (k1) summed over the tokens of the policy's own answers, in nats.
  """
  if cfg.tasks:
    return _tasks(cfg, workdir)
  out, root = pathlib.Path(workdir) / "evaluate.json", pathlib.Path(cfg.run)
  inputs = {name: checkpoint.fingerprint(root / name) for name in INPUTS}
  if out.exists():
    summary = json.loads(out.read_text())
    if summary["inputs"] == inputs:
      return summary
  bench = Bench.load(cfg, root)
  drawn = {"base": bench.best_base(runs.load(str(root / "pretrain"), "run"))}
  for name in ("sft", "dpo", "ppo"):
    if inputs[name]:
      drawn[name] = bench.ask(name)
  again = bench.ask("sft", "again")
  tables = {name: bench.table(d) for name, d in drawn.items()}
  golds = {name: totals(table) for name, table in tables.items()}
  summary = {
    "policies": {name: bench.measure(name, d, tables[name]) for name, d in drawn.items()},
    "win_rates": {
      f"{name}_vs_sft": win_rate(golds[name], golds["sft"]) for name in drawn if name != "sft"
    }
    | {"sft_vs_sft": win_rate(totals(bench.table(again)), golds["sft"])},
    "reward": bench.reward_model(),
    "answers": bench.examples(drawn, golds),
    "next_token": next_tokens(root, bench),
    "base_prompt": bench.base_prompt,
    "inputs": inputs,
  }
  out.parent.mkdir(parents=True, exist_ok=True)
  temporary = out.with_suffix(".tmp")
  temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
  os.replace(temporary, out)
  return summary


def _tasks(cfg: config.Evaluate, workdir: str) -> dict:
  """Measures `cfg.model` on lm-eval's tasks; writes and returns `tasks.json`."""
  if not importlib.util.find_spec("lm_eval"):
    raise UserError("config.tasks needs lm-eval: pip install 'llm_jax[eval]'")
  from llm_jax.stages import harness  # The package is an extra.

  coder = runs.tokenizer(cfg.prepared)
  run = runs.load(cfg.model, "model", vocab_size=coder.vocab_size)
  found = harness.measure(
    harness.make(run, coder, bos=cfg.bos), cfg.tasks, cfg.task_folder, cfg.limit
  )
  out = pathlib.Path(workdir) / "tasks.json"
  out.parent.mkdir(parents=True, exist_ok=True)
  rundir.write_json(out, found)
  for name, row in found.items():
    numbers = (f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float))
    print(f"{name}: {', '.join(numbers)}", flush=True)
  return found


def win_rate(mine: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
  """How often one policy's answer has the higher gold score, a tie counting one half.

  Every sample of a question meets every sample of the other policy's. The standard error is over
  questions, for samples of one question are not independent.

  Args:
    mine: [Q, n] gold scores.
    theirs: [Q, m], of draws with another seed.
  """
  a_Qn1, b_Q1m = mine[:, :, None], theirs[:, None, :]
  wins_Q = ((a_Qn1 > b_Q1m) + 0.5 * (a_Qn1 == b_Q1m)).mean((1, 2))
  return {"rate": float(wins_Q.mean()), "se": _standard_error(wins_Q), "n": int(mine.size)}


@dataclasses.dataclass
class Bench:
  """The held-out questions, and all that judges an answer to them.

  Attributes:
    cfg: the configuration.
    root: the pipeline's directory.
    tokenizer: of all models.
    questions: held out from all training.
    others: for each question, another one's answer: the control of relevance.
    judge: the reward model.
    sft: the reference.
    base_prompt: the prompt that the base model did best with.
  """

  cfg: config.Evaluate
  root: pathlib.Path
  tokenizer: Tokenizer
  questions: Sequence[Question]
  others: Sequence[str]
  judge: runs.Run
  sft: runs.Run
  base_prompt: str = ""

  @classmethod
  def load(cls, cfg: config.Evaluate, root: pathlib.Path) -> "Bench":
    """Reads what the pipeline left in `root`."""
    prepared = str(root / "prepare")
    questions = runs.asked(prepared, "validation")[-cfg.questions :]
    return cls(
      cfg,
      root,
      runs.tokenizer(prepared),
      questions,
      gold.shuffled([q.answer for q in questions], cfg.seed),
      runs.load(str(root / "reward"), "run", reward=True),
      runs.load(str(root / "sft"), "run"),
    )

  def ask(self, name: str, draw: str = "") -> Drawn:
    """The answers of a fine-tuned policy; each policy, and each `draw`, has a seed of its own."""
    seed = zlib.crc32(f"{self.cfg.seed} {name} {draw}".encode())
    policy = runs.load(str(self.root / name), "run")
    prompts = [answers.prompt_tokens(self.tokenizer, q.prompt) for q in self.questions]
    return answers.draw(
      policy.model,
      policy.params,
      self.tokenizer,
      prompts,
      self.cfg.sampling,
      seed=seed,
      samples=self.cfg.samples,
    )

  def best_base(self, base: runs.Run) -> Drawn:
    """The base model's answers with the prompt that gives it the highest relevance.

    The prompts are compared on the answers to a part of these same questions. A page has no turns,
    so a line's end counts as the end of an answer.
    """
    part = self.questions[:_TRIED]
    truths = [q.answer for q in part]
    relevances = {}
    for name in BASE_PROMPTS:
      drawn = self._draw_base(base, name, part)
      relevances[name] = float(_relevance(drawn, truths).mean())
    self.base_prompt = max(relevances, key=relevances.get)
    return self._draw_base(base, self.base_prompt, self.questions)

  def table(self, drawn: Drawn) -> list[list[gold.Gold]]:
    """The gold score of every answer, [Q][n]."""
    return [
      [gold.score(a.text, q.answer, a.ended) for a in row]
      for q, row in zip(self.questions, drawn.answers, strict=True)
    ]

  def measure(self, name: str, drawn: Drawn, table: list[list[gold.Gold]]) -> dict[str, float]:
    """Every figure of one policy, with standard errors over questions; `table` is `drawn`'s."""
    shuffled_Qn = _relevance(drawn, self.others)
    columns = {
      "end_rate": [[g.ends for g in row] for row in table],
      "relevance": [[g.relevance for g in row] for row in table],
      "relevance_shuffled": shuffled_Qn,
      "form": [[g.form for g in row] for row in table],
      "gold": [[g.total for g in row] for row in table],
      "length": [[len(a.text.split()) for a in row] for row in drawn.answers],
    }
    columns["difference"] = np.array(columns["relevance"]) - shuffled_Qn
    if name != "base":  # Its prompts are not a conversation: no reward, no KL.
      columns |= {"reward": self._rewards(drawn), "kl": self._kl(name, drawn)}
    out = {}
    for key, values in columns.items():
      values_Q = np.asarray(values, np.float64).mean(1)
      out |= {key: float(values_Q.mean()), f"{key}_se": _standard_error(values_Q)}
    if name == "sft":
      out["reward_std"] = float(np.asarray(columns["reward"]).std())
    return out

  def reward_model(self) -> dict:
    """Accuracy by kind, the shuffled-label control, calibration and scores on held-out pairs."""
    held_out = pairs.load(str(self.root / "preferences"), "validation")
    length = answers.PROMPT_TOKENS + self.cfg.sampling.max_new
    both = reward.scores_fn(heads.Scorer.from_config(self.judge.shape))
    chosen_N, rejected_N = both(self.judge.params, self.tokenizer, held_out, length)
    margin_N = chosen_N - rejected_N
    words_N = np.array(
      [len(p.chosen.text.split()) - len(p.rejected.text.split()) for p in held_out]
    )
    spread = margin_N.std() * words_N.std()
    out = {
      "accuracy": reward.accuracies(held_out, margin_N),
      "calibration": calibration(margin_N),
      "histogram": histogram(chosen=chosen_N, rejected=rejected_N),
      "margins": histogram(margin=margin_N),
      "length_correlation": float(np.corrcoef(margin_N, words_N)[0, 1]) if spread > 0 else 0.0,
      "pairs": len(held_out),
    }
    control = self.root / "reward_shuffled"
    if (control / "model.json").exists():
      params = runs.load(str(control), "run", reward=True).params
      chosen_N, rejected_N = both(params, self.tokenizer, held_out, length)
      out["shuffled"] = reward.accuracies(held_out, chosen_N - rejected_N)
    return out

  def examples(self, drawn: dict[str, Drawn], golds: dict[str, np.ndarray], count: int = 24):
    """The first answer of every policy to the first `count` questions."""
    return [
      {"object": q.object, "question": q.prompt, "truth": q.answer}
      | {name: d.answers[i][0].text for name, d in drawn.items()}
      | {"gold": {name: float(g[i, 0]) for name, g in golds.items()}}
      for i, q in enumerate(self.questions[:count])
    ]

  def _draw_base(self, base: runs.Run, prompt: str, questions: Sequence[Question]) -> Drawn:
    texts = (BASE_PROMPTS[prompt].format(**dataclasses.asdict(q)) for q in questions)
    prompts = [[self.tokenizer.bos_id, *self.tokenizer.encode(text)] for text in texts]
    return answers.draw(
      base.model,
      base.params,
      self.tokenizer,
      prompts,
      self.cfg.sampling,
      seed=self.cfg.seed,
      samples=self.cfg.samples,
      stop="\n",
    )

  @functools.cached_property
  def _score(self) -> Callable:
    return scores.reward_model(heads.Scorer.from_config(self.judge.shape))

  @functools.cached_property
  def _logps(self) -> Callable:
    return answers.logps_fn(self.sft.model, self.cfg.sampling.temperature)

  def _rewards(self, drawn: Drawn) -> np.ndarray:
    flat = answers.in_rows(lambda part: self._score(self.judge.params, part), drawn.batch)
    return flat.reshape(len(self.questions), -1)

  def _kl(self, name: str, drawn: Drawn) -> np.ndarray:
    if name == "sft":
      return np.zeros((len(self.questions), self.cfg.samples))
    mine, theirs = (
      answers.in_rows(lambda part, p=p: self._logps(p, part).sum(1), drawn.batch)
      for p in (runs.load(str(self.root / name), "run").params, self.sft.params)
    )
    return (mine - theirs).reshape(len(self.questions), -1)


def totals(table: list[list[gold.Gold]]) -> np.ndarray:
  """[Q, n] gold scores of a table of their parts."""
  return np.array([[g.total for g in row] for row in table])


def calibration(margin_N: np.ndarray, bins: int = 8) -> list[dict[str, float]]:
  """Predicted against observed P(chosen is better), with each pair seen from both sides."""
  p_N = 1 / (1 + np.exp(-np.concatenate([margin_N, -margin_N])))
  won_N = np.repeat([1.0, 0.0], len(margin_N))
  which_N = np.minimum((p_N * bins).astype(int), bins - 1)
  return [
    {
      "predicted": float(p_N[which_N == b].mean()),
      "observed": float(won_N[which_N == b].mean()),
      "n": int((which_N == b).sum()),
    }
    for b in range(bins)
    if (which_N == b).any()
  ]


def histogram(bins: int = 32, **values_N: np.ndarray) -> dict[str, list[float]]:
  """Counts in bins of one width over the range of all: {"edges": [bins + 1], name: [bins]}."""
  edges = np.histogram_bin_edges(np.concatenate([*values_N.values()]), bins)
  counts = {name: np.histogram(x_N, edges)[0].tolist() for name, x_N in values_N.items()}
  return {"edges": edges.astype(float).round(6).tolist()} | counts


def next_tokens(root: pathlib.Path, bench: Bench, count: int = 6) -> list[dict]:
  """What the base model expects next, in the middle of held-out answers."""
  base = runs.load(str(root / "pretrain"), "run")
  contexts = []
  for question in bench.questions[:count]:
    words = question.answer.split(" ")
    half = max(1, len(words) // 2)
    start = f"{question.heading}\n{' '.join(words[:half])}"
    contexts.append((start, f" {words[half]}" if half < len(words) else ""))
  return pretrain.next_token_table(base.model, base.params, bench.tokenizer, contexts)


def bits_per_byte(root: pathlib.Path) -> float:
  """The last held-out bits per byte that pretraining logged."""
  rows = [row for row in read_metrics(root / "pretrain") if "eval/bits_per_byte" in row]
  return rows[-1]["eval/bits_per_byte"]


def _relevance(drawn: Drawn, truths: Sequence[str]) -> np.ndarray:
  return np.array(
    [
      [gold.relevance(a.text, truth) for a in row]
      for truth, row in zip(truths, drawn.answers, strict=True)
    ]
  )


def _standard_error(values_Q: np.ndarray) -> float:
  return float(values_Q.std(ddof=1) / np.sqrt(len(values_Q))) if len(values_Q) > 1 else 0.0
