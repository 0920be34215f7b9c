"""A SHA-256 of every file of a checkpoint: whether it is whole, to the bit."""

import hashlib
import json
import os
import pathlib

import jax

from llm_jax.train import processes

NAME = "sha256.json"


def write(step_dir: pathlib.Path) -> None:
  """Hashes the files of a committed checkpoint; of many processes each does a part.

  It may run in a thread beside the one that trains.
  """
  # The first process' list: another one may not see all files of a shared disk yet.
  names = [str(p.relative_to(step_dir)) for p in _files(step_dir)] if processes.primary() else None
  names = processes.aside(names)[0]
  parts = processes.aside({name: sha256(step_dir / name) for name in _mine(names)})
  hashes = {name: digest for part in parts for name, digest in part.items()}
  if processes.primary():
    temporary = step_dir / (NAME + ".tmp")
    temporary.write_text(json.dumps({name: hashes[name] for name in names}, indent=1))
    os.replace(temporary, step_dir / NAME)
  processes.aside(None)  # The others wait until it is there.


def damage(step_dir: pathlib.Path) -> str:
  """Returns what is wrong with a committed checkpoint, or ""; the same in every process.

  One without a manifest was committed right before the process was killed: it is whole.
  """
  manifest = step_dir / NAME
  text = manifest.read_text(errors="replace") if manifest.exists() else "{}"
  found = processes.agree(text)
  try:
    hashes = json.loads(found)
  except ValueError:
    return f"{NAME} is no JSON"
  return next(filter(None, processes.gather(_first_damage(step_dir, hashes))), "")


def sha256(path: pathlib.Path) -> str:
  """Returns the hash of a file, in hexadecimal digits."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _first_damage(step_dir: pathlib.Path, hashes: dict[str, str]) -> str:
  """What is wrong with this process' part of the files, or ""."""
  for name in _mine(list(hashes)):
    if not (step_dir / name).is_file():
      return f"{name} is missing"
    if sha256(step_dir / name) != hashes[name]:
      return f"{name} has changed since it was written"
  return ""


def _mine(names: list[str]) -> list[str]:
  return names[jax.process_index() :: jax.process_count()]


def _files(step_dir: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in step_dir.rglob("*") if p.is_file() and not p.name.startswith(NAME))
