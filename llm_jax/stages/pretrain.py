"""Pretraining: next-token prediction on packed documents, judged in bits per byte."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config, spec
from llm_jax.data import batches, blend, mixture
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.models.transformer import Transformer
from llm_jax.stages import runs, seq2seq, training
from llm_jax.train import feeds, parallel, processes
from llm_jax.types import TrainState


def run(cfg: config.Pretrain, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Pretrains a model on `cfg.prepared`; `loss` swaps the token loss.

  A decoder predicts the next token, an encoder-decoder what was taken out of its inputs.
  """
  cfg.validate()
  token_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.token")
  if cfg.model.encoder_layers:
    return seq2seq.pretrain(cfg, workdir, token_loss)
  tokenizer = runs.tokenizer(cfg.prepared)
  shape = dataclasses.replace(cfg.model, vocab_size=cfg.model.vocab_size or tokenizer.vocab_size)
  model = Transformer.from_config(shape)
  ratio = tokens_per_byte(cfg.prepared)
  place = parallel.make(cfg.mesh)
  feed = feeds.IteratorFeed(training_batches(cfg, workdir, place.share(), numbered=True))
  measure = training.evaluator(
    objectives.next_token(training.decoder_apply(model), token_loss),
    place,
    lambda: validation_batches(cfg),
  )

  def evaluate(params) -> dict[str, float]:
    nll = float(measure(params)["nll"].value)
    return {"loss": nll, "bits_per_byte": nll / math.log(2) * ratio}

  runs.save_shape(workdir, shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.next_token(training.decoder_apply(model, train=True), token_loss),
    make_params=training.initializer(model),
    feed=feed,
    evaluate=evaluate,
    place=place,
  )


def training_batches(
  cfg: config.Pretrain,
  workdir: str = "",
  share: tuple[int, int] = (0, 1),
  numbered: bool = False,
):
  """Endless LM batches, with get_state; a mixture's plan is shown and put on record.

  Packing as it goes has one state for all rows: every process packs the whole batch, and its
  devices get their part. Of rows that were packed before, a process reads only its `share`, (which,
  of how many). Both go on with any number of processes as if it were the same. Batches that are
  `numbered` say which documents they are of (feeds.named).

  Raises:
    UserError: if a source is missing or does not fit the others.
  """
  if not cfg.mixture.sources:
    path = pathlib.Path(cfg.prepared) / "tokens" / "train"
    return batches.pack_documents(
      path, cfg.length, cfg.batch, cfg.seed, strategy=cfg.packing, numbered=numbered
    )
  mixed = blended(cfg)
  if workdir:
    path = pathlib.Path(workdir) / "mixture.json"
    processes.first(lambda: _record(path, mixed))
  return mixed.stream(cfg.packing, *share, numbered)


def _record(path: pathlib.Path, mixed: blend.Blend) -> None:
  """Writes the plan of a mixture as JSON, and shows it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(mixed.describe(), indent=2) + "\n")
  print(mixture.table(mixed.shares), flush=True)


def blended(cfg: config.Pretrain) -> blend.Blend:
  """What the sources of `cfg.mixture` give in the run, and when.

  Raises:
    UserError: if a source is missing or does not fit the others.
  """
  own = cfg.mixture
  if blend.tokenizer_of(pathlib.Path(cfg.prepared)) != blend.tokenizer_of(
    next(iter(blend.named(own.sources).values()))
  ):
    raise UserError(
      f"config.prepared={cfg.prepared} has another tokenizer than {own.sources[0]}: it gives the "
      "tokenizer and the held-out documents, set it to one of the sources"
    )
  return blend.blend(
    own.sources, own.weights, own.preset, own.max_epochs,
    steps=cfg.steps, batch=cfg.batch, length=cfg.length, seed=cfg.seed, strategy=cfg.packing,
  )  # fmt: skip


def validation_batches(cfg: config.Stage, limit: int = 0):
  """The held-out documents, packed once in order; at most `limit` batches if it is not 0."""
  path = pathlib.Path(cfg.prepared) / "tokens" / "validation"
  stream = batches.pack_documents(path, cfg.length, cfg.batch, seed=0, epochs=1)
  return itertools.islice(stream, limit or None)


def tokens_seen(cfg: config.Pretrain) -> int:
  """Targets that a run of `cfg` is trained on, padding not counted."""
  stream = itertools.islice(training_batches(cfg), cfg.steps)
  return int(sum(batch["mask"].sum() for batch in stream))


def tokens_per_byte(prepared: str) -> float:
  """Predicted tokens (document ends included) per UTF-8 byte of the held-out documents."""
  manifest = json.loads((pathlib.Path(prepared) / "manifest.json").read_text())
  if "splits" not in manifest:
    raise UserError(
      f"{prepared} holds packed rows: set --config.prepared to the corpus that they are of, and "
      "name the rows in config.mixture.sources"
    )
  split = manifest["splits"]["validation"]
  return split["tokens"] / split["bytes"]


def unigram_bits_per_byte(prepared: str, vocab_size: int) -> float:
  """Bits per byte of an add-one token unigram model of the training split, on the held-out one."""
  tokens = pathlib.Path(prepared) / "tokens"
  counts = {split: token_counts(tokens / split, vocab_size) for split in ("train", "validation")}
  probability = (counts["train"] + 1) / (counts["train"].sum() + vocab_size)
  bits = -(counts["validation"] * np.log2(probability)).sum() / counts["validation"].sum()
  return float(bits * tokens_per_byte(prepared))


def token_counts(path: pathlib.Path, vocab_size: int) -> np.ndarray:
  """[V] int64, how often each token is a target in the documents at `path`."""
  source = batches.TokenSource(path)
  total = np.zeros(vocab_size, np.int64)
  for i in range(len(source)):
    total += np.bincount(np.asarray(source[i])[1:], minlength=vocab_size)
  return total


def next_token_table(
  model: Transformer, params, tokenizer, contexts: list[tuple[str, str]], top: int = 5
) -> list[dict]:
  """The `top` likeliest next tokens after each (context, what came next) pair."""
  ids = [[tokenizer.bos_id, *tokenizer.encode(context)] for context, _ in contexts]
  last_B = np.array([len(row) for row in ids]) - 1
  tokens_BT = np.full((len(ids), last_B.max() + 1), tokenizer.pad_id, np.int32)
  for tokens_T, row in zip(tokens_BT, ids, strict=True):
    tokens_T[: len(row)] = row

  @jax.jit
  def probabilities(params, tokens_BT, last_B):
    logits_BTV = model.apply({"params": params}, tokens_BT, method="logits")
    picked_BV = jnp.take_along_axis(logits_BTV, last_B[:, None, None], axis=1)[:, 0]
    return jax.nn.softmax(picked_BV)

  p_BV = np.asarray(probabilities(params, tokens_BT, last_B))
  rows = []
  for (context, truth), p_V in zip(contexts, p_BV, strict=True):
    best = np.argsort(-p_V)[:top]
    candidates = [[tokenizer.decode([int(i)]), float(p_V[i])] for i in best]
    rows.append({"context": context, "truth": truth, "candidates": candidates})
  return rows
