"""Arrays and what is known of them, in a folder: NAME.npz and NAME.json, checked by SHA-256."""

import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.errors import UserError

Facts = dict[str, Any]
Arrays = dict[str, np.ndarray]


def save(
  directory: str | os.PathLike[str],
  name: str,
  version: int,
  facts: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> None:
  """Writes `directory`/name.npz and name.json, the same bytes for the same content.

  Each file appears whole or not at all, and the JSON last: a reader of a half-written pair finds
  that the hash does not fit.

  Args:
    directory: made if missing; other files in it stay.
    name: of the files.
    version: of the format; `load` wants the same one.
    facts: JSON-able; "version", "sha256" and "arrays" are added.
    arrays: of numbers.

  Raises:
    UserError: if the folder cannot be written.
  """
  path = pathlib.Path(directory)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for key, value in arrays.items():
      with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as f:
        np.lib.format.write_array(f, np.asarray(value), allow_pickle=False)
  body = buffer.getvalue()
  shapes = {key: [str(value.dtype), list(value.shape)] for key, value in arrays.items()}
  head = {"version": version, "sha256": hashlib.sha256(body).hexdigest(), "arrays": shapes}
  text = json.dumps({**head, **facts, **head}, indent=2, ensure_ascii=False) + "\n"
  try:
    path.mkdir(parents=True, exist_ok=True)
    for file, content in ((f"{name}.npz", body), (f"{name}.json", text.encode())):
      temporary = path / f".{file}.{os.getpid()}.tmp"
      temporary.write_bytes(content)
      temporary.replace(path / file)
  except OSError as e:
    raise UserError(f"{path}: cannot be written ({e.strerror or e})") from e


def load(
  directory: str | os.PathLike[str], name: str, version: int, wanted: Mapping[str, str], remedy: str
) -> tuple[Facts, Arrays]:
  """Reads what `save` wrote; nothing in it is executed.

  Args:
    directory: with name.npz and name.json.
    name: of the files.
    version: of the format.
    wanted: name -> dtype of the arrays that must be there, each of one dimension.
    remedy: how to make them again, for the errors.

  Raises:
    UserError: if a file is missing or damaged, of another version, or they do not fit each other.
  """
  path = pathlib.Path(directory)
  try:
    body = (path / f"{name}.npz").read_bytes()
    facts = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
    found, digest = facts["version"], facts["sha256"]
  except OSError as e:
    raise UserError(f"{path}: no {name}.npz and {name}.json here ({e.strerror}); {remedy}") from e
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(f"{path / name}.json is damaged; {remedy}") from e
  if found != version:
    raise UserError(
      f"{path / name}.json has format {found}, this program reads {version}; {remedy}"
    )
  if hashlib.sha256(body).hexdigest() != digest:
    raise UserError(f"{path / name}.npz does not fit the SHA-256 in {name}.json; {remedy}")
  try:
    with np.load(io.BytesIO(body), allow_pickle=False) as stored:
      arrays = {key: stored[key] for key in stored.files}
  except (ValueError, OSError, KeyError, zipfile.BadZipFile) as e:
    raise UserError(f"{path / name}.npz is damaged; {remedy}") from e
  for key, kind in wanted.items():
    if key not in arrays or arrays[key].dtype != kind or arrays[key].ndim != 1:
      raise UserError(f'{path / name}.npz: "{key}" must be a row of {kind}; {remedy}')
  return facts, arrays


def stamp(directory: str | os.PathLike[str], name: str) -> int:
  """Returns a number that changes when name.json does, for caches of what was loaded; 0: none."""
  try:
    return os.stat(os.path.join(directory, f"{name}.json")).st_mtime_ns
  except OSError:
    return 0
