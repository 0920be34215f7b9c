"""Writes sums in words: questions to train on, questions held out, and a text to pretrain on.

python -m tools.make_arithmetic --out=runs/arithmetic/seed0/data
Result: train.jsonl and validation.jsonl, conversations; corpus.jsonl, numbers counted up and down,
and the training questions without their answers.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence

from llm_jax.data import arithmetic
from llm_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
  """Writes the files; 2 is the exit code of bad input."""
  try:
    print(*(f"{rows:,} rows in {path}" for path, rows in write(argv).items()), sep="\n")
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  return 0


def write(argv: Sequence[str] | None = None) -> dict[pathlib.Path, int]:
  """Writes what the words of a command line ask for; returns rows by file.

  Raises:
    UserError: if an argument cannot be, or the folder cannot be written.
  """
  options = _parser().parse_args(argv)
  train, validation = arithmetic.split(
    options.train,
    options.validation,
    largest=options.largest,
    operations=tuple(filter(None, options.operations.split(","))),
    seed=options.seed,
  )
  if options.documents < 1:
    raise UserError(f"--documents must be at least 1, got {options.documents}")
  most = max(max(problem.left, problem.value) for problem in train)
  texts = [*arithmetic.counting(options.documents, largest=most, seed=options.seed)]
  texts += [problem.question for problem in train]
  files = {
    "train.jsonl": [_conversation(problem) for problem in train],
    "validation.jsonl": [_conversation(problem) for problem in validation],
    "corpus.jsonl": [{"id": str(number), "text": text} for number, text in enumerate(texts)],
  }
  try:
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
      _write(options.out / name, rows)
  except OSError as error:
    raise UserError(f"--out={options.out} cannot be written: {error.strerror}") from error
  return {options.out / name: len(rows) for name, rows in files.items()}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder, made if missing")
  parser.add_argument("--train", type=int, default=2000, help="questions to train on")
  parser.add_argument("--validation", type=int, default=256, help="questions held out")
  parser.add_argument("--largest", type=int, default=49, help="operand of plus and minus")
  parser.add_argument("--operations", default="plus", help="of plus, minus, times, by commas")
  parser.add_argument("--documents", type=int, default=4000, help="texts that count")
  parser.add_argument("--seed", type=int, default=0, help="of the draws")
  return parser


def _conversation(problem: arithmetic.Problem) -> dict:
  said = (("user", problem.question), ("assistant", problem.answer))
  return {"messages": [{"role": role, "content": text} for role, text in said]}


def _write(path: pathlib.Path, rows: Iterable[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
  sys.exit(main())
