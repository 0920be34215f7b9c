"""How often a reward model, a score or a judge prefers the answer that people prefer."""

import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax import config, rundir, spec
from llm_jax.data import batches, posttraining, preferences, principles
from llm_jax.data.formats import Messages, Preference
from llm_jax.data.posttraining import Compared, Encoded
from llm_jax.data.preferences import Answer
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.stages import judge as judging
from llm_jax.stages import own, pairs, parts, reward, rewards, runs, scores
from llm_jax.train import checkpoint, parallel, processes

_WIDTH = 64  # Rows are padded to a multiple of it, so that few shapes compile.
_SURE = 1e-6  # A judge's probability stays so far from 0 and 1, where it has no log-odds.
_Z = 1.959964  # Of 95 %.

Compare = Callable[[Sequence["Item"]], list[parts.Row]]  # One row an item, "margin" first.


class Item(NamedTuple):
  """A pair of answers that people have compared.

  Attributes:
    prompt: messages.
    answers: the better one and the other one.
    pair: the same as tokens.
    file: name of the file that has it.
  """

  prompt: Messages
  answers: tuple[Answer, Answer]
  pair: Compared
  file: str


def run(
  cfg: config.Agreement,
  workdir: str,
  *,
  score: Callable | None = None,
  judge: judging.Judge | None = None,
) -> dict[str, dict[str, float]]:
  """Compares the answers of every pair; writes `agreement.json` and `verdicts.jsonl`.

  Args:
    cfg: the configuration.
    workdir: where the files go; a part that is there is not done again.
    score: swaps the score: (rewards.Answered) -> [B].
    judge: swaps who compares answers (stages/judge.py).

  Returns:
    What `measures` says of all pairs, under "all", and of each source.

  Raises:
    UserError: if something is missing, or there is no pair.
  """
  cfg.validate()
  out, place = pathlib.Path(workdir), parallel.make(cfg.mesh)
  tokenizer = runs.tokenizer(cfg.prepared)
  items = read(cfg, workdir, tokenizer)
  constitution = principles.read(cfg.principles)
  inputs: dict[str, Any] = {"items": _digest(items)}
  if score or not (judge or cfg.judge.run or cfg.judge.endpoint):
    scorer = _scorer(cfg, score, place, tokenizer)
    inputs |= {run: parts.fingerprint(model.params) for run, model in scorer.models.items()}
    # Of a sum, or a rule, the difference is no log-odds.
    compare, nats = _margins(cfg, scorer, tokenizer), bool(scorer.models) and len(scorer.terms) == 1
  else:
    asks = judge if judge else judging.load(cfg.judge, cfg.prepared, place, "judge.run")
    compare, nats = _Asker(asks, constitution, cfg), True
    inputs |= {"principles": [list(principle) for principle in constitution]}
    inputs |= {"judge": checkpoint.fingerprint(cfg.judge.run) if cfg.judge.run else ""}
  kept = parts.Parts(out / "parts", inputs)
  rows = kept.rows(
    f"{out.name}: agreement",
    -(-len(items) // cfg.rows),
    lambda i: compare(items[i * cfg.rows : (i + 1) * cfg.rows]),
  )
  found = by_source(items, rows, nats)
  parts.write(out / "verdicts.jsonl", _explained(items, rows))
  rundir.write_json(out / "agreement.json", found)
  processes.say(table(found))
  return found


def read(cfg: config.Agreement, workdir: str, tokenizer: Tokenizer) -> list[Item]:
  """Reads the pairs of all files, short ones first.

  Raises:
    UserError: if a file cannot be read, or there is no pair.
  """
  items = []
  with own.intake(cfg, workdir) as taken:
    for name in cfg.data:
      path = pathlib.Path(name)
      if path.is_file() and pairs.made_here(path):
        items += _made_here(path, tokenizer, cfg.length)
      else:
        file = posttraining.name_of(posttraining.files([name])[0].path)
        encode = functools.partial(_encoded, tokenizer, file, length=cfg.length)
        data = posttraining.load("preferences", [name], encode, intake=taken)
        own.report(data)
        items += data.train
  if not items:
    raise UserError(f"config.data={cfg.data} holds no pair of answers")
  return sorted(items, key=lambda item: _size(item.pair))


def _made_here(path: pathlib.Path, tokenizer: Tokenizer, length: int) -> list[Item]:
  found, rows = preferences.read(path), []
  for pair, row in zip(found, pairs.encode(tokenizer, found, length), strict=True):
    prompt = [{"role": "user", "content": pair.prompt}]
    both = pair.chosen, pair.rejected
    rows.append(Item(prompt, both, Compared(row, pair.kind), posttraining.name_of(str(path))))
  return rows


def _encoded(tokenizer: Tokenizer, file: str, item: Preference, length: int) -> Encoded | str:
  found = posttraining.preference(tokenizer, item, length)
  if isinstance(found, str):
    return found
  both = Answer(item.chosen), Answer(item.rejected)
  return Encoded(Item(item.prompt, both, found.row, file), found.cut)


def _size(pair: Compared) -> int:
  return max(len(tokens) for tokens, _ in pair.row.values())


def _digest(items: Sequence[Item]) -> str:
  digest = hashlib.sha256()
  for item in items:
    digest.update(repr((item.prompt, item.answers)).encode("utf-8", "surrogatepass"))
  return digest.hexdigest()


def _scorer(
  cfg: config.Agreement, swapped: Callable | None, place: parallel.Placement, tokenizer: Tokenizer
) -> rewards.Scores:
  """Returns the score; reward models in it stay as they are, so that differences are log-odds."""
  text = swapped or cfg.score
  for _, fn in spec.terms_of(spec.resolve(text, rewards.__name__, "score", ("answered",))):
    if getattr(fn, "func", fn) is rewards.judge:
      raise UserError("config.score names a judge: set config.judge.run or config.judge.endpoint")
  ready = rewards.Scores.load(text, place, tokenizer.vocab_size, cfg.prepared)
  ready.normals = dict.fromkeys(ready.models, scores.Normal(0.0, 1.0))
  return ready


def _margins(cfg: config.Agreement, scorer: rewards.Scores, tokenizer: Tokenizer) -> Compare:
  """Returns what gives pairs the difference of two scores."""

  def compare(items: Sequence[Item]) -> list[parts.Row]:
    padded = [*items, *items[-1:] * (cfg.rows - len(items))]  # One shape for the last part too.
    rows = [item.pair.row[side] for item in padded for side in pairs.SIDES]
    width = min(cfg.length, -(-max(_size(item.pair) - 1 for item in items) // _WIDTH) * _WIDTH)
    total_2N, _ = scorer(
      [item.prompt for item in padded for _ in pairs.SIDES],
      [answer for item in padded for answer in item.answers],
      [""] * len(rows),
      batches.lm_batch(rows, width, tokenizer.pad_id),
    )
    gaps = total_2N[0::2].astype(np.float64) - total_2N[1::2]
    return [{"margin": float(gap)} for gap in gaps[: len(items)]]

  return compare


class _Asker(NamedTuple):
  """What a judge says of pairs: the log-odds that the better answer is better."""

  asks: judging.Judge
  constitution: Sequence[principles.Principle]
  cfg: config.Agreement

  def __call__(self, items: Sequence[Item]) -> list[parts.Row]:
    drawn = [
      principles.draw(
        self.constitution, self.cfg.drawn, [self.cfg.seed, judging.seed_of(item.prompt)]
      )
      for item in items
    ]
    texts = [(one.text, two.text) for one, two in (item.answers for item in items)]
    said = judging.compare(self.asks, [item.prompt for item in items], texts, drawn)
    first_N = np.clip(said.first, _SURE, 1 - _SURE)
    return [
      {"margin": float(margin), "order_changed": float(changed), "letter_a": float(letter)}
      for margin, changed, letter in zip(
        np.log(first_N) - np.log1p(-first_N), said.changed, said.letter, strict=True
      )
    ]


def by_source(
  items: Sequence[Item], rows: Sequence[parts.Row], nats: bool
) -> dict[str, dict[str, float]]:
  """Returns `measures` of all pairs, of each file and of each source, where there are several."""
  files = [item.file for item in items]
  several = len(set(files)) > 1
  own_names = [f"{i.file}/{i.pair.kind}" if several else i.pair.kind for i in items]
  groups = {"all": list(range(len(items)))}
  for names in (files, posttraining.bounded(own_names)):
    for name in sorted(set(names)):
      index = [i for i, own_name in enumerate(names) if own_name == name]
      if index not in groups.values():
        groups[name] = index
  return {
    name: measures([items[i] for i in index], [rows[i] for i in index], nats)
    for name, index in groups.items()
  }


def measures(
  items: Sequence[Item], rows: Sequence[parts.Row], nats: bool = True
) -> dict[str, float]:
  """Returns what is said of N pairs.

  Args:
    items: N pairs.
    rows: of each its "margin": above 0, the answer that people prefer is preferred.
    nats: whether margins are log-odds, as those of reward models and judges are.

  Returns:
    pairs; accuracy, a tie counts one half, with the ends `low` and `high` of its interval of 95 %
    (Wilson 1927); longer: how often people prefer the longer answer, which is what a rule that
    knows nothing else would reach; accuracy_longer and accuracy_shorter: the accuracy where they do
    and where they do not; length_correlation and calibration_error as in stages/reward.py; of a
    judge order_changed and letter_a as in stages/judge.py.
  """
  compared, margin_N = [item.pair for item in items], np.array([row["margin"] for row in rows])
  common, right_N = reward.measures(compared, margin_N), reward.right(margin_N)
  more_N = reward.longer(compared)
  low, high = interval(common["accuracy"], len(items))
  found = {"pairs": len(items), "accuracy": common["accuracy"], "low": low, "high": high}
  found["longer"] = float(reward.right(more_N).mean())
  for name, where_N in (("longer", more_N > 0), ("shorter", more_N < 0)):
    if where_N.any():
      found[f"accuracy_{name}"] = float(right_N[where_N].mean())
  found["length_correlation"] = common["length_correlation"]
  if nats:
    found["calibration_error"] = common["calibration_error"]
  for name in rows[0].keys() - {"margin"}:
    found[name] = float(np.mean([row[name] for row in rows]))
  return found


def interval(share: float, count: int) -> tuple[float, float]:
  """Returns the score interval of 95 % of a share of `count` trials (Wilson 1927, JASA 22)."""
  whole = 1 + _Z**2 / count
  center = (share + _Z**2 / (2 * count)) / whole
  half = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2) / whole
  return max(center - half, 0.0), min(center + half, 1.0)


def _explained(items: Sequence[Item], rows: Sequence[parts.Row]) -> list[parts.Row]:
  return [
    {
      "source": item.pair.kind,
      **row,
      "prompt": item.prompt,
      "chosen": item.answers[0].text,
      "rejected": item.answers[1].text,
    }
    for item, row in zip(items, rows, strict=True)
  ]


def table(found: dict[str, dict[str, float]]) -> str:
  """Returns the shares of every source, in percent, for people."""
  columns = [name for name in ("accuracy", "low", "high", "longer", "accuracy_longer",
             "accuracy_shorter", "calibration_error", "order_changed", "letter_a")
             if any(name in row for row in found.values())]  # fmt: skip
  heads = [name.replace("accuracy_", "of ").replace("_", " ") for name in columns]
  wide = max(map(len, found))
  lines = [" ".join([" " * wide, "  pairs", *(f"{head:>{max(len(head), 6)}}" for head in heads)])]
  for name, row in found.items():
    cells = [
      f"{100 * row[c]:{max(len(h), 6)}.1f}" if c in row else " " * max(len(h), 6)
      for c, h in zip(columns, heads, strict=True)
    ]
    lines.append(" ".join([f"{name:<{wide}}", f"{row['pairs']:7,}", *cells]))
  return "\n".join(lines)
