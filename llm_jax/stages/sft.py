"""Supervised fine-tuning: next-token prediction on the answers of conversations."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_jax import config, spec
from llm_jax.data import batches, chat, posttraining, questions
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.losses import objectives
from llm_jax.stages import own, runs, seq2seq, training
from llm_jax.train import feeds, parallel
from llm_jax.types import Batch, TrainState


def run(cfg: config.Sft, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Fine-tunes the model of `cfg.init` on conversations; `loss` swaps the token loss.

  They are those of the files of `cfg.data`, else the training questions. The mask covers the
  assistant's tokens and its turn end, nothing else. An encoder-decoder reads the question, and all
  of the answer is learned.
  """
  cfg.validate()
  token_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.token")
  tokenizer = runs.tokenizer(cfg.prepared)
  place = parallel.make(cfg.mesh)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size, seq2seq=True, put=place.put)
  if start.shape.encoder_layers:
    return seq2seq.sft(cfg, workdir, token_loss, start, tokenizer)
  train, held_out = own.conversations(
    cfg,
    workdir,
    lambda question: example(tokenizer, question, cfg.length),
    lambda item: posttraining.conversation(tokenizer, item, cfg.length),
  )
  sources = {name: functools.partial(_packed, rows, cfg) for name, rows in held_out.items()}
  objective = objectives.next_token(training.decoder_apply(start.model), token_loss)
  noisy = training.decoder_apply(start.model, train=True, neftune=cfg.neftune)
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.next_token(noisy, token_loss),
    make_params=training.initializer(start.model),
    loaded=start.params,
    feed=feeds.IteratorFeed(_endless(train, cfg)),
    evaluate=training.losses_on(objective, place, sources) if sources else None,
    place=place,
    adapters=training.adapters(cfg.lora),
  )


def _endless(rows: Sequence[Any], cfg: config.Sft) -> Iterator[Batch]:
  """Batches to train on; held out rows are packed either way, as their mean is by token."""
  if cfg.packed:
    return _packed(rows, cfg, seed=cfg.seed, epochs=-1, numbered=True)
  return batches.examples(
    rows, lambda part: batches.lm_batch(part, cfg.length), cfg.batch, cfg.seed, numbered=True
  )


def _packed(rows: Sequence[Any], cfg: config.Sft, **order: int):
  return batches.pack_examples(rows, cfg.length, cfg.batch, **order)


def example(
  tokenizer: Tokenizer, question: questions.Question, length: int
) -> tuple[list[int], list[int]]:
  """(tokens, mask) of a question and its true answer, at most `length` + 1 tokens."""
  return chat.render(
    tokenizer,
    [
      {"role": "user", "content": question.prompt},
      {"role": "assistant", "content": question.answer},
    ],
    length + 1,
  )
