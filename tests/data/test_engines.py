"""Engines: every task once, results in order, nothing done twice after a stop."""

import pathlib

import pytest

from llm_jax.data.pipeline import engines
from llm_jax.errors import UserError


def square(out, number, log):
  """A task that leaves a file and a line in the log of what ran."""
  with open(log, "a") as f:
    f.write(f"{number}\n")
  if number == 13:
    raise UserError("13 is refused")
  pathlib.Path(f"{out}.txt").write_text(str(number**2))
  return {"square": number**2}


def tasks(tmp_path, numbers):
  names = engines.names(tmp_path / "work", len(numbers))
  log = str(tmp_path / "log")
  return [engines.Task(out, (n, log)) for out, n in zip(names, numbers, strict=True)]


def ran(tmp_path):
  return sorted(map(int, (tmp_path / "log").read_text().split()))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_done_tasks_are_not_run_again(tmp_path, workers):
  with engines.Local(workers) as engine:
    first = engines.results(engine, square, tasks(tmp_path, [3, 1, 2]))
    again = engines.results(engine, square, tasks(tmp_path, [3, 1, 2]))
  assert first == again == [{"square": 9}, {"square": 1}, {"square": 4}]
  assert ran(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_keeps_what_was_done(tmp_path, workers):
  with engines.Local(workers) as engine, pytest.raises(UserError, match="13 is refused"):
    engines.results(engine, square, tasks(tmp_path, [1, 13, 2]))
  with engines.Local(workers) as engine:
    names = engines.names(tmp_path / "work", 3)
    one = engines.Task(names[0], (1, str(tmp_path / "log")))
    assert engines.results(engine, square, [one]) == [{"square": 1}]
  assert ran(tmp_path).count(1) == 1


def test_a_result_that_is_no_json_is_made_again(tmp_path):
  (task,) = tasks(tmp_path, [5])
  pathlib.Path(f"{task.out}.json").write_text('{"squ')
  with engines.Local() as engine:
    assert engines.results(engine, square, [task]) == [{"square": 25}]


def test_a_result_is_written_whole(tmp_path):
  engines.write_json(tmp_path / "a.json", {"é": [1, None]})
  assert engines.read_json(tmp_path / "a.json") == {"é": [1, None]}
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (("locale",), 'did you mean "local"'),
    (("local", 1, "FlinkRunner"), "needs config.engine=beam"),
  ],
)
def test_bad_engines_are_named(words, says):
  with pytest.raises(UserError, match=says):
    engines.make(*words)


def test_beam_runs_the_same_tasks(tmp_path):
  pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
  with engines.make("beam") as engine:
    found = engines.results(engine, square, tasks(tmp_path, [3, 1, 2]))
    again = engines.results(engine, square, tasks(tmp_path, [3, 1, 2]))
  assert found == again == [{"square": 9}, {"square": 1}, {"square": 4}]
  assert ran(tmp_path) == [1, 2, 3]


def test_a_job_service_runs_the_same_tasks(tmp_path):
  """The protocol of Flink's and Spark's runners, spoken with Beam's own local service."""
  pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
  from apache_beam.runners.portability import local_job_service

  service = local_job_service.LocalJobServicer(str(tmp_path / "staging"))
  port = service.start_grpc_server(0)
  words = (f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK")
  try:
    with engines.make("beam", beam_runner="PortableRunner", beam_options=words) as engine:
      found = engines.results(engine, square, tasks(tmp_path, [3, 1, 2]))
  finally:
    service.stop()
  assert found == [{"square": 9}, {"square": 1}, {"square": 4}]
  assert ran(tmp_path) == [1, 2, 3]


def of_tuples(out):
  return {"pages": [(1, "a")]}


def test_a_result_is_the_same_whether_it_is_new_or_read(tmp_path):
  """Results of both kinds meet where a killed run goes on, and are compared there."""
  task = engines.Task(str(tmp_path / "a"))
  assert engines.run_task(of_tuples, task) == engines.run_task(of_tuples, task)
  assert of_tuples("") != engines.run_task(of_tuples, task) == {"pages": [[1, "a"]]}
