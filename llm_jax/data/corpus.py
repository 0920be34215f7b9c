"""A corpus on disk: a TFDS dataset in ArrayRecord files, written and read without TensorFlow."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, example_serializer, sequential_writer

from llm_jax.data.documents import Document
from llm_jax.data.workers import batched
from llm_jax.errors import UserError

VERSION = "1.0.0"
_SHARD = 100_000  # Documents in a file.


def write(directory: str | pathlib.Path, splits: Mapping[str, Iterable[Document]]) -> None:
  """Writes `directory`/corpus/1.0.0, which `tfds.builder_from_directory` reads.

  A builder's `download_and_prepare` would shuffle and look for checksums to download; the
  sequential writer keeps the order and touches nothing else.

  Args:
    directory: exists.
    splits: split name -> documents.
  """
  path = pathlib.Path(directory) / "corpus" / VERSION
  path.mkdir(parents=True)
  identity = dataset_info.DatasetIdentity(
    name="corpus", version=tfds.core.Version(VERSION), data_dir=str(path), module_name=__name__
  )
  texts = {name: tfds.features.Text() for name in ("id", "url", "text")}
  info = tfds.core.DatasetInfo(
    builder=identity,
    description="Documents kept by a data recipe.",
    features=tfds.features.FeaturesDict(texts),
  )
  writer = sequential_writer.SequentialWriter(info, _SHARD, file_format="array_record")
  writer._serializer = _Serializer(info.features.get_serialized_info())
  writer.initialize_splits(list(splits))
  for name, documents in splits.items():
    for batch in batched(documents, 1000):
      rows = [{"id": d.id, "url": d.url, "text": _valid(d.text)} for d in batch]
      writer.add_examples({name: rows})
  writer.close_all()


def read(prepared: str | pathlib.Path, split: str) -> Iterator[Document]:
  """Yields the documents of a split in the order on disk.

  Raises:
    UserError: if `prepared` has no corpus, or the corpus no such split.
  """
  path = pathlib.Path(prepared) / "corpus" / VERSION
  if not (path / "dataset_info.json").exists():
    raise UserError(f"{path}: no corpus here; run python -m experiments.prepare first")
  builder = tfds.builder_from_directory(str(path))
  if split not in builder.info.splits:
    raise UserError(f'{path}: no split "{split}"; there are: {", ".join(builder.info.splits)}')
  source = builder.as_data_source(split=split)
  for i in range(len(source)):
    row = source[i]  # Bytes: TFDS decodes text only where TensorFlow is.
    yield Document(*(row[name].decode() for name in ("id", "text", "url")))


class _Serializer(example_serializer.ExampleSerializer):
  """Writes the same bytes in every process: protobuf's maps else come in an order of their own."""

  def serialize_example(self, example: Any) -> bytes:
    return self.get_tf_example(example).SerializeToString(deterministic=True)


def _valid(text: str) -> str:
  return text.encode("utf-8", "replace").decode()
