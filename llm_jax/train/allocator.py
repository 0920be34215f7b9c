"""Memory of a program on a CPU: what glibc's malloc must be told before the program starts."""

import os
import sys


def huge_pages() -> None:
  """Starts this process anew, once, with glibc's large blocks in huge pages.

  XLA on a CPU takes a step's arrays from malloc and gives them back after it. In pages of 4 kB the
  kernel clears tens of thousands of them at every step: a fifth of a small model's time. Processes
  that this one starts, such as the peer of a race, have them too. Where GLIBC_TUNABLES is set, or
  the system is not Linux, nothing happens.
  """
  if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
    return
  os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # Read by glibc only at the start.
  sys.stdout.flush()
  os.execv(sys.executable, sys.orig_argv)
