"""How fast each step of `prepare` is on a source, in MB of what it reads a second and core.

python -m tools.bench_data --source=docs.jsonl --config=configs/data/fineweb.py --out=runs/bench
python -m tools.bench_data --source=docs.jsonl --json=steps.json

One process does all of it, so seconds are those of one core.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import shutil
import sys
import tempfile
from typing import Any

from experiments import _launch
from llm_jax.errors import UserError
from llm_jax.stages import prepare


def main(argv: list[str] | None = None) -> int:
  """Runs `prepare` and prints a Markdown table; 2 is the exit code of bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", required=True, help="as config.source")
  parser.add_argument("--config", default="", help="a file with get_config() -> config.Prepare")
  parser.add_argument("--vocab_size", type=int, default=32_000)
  parser.add_argument("--out", type=pathlib.Path, help="keep the corpus here")
  parser.add_argument("--json", type=pathlib.Path, help="write the rows here, too")
  options = parser.parse_args(argv)
  try:
    with tempfile.TemporaryDirectory() as folder:
      out = options.out or pathlib.Path(folder) / "out"
      shutil.rmtree(out, ignore_errors=True)
      rows = bench(options, out)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if options.json:
    options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
  print(table(rows))
  return 0


def bench(options: argparse.Namespace, out: pathlib.Path) -> list[dict[str, Any]]:
  """Returns {"step", "documents", "mb", "seconds", "mb_per_second"} of each step."""
  cfg = _launch.load_config(options.config) if options.config else _default()
  cfg = dataclasses.replace(cfg, source=options.source, workers=1, vocab_size=options.vocab_size)
  manifest = prepare.run(cfg, out)
  timing = json.loads((out / "timing.json").read_text(encoding="utf-8"))
  rows, size = [], manifest["funnel"][0]["bytes"]
  for step in manifest["funnel"]:
    rows.append(_row(step["step"], step["documents"], size, timing["steps"][step["step"]]))
    size = step["bytes"]
  last = manifest["funnel"][-1]["documents"]
  rows += [_row(name, last, size, seconds) for name, seconds in timing["stages"].items()]
  rows.append(_row("all", last, manifest["funnel"][0]["bytes"], timing["seconds"]))
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as Markdown, and the peak of memory."""
  lines = ["| step | documents left | MB read | seconds | MB/s |", "|---|--:|--:|--:|--:|"]
  for row in rows:
    lines.append(
      f"| {row['step']} | {row['documents']:,} | {row['mb']:.1f} | {row['seconds']:.1f} "
      f"| {row['mb_per_second']:.1f} |"
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB.
  return "\n".join([*lines, f"\npeak memory {peak:.2f} GiB"])


def _row(step: str, documents: int, size: int, seconds: float) -> dict[str, Any]:
  mb = size / 1e6
  return {
    "step": step,
    "documents": documents,
    "mb": mb,
    "seconds": seconds,
    "mb_per_second": mb / max(seconds, 1e-3),
  }


def _default() -> Any:
  from llm_jax import config

  return config.Prepare()


if __name__ == "__main__":
  sys.exit(main())
