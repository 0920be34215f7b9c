"""A run of ours to a folder of Hugging Face, or their folder to a run.

python -m tools.convert_hf --run=runs/quickstart/dpo --prepared=runs/quickstart/prepare --out=hf/dpo
python -m tools.convert_hf --hf=models/Llama-3.2-1B --out=runs/llama
python -m tools.convert_hf --run=runs/lora --adapter --out=peft/lora
python -m tools.convert_hf --hf=models/Llama-3.2-1B --adapter=peft/lora --out=runs/merged

Their folder is also read as it is wherever a config has `init`; a run of it loads faster. With
--prepared the tokenizer goes along. Weights are written as --dtype, in shards of 5 GB. --adapter of
a run writes the adapter that it trained alone, in PEFT's format; with a folder it names one that is
put into the weights.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys

import jax

from llm_jax import config
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers import export
from llm_jax.errors import UserError
from llm_jax.models import interop, lora
from llm_jax.models.interop import safetensors
from llm_jax.models.transformer import count_parameters
from llm_jax.stages import runs
from llm_jax.train.checkpoint import Checkpoints


def main(argv: list[str] | None = None) -> int:
  """Converts; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  given = parser.add_mutually_exclusive_group(required=True)
  given.add_argument("--run", help="directory of a stage that trained a language model")
  given.add_argument("--hf", help="folder with config.json and safetensors")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="is made")
  parser.add_argument("--prepared", default="", help="of --run: the corpus with its tokenizer")
  parser.add_argument("--kind", default="", help="of --run: model_type to write; else what fits")
  parser.add_argument(
    "--adapter", nargs="?", const=True, help="of --run: write this alone; of --hf: PEFT's folder"
  )
  parser.add_argument("--dtype", default="float32", choices=safetensors.WRITTEN, help="of --run")
  parser.add_argument("--shard_gb", type=float, default=5.0, help="of --run: size of a file")
  options = parser.parse_args(argv)
  try:
    if options.out.exists() and any(options.out.iterdir()):
      raise UserError(f"{options.out} is not empty: name another --out")
    _check(options)
    if not options.run:
      print(from_hf(options.hf, options.out, options.adapter))
    elif options.adapter:
      print(to_peft(options.run, options.out, options.kind))
    else:
      print(to_hf(options))
  except UserError as error:
    text = str(error).replace("--config.run", "--run")
    print("error:", " ".join(text.split()), file=sys.stderr)
    return 2
  return 0


def _check(options: argparse.Namespace) -> None:
  usual = {"prepared": "", "kind": "", "dtype": "float32", "shard_gb": 5.0}
  given = [name for name, value in usual.items() if getattr(options, name) != value]
  if options.hf and given:
    raise UserError(f"--{given[0]} is of --run, it does nothing with --hf")
  if options.run and isinstance(options.adapter, str):
    raise UserError("--adapter takes no folder with --run, whose own adapter is written")
  if options.run and options.adapter and set(given) - {"kind"}:
    raise UserError(f"--{(set(given) - {'kind'}).pop()} does nothing with --adapter")


def to_hf(options: argparse.Namespace) -> str:
  """Writes the folder; returns what to tell."""
  run = runs.load(options.run, "run", seq2seq=True)
  coder = Tokenizer.load(pathlib.Path(options.prepared) / "tokenizer") if options.prepared else None
  if coder and coder.vocab_size > run.shape.vocab_size:
    raise UserError(
      f"{options.prepared} has {coder.vocab_size} tokens, {options.run} {run.shape.vocab_size}: "
      "that tokenizer is of another model"
    )
  ids = {} if coder is None else _special(coder)
  with interop.appearing(options.out) as folder:
    interop.save(
      folder, run.model, run.params, kind=options.kind, shard_bytes=int(options.shard_gb * 1e9),
      more=ids, dtype=options.dtype,
    )  # fmt: skip
    if coder is not None:
      export.export(coder, folder)
      # Of a base model the end of a document ends a text, after fine-tuning the end of a turn.
      ends = _special(coder) | {"eos_token_id": [coder.eos_id, coder.end_id]}
      (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
  kind = json.loads((options.out / "config.json").read_text())["model_type"]
  count = count_parameters(run.params)
  return f"{options.out}: a {kind} of {count:,} parameters"


def to_peft(run: str, out: pathlib.Path, kind: str = "") -> str:
  """Writes the adapter of a run; returns what to tell."""
  base, params = runs.with_adapter(run)
  own = params[lora.KEY]
  interop.save_adapter(out, base.model, own, base=base.name, kind=kind)
  scales = sum(layer["scale"].size for _, layer in lora.adapted(own))
  return f"{out}: an adapter of {count_parameters(own) - scales:,} parameters on {base.name}"


def from_hf(folder: str, out: pathlib.Path, adapter: str | bool | None = None) -> str:
  """Writes a run that stages take as `init`; returns what to tell."""
  if adapter is True:
    raise UserError("--adapter needs the folder of an adapter when it goes with --hf")
  model, params = interop.load(folder)
  if adapter:
    params = lora.merge({**params, lora.KEY: interop.load_adapter(str(adapter), model)})
  shape = model.cfg
  part = out.with_name(f"{out.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  runs.save_shape(part, shape)
  checkpoints = Checkpoints(part / "checkpoints")
  checkpoints.save(0, {"params": jax.tree.map(jax.numpy.asarray, params)})
  checkpoints.close()
  if out.exists():
    out.rmdir()
  part.replace(out)
  fields = {f.name: getattr(shape, f.name) for f in dataclasses.fields(config.Model)}
  usual = dataclasses.asdict(config.Model())
  changed = ", ".join(f"{k}={v}" for k, v in fields.items() if v != usual[k])
  return f"{out}: {count_parameters(params):,} parameters; {changed}"


def _special(coder: Tokenizer) -> dict[str, int]:
  return {"bos_token_id": coder.bos_id, "eos_token_id": coder.eos_id, "pad_token_id": coder.pad_id}


if __name__ == "__main__":
  sys.exit(main())
