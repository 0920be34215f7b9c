"""Tokens a second of the sampler, in turn with a peer, at one batch size or several.

python -m tools.bench_generation
python -m tools.bench_generation --batch=16,64 --prompt=64 --new=128 --json=generation.json
python -m tools.bench_generation --cpu_devices=2 --mesh=tensor=2
python -m tools.bench_generation --peer='other/bin/python generation.py {batch}' --rounds=3

Answers are drawn at temperature 1 by a model of random weights and never end, so that both sides do
all of the work; compilation is not counted. The peer is any command that prints "<number> tokens/s"
for the same model, prompts and answers; it is run in turn with ours, `{batch}` in it becoming the
batch.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from llm_jax.errors import UserError
from llm_jax.generate import sample
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import flops
from llm_jax.stages import training
from llm_jax.train import allocator, compiling, parallel
from llm_jax.types import Params
from tools import _figures, _mesh, bench_train

_NEVER = -1  # An end token that is never drawn.


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=bench_train.SIZES, default="tiny")
  parser.add_argument("--batch", default="16,64", help="rows, one batch size or several")
  parser.add_argument("--prompt", type=int, default=64, help="tokens a prompt")
  parser.add_argument("--new", type=int, default=128, help="tokens an answer")
  parser.add_argument("--dtype", default="float32", help="compute dtype")
  _mesh.add_options(parser)
  parser.add_argument("--repeats", type=int, default=5, help="timed calls a round; the best counts")
  parser.add_argument("--rounds", type=int, default=1, help="turns of both sides")
  parser.add_argument("--peer", default="", help="command that prints tokens/s; may have {batch}")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options = parser.parse_args(argv)
  compiling.cache()
  return _figures.finish(lambda: race(options), table, options.json)


def race(options: argparse.Namespace) -> dict:
  """Returns the figures of all batch sizes and rounds.

  Raises:
    UserError: if a batch size is no number of at least 1, or the peer fails.
  """
  sizes = options.batch.split(",")
  if not all(size.strip().isdecimal() and int(size) for size in sizes):
    raise UserError(f"--batch={options.batch} must be numbers of at least 1, such as 16,64")
  shape = bench_train.SIZES[options.size][0]
  shape.dtype = options.dtype
  place = _mesh.make(options)
  model = Transformer.from_config(shape)
  first = jax.jit(lambda key: nn.unbox(training.initializer(model)(key)))(jax.random.key(0))
  params = training.placed(place, model, first)
  return {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "size": options.size,
    "parameters": flops.parameters(shape),
    "prompt": options.prompt,
    "new": options.new,
    "dtype": options.dtype,
    "mesh": options.mesh,
    "batches": [_raced(model, params, place, int(size), options) for size in sizes],
  }


def prepared(
  model: Transformer, params: Params, place: parallel.Placement, batch: int, prompt: int, new: int
) -> Callable[[], float]:
  """Returns a function that draws a batch of answers once and gives its seconds; it is compiled."""
  ids = np.random.default_rng(0).integers(1, model.cfg.vocab_size, (batch, prompt), np.int32)
  given = (ids, np.ones_like(ids), jax.random.split(jax.random.key(1), batch))
  draw = place.under(sample)

  def timed() -> float:
    start = time.perf_counter()
    rows = place.rows(given)
    jax.block_until_ready(draw(model, params, *rows, max_new=new, end_id=_NEVER))
    return time.perf_counter() - start

  timed()
  return timed


def table(figures: dict) -> str:
  """Returns the figures as Markdown, one row a batch size."""
  lines = [
    f"{_mesh.described(figures)}, jax {figures['jax']}; {figures['size']},"
    f" {figures['parameters']:,} parameters, {figures['dtype']};"
    f" {figures['prompt']} prompt tokens, {figures['new']} new ones",
    "",
    "| batch | tokens/s | peer, tokens/s | ratio of the medians |",
    "|--:|--:|--:|--:|",
  ]
  for row in figures["batches"]:
    own, theirs = row["tokens_per_second"], row["peer_tokens_per_second"]
    ratio = f"{statistics.median(own) / statistics.median(theirs):.2f}" if theirs else ""
    shown = (", ".join(f"{rate:,.0f}" for rate in rates) for rates in (own, theirs))
    lines.append(f"| {row['batch']} | {' | '.join(shown)} | {ratio} |")
  return "\n".join(lines)


def _raced(model, params, place, batch: int, options: argparse.Namespace) -> dict:
  timed = prepared(model, params, place, batch, options.prompt, options.new)
  own: list[float] = []
  theirs: list[float] = []
  for _ in range(options.rounds):
    own.append(batch * options.new / min(timed() for _ in range(options.repeats)))
    if options.peer:
      theirs.append(bench_train.peer(options.peer.replace("{batch}", str(batch))))
  return {"batch": batch, "tokens_per_second": own, "peer_tokens_per_second": theirs}


if __name__ == "__main__":
  allocator.huge_pages()
  sys.exit(main())
