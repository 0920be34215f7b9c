"""Apache Beam as an engine: every phase is a pipeline that maps its function over its tasks.

Shards go through files, so the directory of the run must be one that all workers see. Needs the
extra `beam`.
"""

from collections.abc import Iterable, Iterator

from llm_jax.data.pipeline import engines

# The runner in this process. Beam's default would first look for a program to download.
IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


class Beam:
  """Runs phases as Beam pipelines.

  Args:
    runner: name of Beam's runner (FlinkRunner, SparkRunner, DataflowRunner); "": IN_PROCESS.
    options: further words of Beam's command line, such as --flink_master=HOST:8081.
  """

  def __init__(self, runner: str = "", options: tuple[str, ...] = ()):
    self._words = [f"--runner={runner or IN_PROCESS}", *options]

  def __enter__(self) -> "Beam":
    return self

  def __exit__(self, *_: object) -> None:
    pass

  def run(self, fn: engines.Function, tasks: Iterable[engines.Task]) -> Iterator[engines.Result]:
    """As `Engine.run`; results come from the tasks' files once all of them are done."""
    import apache_beam as beam  # Seconds, and an extra.
    from apache_beam.options.pipeline_options import PipelineOptions

    tasks = list(tasks)
    waiting = [task for task in tasks if engines.result_of(task) is None]
    if waiting:
      with beam.Pipeline(options=PipelineOptions(self._words)) as pipeline:
        _ = (
          pipeline
          | "tasks" >> beam.Create(waiting)
          | "spread" >> beam.Reshuffle()
          | fn.__name__ >> beam.Map(lambda task: engines.run_task(fn, task) and None)
        )
    for task in tasks:
      done = engines.result_of(task)
      if done is None:
        raise RuntimeError(
          f"Beam ended without {task.out}.json: do its workers see this directory?"
        )
      yield done
