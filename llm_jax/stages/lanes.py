"""Chains of stages that do not need one another, at a time, each in a thread.

XLA on a CPU cuts every operation of a small model into parts for all cores and waits for the last
of them; what another program has to do fills these gaps.
"""

import signal
import threading
from collections.abc import Callable, Sequence

from llm_jax.train.signals import Signals


def run(lanes: Sequence[Sequence[Callable[[], None]]]) -> None:
  """Runs the jobs of each lane in order, the lanes at a time.

  A signal stops the training that runs in each of them, and so does the failure of one: what is
  trained is saved. The job that was refused, or failed, says what is raised here.

  Args:
    lanes: chains of jobs.

  Raises:
    SystemExit: after a signal.
  """
  failures: list[BaseException] = []

  def work(jobs: Sequence[Callable[[], None]], stop: Signals) -> None:
    for job in jobs:
      if stop.received:
        return
      try:
        job()
      except BaseException as error:  # It is raised again below.
        failures.append(error)
        stop.received = stop.received or signal.SIGTERM
        return

  with Signals() as stop:
    threads = [threading.Thread(target=work, args=(jobs, stop)) for jobs in lanes]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  if failures:
    raise next((e for e in failures if not isinstance(e, SystemExit)), failures[0])
  if stop.received:
    raise SystemExit(128 + stop.received)
