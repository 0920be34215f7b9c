"""Supervised fine-tuning: next-token prediction on the answers of instruction pairs."""

from collections.abc import Callable

from llm_jax import config, spec
from llm_jax.data import batches, chat, questions
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.losses import objectives
from llm_jax.stages import runs, seq2seq, training
from llm_jax.train import loop, parallel
from llm_jax.types import TrainState


def run(cfg: config.Sft, workdir: str, *, loss: Callable | None = None) -> TrainState:
  """Fine-tunes the model of `cfg.init` on the training questions; `loss` swaps the token loss.

  The mask covers the assistant's tokens and its turn end, nothing else. An encoder-decoder reads
  the question, and all of the answer is learned.
  """
  cfg.validate()
  token_loss = spec.resolve(loss or cfg.loss, "llm_jax.losses.token")
  tokenizer = runs.tokenizer(cfg.prepared)
  place = parallel.make(cfg.mesh)
  start = runs.load(cfg.init, "init", vocab_size=tokenizer.vocab_size, seq2seq=True, put=place.put)
  if start.shape.encoder_layers:
    return seq2seq.sft(cfg, workdir, token_loss, start, tokenizer)
  train, held_out = (
    [example(tokenizer, q, cfg.length) for q in runs.asked(cfg.prepared, split)]
    for split in ("train", "validation")
  )
  measure = training.evaluator(
    objectives.next_token(training.decoder_apply(start.model), token_loss),
    place,
    lambda: batches.pack_examples(held_out, cfg.length, cfg.batch),
  )
  runs.save_adapter(workdir, cfg.init, start, cfg.lora)
  runs.save_shape(workdir, start.shape)
  return training.train(
    cfg,
    workdir,
    loss_fn=objectives.next_token(training.decoder_apply(start.model, train=True), token_loss),
    make_params=training.initializer(start.model),
    loaded=start.params,
    feed=loop.IteratorFeed(
      batches.pack_examples(train, cfg.length, cfg.batch, seed=cfg.seed, epochs=-1)
    ),
    evaluate=lambda params: {"loss": float(measure(params)["nll"].value)},
    place=place,
    adapter=cfg.lora,
  )


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
