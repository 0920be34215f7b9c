"""The roll call before JAX starts: every process tells the first one its number.

JAX ends a program whose processes do not find each other by an abort in C++, minutes later, and
does not see that two have one number. Here both are one line. It is on the coordinator's port,
which JAX takes over when all are there.
"""

import json
import socket
import time
from typing import Any

from llm_jax.errors import UserError

_PAUSE = 0.2  # Seconds between two tries to reach the first process.
_LINE = 4096  # Bytes of a message at most.


def split(address: str) -> tuple[str, int]:
  """Returns (host, port) of "host:port".

  Raises:
    UserError: if it is something else.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(
      f"--coordinator={address} must be host:port of process 0, such as node001:12345"
    )
  return host.strip("[]"), int(port)


def hold(address: str, processes: int, process: int, timeout: float) -> None:
  """Returns when all processes have called; the first one listens, the others connect to it.

  Args:
    address: "host:port" of process 0.
    processes: how many there are.
    process: this one's number.
    timeout: seconds to wait for the others.

  Raises:
    UserError: in every process that is there: if others do not come in time, the numbers do not
      fit, or the port is taken.
  """
  end = time.monotonic() + timeout
  if process:
    _answer(address, processes, process, end, timeout)
  else:
    _call(address, processes, end, timeout)


def _call(address: str, processes: int, end: float, timeout: float) -> None:
  port = split(address)[1]
  try:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
  except OSError as error:
    raise UserError(
      f"process 0 cannot listen on port {port} of --coordinator={address} ({error.strerror}): "
      "choose a free port"
    ) from error
  there: dict[int, socket.socket] = {}
  strays: list[socket.socket] = []
  problem = ""
  with server:
    while not problem and len(there) < processes - 1:
      server.settimeout(max(end - time.monotonic(), 0.01))
      try:
        caller = server.accept()[0]
      except TimeoutError:
        missing = [str(i) for i in range(1, processes) if i not in there]
        problem = f"{_named(missing)} of {processes} did not come to {address} in {timeout:.0f} s"
        break
      said = _read(caller, 5.0)
      if not isinstance(said, dict) or not {"process", "processes"} <= said.keys():
        caller.close()  # Whatever that was, it is none of us.
        continue
      problem = _misfit(said["process"], said["processes"], processes, there)
      (strays.append(caller) if problem else there.update({said["process"]: caller}))
  for caller in (*there.values(), *strays):
    with caller:
      _write(caller, {"problem": problem})
  if problem:
    raise UserError(problem)


def _answer(address: str, processes: int, process: int, end: float, timeout: float) -> None:
  reason: object = ""
  while (left := end - time.monotonic()) > 0:
    try:
      with socket.create_connection(split(address), timeout=min(left, 10.0)) as caller:
        _write(caller, {"process": process, "processes": processes})
        said = _read(caller, left + 5.0)  # The first process gives up before this one does.
    except OSError as error:  # Not there yet, or its name is not.
      said, reason = None, error.strerror or error
    if isinstance(said, dict) and "problem" in said:
      if said["problem"]:
        raise UserError(said["problem"])
      return
    time.sleep(min(_PAUSE, max(end - time.monotonic(), 0)))
  raise UserError(
    f"process {process} of {processes} cannot reach process 0 at {address} in {timeout:.0f} s "
    f"({reason or 'no answer'}): is it running, and is --coordinator its host and an open port?"
  )


def _misfit(process: Any, of: Any, processes: int, there: dict[int, socket.socket]) -> str:
  if of != processes:
    return f"process {process} was started as one of {of}, and process 0 as one of {processes}"
  if process in there or process == 0:
    return f"two processes have --process_id={process}: give each its own, from 0 to {of - 1}"
  return ""


def _named(numbers: list[str]) -> str:
  shown = ", ".join(numbers[:8]) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
  return f"process{'es' if len(numbers) > 1 else ''} {shown}"


def _write(to: socket.socket, value: dict[str, Any]) -> None:
  try:
    to.sendall(json.dumps(value).encode() + b"\n")
  except OSError:
    pass  # It is gone: it tries again, or its absence is noticed.


def _read(source: socket.socket, timeout: float) -> Any:
  """Returns the JSON of a line; None if there is none."""
  source.settimeout(timeout)
  data = b""
  try:
    while not data.endswith(b"\n") and len(data) < _LINE:
      part = source.recv(_LINE - len(data))
      if not part:
        break
      data += part
    return json.loads(data)
  except (OSError, ValueError):
    return None
