"""A prepared corpus to packed rows on disk: read at any step, on any number of processes."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from llm_jax import config
from llm_jax.data import blend, packing, records, rows
from llm_jax.data.pipeline import aside, engines
from llm_jax.errors import UserError

_PART = 50_000_000  # Predictions that are packed together; some rows at a part's end are not full.


def run(cfg: config.Pack, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Packs the training split of `cfg.prepared`; writes and returns the manifest.

  Writes rows/, tokenizer/ (a copy) and, as the last file, manifest.json. The rows are the same to
  the bit for any number of workers; a run that was killed is gone on with.

  Raises:
    UserError: if there is no prepared corpus, or nothing in it to pack.
  """
  root, prepared = pathlib.Path(workdir), pathlib.Path(cfg.prepared)
  done = root / "manifest.json"
  kind = blend.tokenizer_of(prepared)
  files = records.files(prepared / "tokens" / "train")
  parts, made_of = _parts(files), {"tokenizer": kind, "files": aside.facts(files)}
  made_of["config"] = dataclasses.asdict(cfg) | {"workers": 0}  # They change nothing but the time.
  if done.exists():
    manifest = json.loads(done.read_text())
    if manifest["made_of"] != made_of:
      raise UserError(f"{root} holds rows of another corpus or config: use another --workdir")
    aside.clear(root)
    print(f"pack: {root} is complete", flush=True)
    return manifest
  with aside.building(root, made_of) as building, engines.Local(cfg.workers) as engine:
    outs = engines.names(building / "rows", len(parts))
    tasks = [
      engines.Task(out, (part, cfg.length, cfg.strategy, cfg.seed))
      for out, part in zip(outs, parts, strict=True)
    ]
    made = []
    for meta in engine.run(pack, tasks):
      made.append(meta)
      print(f"pack: part {len(made)} of {len(parts)}, {meta['rows']:,} rows", flush=True)
    for out in outs:
      pathlib.Path(f"{out}.json").unlink()
    count, real = (sum(meta[key] for meta in made) for key in ("rows", "predictions"))
    manifest = {
      "rows": count,
      "length": cfg.length,
      "strategy": cfg.strategy,
      "seed": cfg.seed,
      "documents": sum(meta["documents"] for meta in made),
      "predictions": real,
      "padding": 1 - real / (count * cfg.length),
      "tokenizer": kind,
      "made_of": made_of,
    }
    shutil.copytree(prepared / "tokenizer", building / "tokenizer", dirs_exist_ok=True)
    for name in ("rows", "tokenizer"):
      shutil.rmtree(root / name, ignore_errors=True)
      (building / name).replace(root / name)
    engines.write_json(done, manifest)
  print(f"pack: {count:,} rows of {cfg.length}, padding {manifest['padding']:.2%}", flush=True)
  return manifest


def pack(out: str, files: Sequence[str], length: int, strategy: str, seed: int) -> engines.Result:
  """A task: packs the documents of some token files to `out`.array_record."""
  source = packing.TokenSource(files)
  return rows.write_rows(f"{out}{records.SUFFIX}", source, length, strategy, seed)


def _parts(files: Sequence[pathlib.Path]) -> list[list[str]]:
  """Groups files, so that a part has about _PART predictions.

  Raises:
    UserError: if there is nothing to predict.
  """
  sizes = [(str(file), packing.Chunks(packing.TokenSource(file), 1).predictions) for file in files]
  parts: dict[int, list[str]] = {}
  before = 0
  for file, size in sizes:
    if size:
      parts.setdefault(before // _PART, []).append(file)
      before += size
  if not parts:
    raise UserError(f"{files[0].parent} has no document to pack")
  return list(parts.values())
