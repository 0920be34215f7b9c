"""SentencePiece's model file as a protobuf message, for whichever protobuf is installed.

The class that comes with sentencepiece wants the very release of protobuf that it was made with, or
a newer one, which Apache Beam forbids. Only the fields that are used here are described; the
others of a file are kept as they are.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "llm_jax.sentencepiece"  # Not sentencepiece's own name, which can be registered once.


def _field(message: Any, name: str, number: int, kind: str, default: str = "") -> None:
  """Adds a field; `kind` is a scalar type, or the name of a message or enum of this file."""
  field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
  if default:
    field.default_value = default
  if kind.startswith("enum "):
    field.type, field.type_name = _FIELD.TYPE_ENUM, f".{_PACKAGE}.{kind.removeprefix('enum ')}"
  elif kind.startswith("message "):
    field.type = _FIELD.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{kind.removeprefix('message ')}"
  else:
    field.type = getattr(_FIELD, f"TYPE_{kind.upper()}")


def _enum(message: Any, name: str, values: dict[str, int]) -> None:
  enum = message.enum_type.add(name=name)
  for value, number in values.items():
    enum.value.add(name=value, number=number)


def _model_proto() -> Any:
  """Builds the class; the numbers are those of sentencepiece_model.proto."""
  file = descriptor_pb2.FileDescriptorProto(
    name="llm_jax/sentencepiece_model.proto", package=_PACKAGE, syntax="proto2"
  )
  trainer = file.message_type.add(name="TrainerSpec")
  _enum(trainer, "ModelType", {"UNIGRAM": 1, "BPE": 2, "WORD": 3, "CHAR": 4})
  _field(trainer, "model_type", 3, "enum TrainerSpec.ModelType", "UNIGRAM")
  _field(trainer, "treat_whitespace_as_suffix", 24, "bool", "false")
  _field(trainer, "byte_fallback", 35, "bool", "false")
  normalizer = file.message_type.add(name="NormalizerSpec")
  _field(normalizer, "name", 1, "string")
  _field(normalizer, "precompiled_charsmap", 2, "bytes")
  for number, name in enumerate(
    ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"), 3
  ):
    _field(normalizer, name, number, "bool", "true")
  model = file.message_type.add(name="ModelProto")
  piece = model.nested_type.add(name="SentencePiece")
  kinds = ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")
  numbers = {"USER_DEFINED": 4, "UNUSED": 5, "BYTE": 6}
  _enum(piece, "Type", {kind: numbers.get(kind, i) for i, kind in enumerate(kinds, 1)})
  _field(piece, "piece", 1, "string")
  _field(piece, "score", 2, "float")
  _field(piece, "type", 3, "enum ModelProto.SentencePiece.Type", "NORMAL")
  _field(model, "pieces", 1, "message ModelProto.SentencePiece")
  model.field[0].label = _FIELD.LABEL_REPEATED
  _field(model, "trainer_spec", 2, "message TrainerSpec")
  _field(model, "normalizer_spec", 3, "message NormalizerSpec")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  found = pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto")
  return message_factory.GetMessageClass(found)


ModelProto = _model_proto()
