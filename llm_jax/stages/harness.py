"""lm-eval's tasks on a model of ours: the adapter between its requests and our decoder.

Needs the extra `eval`. Requests are sorted by length and padded to few shapes, so that few programs
are compiled; what lm-eval knows of prompts, splits and metrics stays with it.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.data import batches
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.generate import sample
from llm_jax.losses import stats
from llm_jax.stages import runs, training

_STEP = 32  # Widths are multiples of it.

Request = tuple[Any, list[int], list[int]]  # (text or None, context, continuation).


def make(
  run: runs.Run, tokenizer: Tokenizer, length: int = 1024, batch: int = 16, bos: bool = True
) -> Any:
  """Returns a decoder as lm-eval wants it: `Answers` with its TemplateLM as a base.

  The arguments are those of `Answers`.
  """
  from lm_eval.api.model import TemplateLM  # An extra: without it this file must still import.

  return type("Harness", (Answers, TemplateLM), {})(run, tokenizer, length, batch, bos)


class Answers:
  """What a decoder answers to lm-eval's requests.

  Args:
    run: the model.
    tokenizer: of the model.
    length: tokens of a row; longer contexts are cut from the left.
    batch: rows of a batch.
    bos: whether texts begin with the first token of a document, as models of ours have learned.
  """

  def __init__(self, run: runs.Run, tokenizer: Tokenizer, length: int, batch: int, bos: bool):
    super().__init__()
    self._run, self._coder, self._length, self._rows = run, tokenizer, length, batch
    self._bos = bos
    apply = training.decoder_apply(run.model)

    def score(params, batch):
      out = apply(params, batch, jax.random.key(0))
      logps = stats.token_stats(out.hidden, out.head, batch["targets"], cap=out.logit_cap).logps
      return logps, stats.most_likely(out.hidden, out.head) == batch["targets"]

    self._score = jax.jit(score)

  @property
  def eot_token_id(self) -> int:
    """The end of a document; the model's first token is the prefix."""
    return self._coder.eos_id

  @property
  def prefix_token_id(self) -> int:
    """What stands before a text without a context."""
    return self._coder.bos_id

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
    """Returns the ids of a text, after the first token of a document unless that is not wanted."""
    del kwargs
    own = self._bos if add_special_tokens is None else add_special_tokens
    return [*([self.prefix_token_id] if own else []), *self._coder.encode(string)]

  def _loglikelihood_tokens(
    self, requests: Sequence[Request], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    """Returns (log-probability in nats, whether greedy decoding gives it) of each continuation."""
    del kwargs
    order = sorted(range(len(requests)), key=lambda i: len(requests[i][1]) + len(requests[i][2]))
    found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
    for part in (order[i : i + self._rows] for i in range(0, len(order), self._rows)):
      rows = [(requests[i][1] + requests[i][2])[-(self._length + 1) :] for i in part]
      logps_BT, best_BT = self._scored(rows)
      for place, (i, row) in enumerate(zip(part, rows, strict=True)):
        own = slice(max(len(row) - 1 - len(requests[i][2]), 0), len(row) - 1)
        found[i] = float(logps_BT[place, own].sum()), bool(best_BT[place, own].all())
    return found

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """Returns the log-probability of whole texts, cut into windows that do not overlap."""
    del disable_tqdm
    from lm_eval import utils

    found, windows = [], []
    for request in requests:
      cut = utils.get_rolling_token_windows(
        self._coder.encode(request.args[0]), self.prefix_token_id, self._length, 1
      )
      own: list[Request] = [(None, *utils.make_disjoint_window(window)) for window in cut]
      found.append((len(windows), len(windows) + len(own)))
      windows += own
    values = [value for value, _ in self._loglikelihood_tokens(windows)]
    return [float(np.sum(values[begin:end])) for begin, end in found]

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """Returns continuations, greedy unless a request has a temperature, up to its stop texts."""
    del disable_tqdm
    found = [""] * len(requests)
    groups: dict[tuple[int, float], list[int]] = {}
    for i, request in enumerate(requests):
      options = request.args[1]
      sampled = options.get("do_sample", False)
      temperature = float(options.get("temperature", 1.0)) if sampled else 0.0
      groups.setdefault((int(options.get("max_gen_toks", 256)), temperature), []).append(i)
    for (new, temperature), own in groups.items():
      for part in (own[i : i + self._rows] for i in range(0, len(own), self._rows)):
        texts = self._generated([requests[i].args[0] for i in part], new, temperature)
        for i, text in zip(part, texts, strict=True):
          found[i] = _until(text, requests[i].args[1].get("until", []))
    return found

  def _generated(self, contexts: Sequence[str], new: int, temperature: float) -> list[str]:
    """Returns the continuations of some contexts, a batch filled up to its usual rows."""
    most = max(self._length - new, 2)
    rows = [self.tok_encode(text)[-most:] or [self.prefix_token_id] for text in contexts]
    rows += [rows[0]] * (self._rows - len(rows))
    width = min(most, -(-max(map(len, rows)) // _STEP) * _STEP)
    prompts, mask = batches.prompt_batch(rows, width, self._coder.pad_id)
    rollout = sample(
      self._run.model, self._run.params, prompts, mask,
      jax.random.split(jax.random.key(0), len(rows)), max_new=new, temperature=temperature,
      end_id=self._coder.eos_id, pad_id=self._coder.pad_id,
    )  # fmt: skip
    drawn, lengths = np.asarray(rollout.tokens)[:, width:], np.asarray(rollout.lengths)
    return [
      self._coder.decode([int(t) for t in ids[:n] if t not in self._coder.control])
      for ids, n in zip(drawn[: len(contexts)], lengths, strict=False)
    ]

  def _scored(self, rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of each token but a row's first, and whether each is the likeliest."""
    width = -(-max(len(row) - 1 for row in rows) // _STEP) * _STEP
    ids = np.full((self._rows, width + 1), self._coder.pad_id, np.int32)
    real = np.zeros((self._rows, width), np.int32)
    for i, row in enumerate(rows):
      ids[i, : len(row)], real[i, : len(row) - 1] = row, 1
    batch = {
      "tokens": ids[:, :-1],
      "targets": ids[:, 1:],
      "positions": np.broadcast_to(np.arange(width, dtype=np.int32), real.shape),
      "segments": real,
    }
    return tuple(np.asarray(x) for x in self._score(self._run.params, batch))


def _until(text: str, stops: Sequence[str] | str) -> str:
  """Cuts a text where the first of its stop texts begins."""
  stops = [stops] if isinstance(stops, str) else stops
  ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
  return text[: min(ends)] if ends else text


def measure(harness: Any, names: Sequence[str], folder: str = "", limit: int = 0) -> dict[str, Any]:
  """Runs tasks and returns {task: {metric: value}}.

  Args:
    harness: from `make`.
    names: of tasks, lm-eval's or those of `folder`.
    folder: with tasks in YAML; "": lm-eval's own alone, which fetch their data.
    limit: examples of each task; 0: all.

  Raises:
    UserError: if there is no such task.
  """
  from lm_eval import evaluator, tasks

  if folder and not pathlib.Path(folder).is_dir():
    raise UserError(f"config.task_folder={folder} is no folder of tasks")
  manager = tasks.TaskManager(include_path=folder or None, include_defaults=not folder)
  lost = [name for name in names if name not in manager.all_tasks]
  if lost:
    raise UserError(f'there is no task "{lost[0]}" in {folder or "lm-eval"}')
  found = evaluator.simple_evaluate(
    model=harness, tasks=list(names), task_manager=manager, limit=limit or None, bootstrap_iters=0
  )
  return {name: dict(row) for name, row in found["results"].items()}
