"""Tokenizers: how well one fits texts, what it makes of a text, and the way to and from others.

python -m tools.tokenizer report --tokenizer=runs/web --source=web=runs/web --source=books=books/
python -m tools.tokenizer show --tokenizer=runs/web "Twelve boxers, 12 crêpes"
python -m tools.tokenizer export --tokenizer=runs/web --out=hf_tokenizer       # for Hugging Face
python -m tools.tokenizer adopt --model=llama.model --out=llama_tokenizer --template=llama-2

--tokenizer takes a tokenizer's folder, a prepared run, a SentencePiece .model, or a tokenizer.json
of Hugging Face; --source what `llm_jax.data.crawl` reads, or a prepared run.
"""

import argparse
import contextlib
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llm_jax.data import crawl, templates, tokenizer
from llm_jax.data.pipeline import corpus_steps
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import export, files
from llm_jax.data.tokenizers.train import SPECIAL
from llm_jax.errors import UserError
from tools import _documents


def main(argv: list[str] | None = None) -> int:
  """Runs one of the commands; 2 is the exit code of bad input."""
  options = _parser().parse_args(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore
  try:
    for line in options.run(options):
      print(line)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    sys.stderr.close()
  except OSError as error:
    print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2
  return 0


def load(path: str) -> Tokenizer:
  """Returns the tokenizer of a folder, a prepared run, or a file of others.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  with tempfile.TemporaryDirectory() as folder:
    return files.adopt(path, folder)


def sources(given: Sequence[str]) -> dict[str, list[str]]:
  """Returns name -> what `crawl.read` reads, of "NAME=PATH" or "PATH".

  Raises:
    UserError: if there is nothing to read, or a name is given twice.
  """
  found: dict[str, list[str]] = {}
  for text in given:
    name, mark, path = text.partition("=")
    path = path if mark else text
    if name in found:
      raise UserError(f"--source={text}: there is a source of this name already")
    if not path.startswith(("tfds:", "tfds_dir:", "hf:")) and not Path(path).exists():
      raise UserError(f'--source={text}: there is no "{path}"; give a prepared run, file or folder')
    found[name] = corpus_steps.sources(path)
  return found


def pieces(coder: Tokenizer, text: str) -> Iterator[str]:
  """Yields a line for each token of a text: its id, its bytes and how it is spelt."""
  ids = coder.encode(text)
  rows = [
    (str(i), _bytes(coder, i).hex(" ").upper(), _visible(coder.token(i)).replace(" ", "\u2581"))
    for i in ids
  ]
  widths = [max(map(len, column)) for column in zip(("id", "bytes", ""), *rows, strict=True)]
  for i, data, piece in [("id", "bytes", "piece"), *rows]:
    yield f"{i:>{widths[0]}}  {data:<{widths[1]}}  {piece}"
  size, back = tokenizer.byte_count(text), coder.decode(ids)
  yield ""
  yield f"{len(ids):,} tokens, {size:,} bytes, {size / max(len(ids), 1):.3f} bytes/token"
  yield "decodes to the same text" if back == text else f"decodes to {_visible(back)}"


def _report(options: argparse.Namespace) -> Iterable[str]:
  """Bytes per token and tokens per word of texts, source by source."""
  lost: Counter[str] = Counter()
  reader = crawl.Options(text=options.text)
  texts = {
    name: (d.text for d in _documents.read(paths, options.extractor, lost, reader))
    for name, paths in sources(options.source).items()
  }
  lines = [tokenizer.table(tokenizer.report(load(options.tokenizer), texts))]
  return [*lines, _documents.told(lost).strip()] if lost else lines


def _show(options: argparse.Namespace) -> Iterable[str]:
  """The tokens of a text."""
  return pieces(load(options.tokenizer), options.words)


def _export(options: argparse.Namespace) -> Iterable[str]:
  """Writes a folder that the libraries of Hugging Face read."""
  coder = load(options.tokenizer)
  with _whole(options.out) as folder:
    export.export(coder, folder)
  yield (
    f"wrote {options.out}: tokenizer.json, tokenizer_config.json, chat_template.jinja; "
    f"{coder.vocab_size:,} ids, {coder.template}'s chat template"
  )


def _adopt(options: argparse.Namespace) -> Iterable[str]:
  """Makes a tokenizer of others one of ours, for config.tokenizer.adopt."""
  wrong = [text for text in options.special if not re.fullmatch(r"\w+=.+", text)]
  if wrong:
    raise UserError(f"--special={wrong[0]}: want NAME=TOKEN, as in --special=eos=</s>")
  with _whole(options.out) as folder:
    specials = dict(s.split("=", 1) for s in options.special)
    coder = files.adopt(options.model, folder, specials, options.template)
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added", [])
  yield f"wrote {options.out}: {coder.vocab_size:,} ids, {len(added)} of them added"
  for name in SPECIAL:
    i = getattr(coder, f"{name}_id")
    mark = "  (added)" if name in added else ""
    yield f"  {name:<9}  {i:>7,}  {_visible(coder.token(i))}{mark}" if i >= 0 else f"  {name}: none"
  yield f"  chat template: {coder.template}"


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
  """Gives a folder that is to be made; it becomes `out` when it is complete.

  Raises:
    UserError: if there is something in `out`.
  """
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f"--out={out} is there already: name a new folder")
  near = next(folder for folder in out.absolute().parents if folder.is_dir())
  with tempfile.TemporaryDirectory(prefix=".building-", dir=near) as building:
    folder = Path(building) / out.name
    yield folder
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(out)


def _bytes(coder: Tokenizer, i: int) -> bytes:
  """Returns the bytes of a text that token `i` stands for."""
  name = coder.token(i)
  if i in coder.byte_ids:
    return bytes([coder.byte_ids[i]])
  if re.fullmatch("(<0x[0-9A-F]{2}>)+", name):  # A byte-level token that is no whole character.
    return bytes(int(digits, 16) for digits in re.findall("<0x(..)>", name))
  return name.replace("\u2581", " ").encode("utf-8")


def _visible(text: str) -> str:
  """Nothing that a text holds may steer the terminal."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, metavar="report|show|export|adopt")
  made = {}
  for command in (_report, _show, _export, _adopt):
    made[command] = commands.add_parser(command.__name__[1:], help=str(command.__doc__))
    made[command].set_defaults(run=command)
    if command is not _adopt:
      made[command].add_argument("--tokenizer", required=True, help="a folder, run or file")
  own = made[_report].add_argument
  own("--source", action="append", required=True, metavar="[NAME=]PATH", help="may be repeated")
  own("--text", default="text", help="column of JSON lines and tables that holds the text")
  own("--extractor", default="trafilatura", help="how HTML becomes text")
  made[_show].add_argument("words", metavar="TEXT")
  for command in (_export, _adopt):
    made[command].add_argument("--out", type=Path, required=True, help="a new folder")
  own = made[_adopt].add_argument
  own("--model", required=True, help="a SentencePiece .model, a tokenizer.json, or their folder")
  own(
    "--special",
    action="append",
    default=[],
    metavar="NAME=TOKEN",
    help="which token is pad, bos, eos, system, user, assistant or end; may be repeated",
  )
  own(
    "--template",
    metavar="NAME",
    help=f"how conversations are written ({', '.join(templates.names())}); default: as the tokens "
    "tell",
  )
  return parser


if __name__ == "__main__":
  sys.exit(main())
