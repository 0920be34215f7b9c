"""Protocol buffers by the numbers of their fields: the few that are read here need no TensorFlow.

The wire format is that of protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator


class Message:
  """The fields of one message. A field that is absent is 0, "", b"" or []."""

  def __init__(self, data: bytes | memoryview = b""):
    """Takes the serialized message; what is inside of its fields is read when it is asked for.

    Raises:
      ValueError: if it is none.
    """
    self._fields: dict[int, list[int | memoryview]] = {}
    for number, value in _fields(memoryview(data)):
      self._fields.setdefault(number, []).append(value)

  def __contains__(self, number: int) -> bool:
    return number in self._fields

  def integer(self, number: int) -> int:
    """Returns the last value of an integer."""
    value = self._fields.get(number, (0,))[-1]
    return value if isinstance(value, int) else 0

  def integers(self, number: int) -> list[int]:
    """Returns a repeated integer, packed or not."""
    found = []
    for value in self._fields.get(number, ()):
      if isinstance(value, int):
        found.append(value)
        continue
      at = 0
      while at < len(value):
        one, at = _varint(value, at)
        found.append(one)
    return found

  def data(self, number: int) -> bytes:
    """Returns the last value of a field of bytes."""
    value = self._fields.get(number, (b"",))[-1]
    return b"" if isinstance(value, int) else bytes(value)

  def text(self, number: int) -> str:
    """Returns the last value of a string."""
    return self.data(number).decode("utf-8", "replace")

  def message(self, number: int) -> "Message":
    """Returns the last message of a field."""
    value = self._fields.get(number, (b"",))[-1]
    return Message(b"" if isinstance(value, int) else value)

  def messages(self, number: int) -> Iterator["Message"]:
    """Gives each message of a repeated field."""
    for value in self._fields.get(number, ()):
      if not isinstance(value, int):
        yield Message(value)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    if key & 7 == 0:
      value, at = _varint(data, at)
    elif key & 7 in (1, 2, 5):
      size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
      value, at = data[at : at + size], at + size
    else:
      raise ValueError(f"no protocol buffer: wire type {key & 7} at byte {at}")
    yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    if at >= len(data):
      raise ValueError("no protocol buffer: it ends within a number")
    byte = data[at]
    value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
    if byte < 128:
      return value, at
