"""How fast a tokenizer is on one core, whether its ids are the library's, and how well it fits.

python -m tools.bench_tokenizer --tokenizer=DIR books.jsonl.gz pages.jsonl.xz
python -m tools.bench_tokenizer --train=32768 books.jsonl.gz      # trains one on the files first

Every file is a source. MB are those of UTF-8; seconds are those of this process, so that other
work on the machine counts as little as it can.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from llm_jax.data import packing, tokenizer
from llm_jax.data.tokenizer import Tokenizer, byte_count
from llm_jax.data.tokenizers.pieces import SentencePiece
from llm_jax.errors import UserError
from tools import bench_filters


def main(argv: list[str] | None = None) -> int:
  """Prints two tables; 1 if ids differ from the library's, 2 for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("files", nargs="+", help=".jsonl, .jsonl.gz or .jsonl.xz")
  parser.add_argument("--tokenizer", help="folder of the tokenizer")
  parser.add_argument("--train", type=int, default=0, help="or the size of one to train")
  parser.add_argument("--kind", default="bpe", help="of the one to train: bpe or unigram")
  parser.add_argument("--field", default="text", help="of the text")
  parser.add_argument("--megabytes", type=float, default=0, help="of each file at most; 0: all")
  options = parser.parse_args(argv)
  try:
    if bool(options.tokenizer) == bool(options.train):
      raise UserError("give --tokenizer or --train")
    sources = {
      file: [d.text for d in bench_filters.read(file, options.field, options.megabytes)]
      for file in options.files
    }
    texts = [text for part in sources.values() for text in part]
    with tempfile.TemporaryDirectory() as folder:
      where = Path(options.tokenizer or folder)
      if options.train:
        seconds = _seconds(lambda: tokenizer.train(texts, where, options.train, kind=options.kind))
        print(f"trained in {seconds:.1f} s\n")
      print(tokenizer.table(tokenizer.report(Tokenizer.load(where), sources)), end="\n\n")
      lines, same = table(where, texts)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print("\n".join(lines))
  return 0 if same else 1


def table(directory: Path, texts: Sequence[str]) -> tuple[list[str], bool]:
  """Returns Markdown rows of MB/s, and whether all ids are those of the library."""
  coder = Tokenizer.load(directory)
  size, same = sum(map(byte_count, texts)) / 1e6, True
  lines = ["| way | MB/s | ids are the library's |", "|---|--:|---|"]

  def timed(name: str, run: Callable[[], object], verdict: str = "") -> None:
    lines.append(f"| {name} | {size / _seconds(run):.1f} | {verdict} |")

  if isinstance(coder, SentencePiece):
    library = sentencepiece.SentencePieceProcessor(model_proto=coder.model)
    # A "▁" of a text is spelt in bytes here, and is a space to the library.
    plain = [text for text in texts if text.isascii() or "\u2581" not in text]
    size = sum(map(byte_count, plain)) / 1e6
    timed("SentencePiece, text by text", lambda: [library.encode(text) for text in plain])
    same = all(
      np.array_equal(coder.encode_arrays([text])[0], library.encode(text)) for text in plain
    )
    coder, texts = Tokenizer.load(directory), plain
  verdict = ("yes" if same else "NO") if isinstance(coder, SentencePiece) else ""
  timed("encode_arrays, nothing known yet", lambda: coder.encode_arrays(texts), verdict)
  timed("encode_arrays, once more", lambda: coder.encode_arrays(texts), verdict)
  timed("encode_batch (lists)", lambda: coder.encode_batch(texts), verdict)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "t.array_record"
    rows = Tokenizer.load(directory).documents(texts)
    timed("texts to a token file", lambda: packing.write_tokens(path, rows, coder.vocab_size))
  return lines, same


def _seconds(run: Callable[[], object]) -> float:
  begin = time.process_time()
  run()
  return time.process_time() - begin


if __name__ == "__main__":
  sys.exit(main())
