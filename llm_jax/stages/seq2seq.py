"""Training of encoder-decoders: span corruption, and instruction pairs."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax

from llm_jax import config
from llm_jax.data import batches, seq2seq
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.stages import own, runs, training
from llm_jax.train import feeds, parallel
from llm_jax.types import Apply, Batch, Outputs, Params, TrainState


def apply(model: EncoderDecoder, train: bool = False) -> Apply:
  """Binds an encoder-decoder for objectives on its next-token distribution; dropout if `train`."""

  def run(params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    hidden_BTD = model.apply(
      params, batch["inputs"], batch["tokens"], batch["input_segments"], batch["positions"],
      batch["segments"], rngs={"dropout": rng} if train and model.cfg.dropout else None,
    )  # fmt: skip
    return Outputs(hidden_BTD, model.head(params), logit_cap=model.cfg.logit_cap)

  return run


def pretrain(cfg: config.Pretrain, workdir: str, token_loss: Callable) -> TrainState:
  """Pretrains an encoder-decoder by span corruption (Raffel et al. 2020, arXiv:1910.10683)."""
  if cfg.mixture.sources:
    raise UserError("config.mixture is of decoders: give an encoder-decoder config.prepared alone")
  tokenizer = runs.tokenizer(cfg.prepared)
  vocab_size = max(tokenizer.vocab_size, max(seq2seq.sentinels(tokenizer)) + 1)
  shape = dataclasses.replace(cfg.model, vocab_size=cfg.model.vocab_size or vocab_size)
  if shape.vocab_size < vocab_size:
    raise UserError(
      f"config.model.vocab_size={shape.vocab_size}: {vocab_size} are needed, sentinels included"
    )
  if cfg.length < 3:
    raise UserError(f"config.length={cfg.length} must be at least 3 for an encoder-decoder")
  model, place = EncoderDecoder.from_config(shape), parallel.make(cfg.mesh)
  feed = feeds.IteratorFeed(_corrupted(cfg, tokenizer, "train"))
  runs.save_shape(workdir, shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.next_token(apply(model, train=True), token_loss),
    make_params=training.initializer(model),
    feed=feed,
    evaluate=training.losses_on(
      objectives.next_token(apply(model), token_loss),
      place,
      {"validation": lambda: _corrupted(cfg, tokenizer, "validation")},
    ),
    place=place,
  )


def sft(
  cfg: config.Sft, workdir: str, token_loss: Callable, start: runs.Run, tokenizer: Tokenizer
) -> TrainState:
  """Fine-tunes an encoder-decoder on questions, which it reads, and their answers."""
  if cfg.neftune:
    raise UserError(
      f"config.neftune={cfg.neftune} is for decoders, and {cfg.init} is an encoder-decoder: set it "
      "to 0"
    )
  size = cfg.input_length if cfg.input_length else cfg.length
  if min(size, cfg.length) < 2:
    raise UserError(
      f"config.input_length={size} and config.length={cfg.length} must be at least 2: the last "
      "token is the end"
    )
  train, held_out = own.conversations(
    cfg,
    workdir,
    lambda q: seq2seq.pair(tokenizer, q.prompt, q.answer, size, cfg.length),
    lambda item: seq2seq.last_answer(tokenizer, item, size, cfg.length),
  )
  place, first = parallel.make(cfg.mesh), seq2seq.start_id(tokenizer)

  def collate(pairs):
    empty = [((), ())] * (cfg.batch - len(pairs))
    return seq2seq.collate([*pairs, *empty], size, cfg.length, first, tokenizer.pad_id)

  def in_order(rows) -> Iterator[Batch]:
    return batches.examples(rows, collate, cfg.batch, shuffle=False, epochs=1)

  sources = {name: functools.partial(in_order, rows) for name, rows in held_out.items()}
  objective = objectives.next_token(apply(start.model), token_loss)
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.next_token(apply(start.model, train=True), token_loss),
    make_params=training.initializer(start.model),
    loaded=start.params,
    feed=feeds.IteratorFeed(batches.examples(train, collate, cfg.batch, cfg.seed, numbered=True)),
    evaluate=training.losses_on(objective, place, sources) if sources else None,
    place=place,
    adapters=training.adapters(cfg.lora),
    row_tokens=size + cfg.length,
  )


def _corrupted(cfg: config.Pretrain, tokenizer: Tokenizer, split: str) -> Iterator[Batch]:
  """Batches of a split; the held-out documents once, and in the same spans every time."""
  how = dataclasses.asdict(cfg.corruption)
  path, training_split = pathlib.Path(cfg.prepared) / "tokens" / split, split == "train"
  rows = batches.pack_documents(
    path, seq2seq.text_length(cfg.length, **how), cfg.batch,
    cfg.seed if training_split else 0, -1 if training_split else 1, strategy="concat",
    numbered=training_split,
  )  # fmt: skip
  seed = cfg.seed if training_split else 0
  return seq2seq.Corrupted(rows, tokenizer, cfg.length, seed, **how)
