"""A time limit for a function that runs in this process."""

import ctypes
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_AGAIN = 0.5  # Seconds after which code that swallowed the exception gets it again.


class _Expired(BaseException):
  """Raised inside the function; no `Exception`, which the function may well catch."""


class _Stopped(SystemExit):
  """The same in a helper thread; if it comes a moment too late, a thread ends by it in silence."""


def limited(fn: Callable[..., T], *args: Any, seconds: float) -> T:
  """Returns `fn(*args)`, which ends within `seconds`.

  In the main thread of a process (where worker processes run their tasks) a signal interrupts
  Python code and regular expressions. In another thread the function runs in a helper thread, into
  which an exception is thrown; regular expressions are then not interrupted.

  Neither interrupts a call into C such as the parsing of a page, so what is parsed must be bounded
  in size. In the main thread the error then comes as soon as the call returns. In another thread
  it comes in time (if the call releases Python's lock, as lxml's do), and the helper ends with the
  call. No process is ever killed.

  Args:
    fn: should leave nothing half done when it is interrupted anywhere.
    *args: of `fn`.
    seconds: of wall-clock time; 0 or infinity: no limit.

  Raises:
    TimeoutError: if it takes longer.
  """
  if not 0 < seconds < threading.TIMEOUT_MAX:
    return fn(*args)
  main = threading.current_thread() is threading.main_thread()
  # A handler that was not installed from Python could not be put back.
  signals = main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is not None
  return (_by_signal if signals else _by_thread)(fn, args, seconds)


def _by_signal(fn: Callable[..., T], args: tuple, seconds: float) -> T:
  armed = True

  def expire(number: int, frame: FrameType | None) -> None:
    if armed:
      raise _Expired

  begin = time.monotonic()
  handler = signal.signal(signal.SIGALRM, expire)
  delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
  try:
    try:
      return fn(*args)
    finally:
      armed = False  # If the signal comes just before this, it is caught below.
  except _Expired:
    raise _timeout(seconds) from None
  finally:
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    if delay:  # Somebody else's timer goes on.
      left = max(delay - (time.monotonic() - begin), 1e-6)
      signal.setitimer(signal.ITIMER_REAL, left, interval)


def _by_thread(fn: Callable[..., T], args: tuple, seconds: float) -> T:
  done: list[tuple[bool, Any]] = []

  def work() -> None:
    try:
      done.append((True, fn(*args)))
    except _Stopped:
      pass
    except BaseException as e:  # Raised again by the caller.
      done.append((False, e))

  thread = threading.Thread(target=work, name="limited", daemon=True)
  thread.start()
  thread.join(seconds)
  stop = ctypes.py_object(_Stopped)
  patience = time.monotonic() + 2 * _AGAIN
  while thread.is_alive() and not done:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), stop)
    if time.monotonic() > patience:
      break
    thread.join(_AGAIN)
  if not done:
    raise _timeout(seconds)
  finished, result = done[0]
  if not finished:
    raise result
  return result


def _timeout(seconds: float) -> TimeoutError:
  return TimeoutError(f"not done after {seconds:g} s")
