"""An experiment through the launcher, stopped by a signal to process 1 at a step, or not (0).

python -m tests.stages.one_of_two STEP EXPERIMENT FLAGS
"""

import signal
import sys

from experiments import _launch


def interrupt(feeds, at):
  """Makes process 1 of two get a signal while step `at` is prepared."""
  import jax

  class Interrupted(feeds.IteratorFeed):
    def next(self, state):
      if self._used == at - 1 and jax.process_index() == jax.process_count() - 1:
        signal.raise_signal(signal.SIGTERM)
      return super().next(state)

  feeds.IteratorFeed = Interrupted


if __name__ == "__main__":
  step, experiment, *flags = sys.argv[1:]
  if int(step):
    from llm_jax.train import feeds

    interrupt(feeds, int(step))
  _launch.main(experiment, [experiment, *flags])
