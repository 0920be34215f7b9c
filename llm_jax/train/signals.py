"""Signals that ask a program to stop: noted at once, acted on where nothing is lost."""

import os
import signal
import threading
from typing import Any, ClassVar


class Signals:
  """Notes the first SIGTERM or SIGINT; the second one ends the process at once.

  Python hands signals to the main thread alone: in another thread this gives what the main thread
  has open, if it has one.

  Attributes:
    received: its number, 0: none yet.
  """

  _of_main: ClassVar["Signals | None"] = None

  def __init__(self):
    """Notes nothing before it is entered."""
    self.received = 0
    self._old: dict[int, Any] = {}
    self._outer: Signals | None = None

  def __enter__(self) -> "Signals":
    """Takes the place of the handlers that there are."""
    if threading.current_thread() is not threading.main_thread():
      return Signals._of_main or self
    self._outer, Signals._of_main = Signals._of_main, self
    for number in (signal.SIGTERM, signal.SIGINT):
      self._old[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exc: object) -> None:
    """Puts them back."""
    if self._old:
      Signals._of_main = self._outer
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame: Any) -> None:
    del frame
    if self.received:
      os._exit(128 + number)
    self.received = number
    # No print: it may not be called again while it runs.
    os.write(2, b"\nstopping after this step; once more to stop at once, unsaved\n")
