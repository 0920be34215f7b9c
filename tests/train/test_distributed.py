"""Who the processes are, from flags, environments and clusters, and the roll call before JAX."""

import contextlib
import itertools
import os
import socket
import threading
import time

import jax
import pytest
from jax._src import distributed as jax_distributed

from llm_jax.errors import UserError
from llm_jax.train import distributed, processes, rollcall
from llm_jax.train.distributed import Processes
from tests.train import two_processes

SLURM = {
  "SLURM_JOB_ID": "4096", "SLURM_STEP_NODELIST": "node[007-010,020]", "SLURM_NTASKS": "5",
  "SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "3",
  "SLURM_STEP_TASKS_PER_NODE": "1(x5)",
}  # fmt: skip
FOUR = SLURM | {"SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x3),4,1"}
# JAX 0.12 asks mpi4py, and says so where it is not there.
NO_MPI = (
  "Open MPI does not say where the processes are: Open MPI 5 or newer requires mpi4py"
  if jax.__version_info__ >= (0, 12)
  else "JAX cannot tell from Open MPI where process 0 is"
)
OMPI = {
  "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
ORTE = OMPI | {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1,10.0.0.2:34911"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
INDEXED = POD | {"JOB_COMPLETION_INDEX": "2"}
JAX = {
  "JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3",
}  # fmt: skip


@pytest.fixture(autouse=True)
def environ(monkeypatch):
  """Returns a function that sets variables, of which the environment has no other of this kind."""
  for name in os.environ:
    if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_", "CUDA_")) or name in JAX:
      monkeypatch.delenv(name)
  return lambda env: [monkeypatch.setenv(*pair) for pair in env.items()]


@pytest.mark.parametrize(
  "env",
  [
    {},
    POD,  # A notebook.
    SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},  # No srun.
    JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    {"OMPI_COMM_WORLD_SIZE": "1"},
  ],
)
def test_a_process_of_its_own_is_left_alone(env, environ):
  environ(env)
  assert distributed.find() is None


@pytest.mark.parametrize(
  ("env", "expected"),
  [
    (JAX, Processes("a:1", 4, 3)),
    (SLURM, Processes("node007:61440", 5, 3)),  # Alone on its node: all devices are its own.
    (FOUR, Processes("node007:61440", 8, 3, [2])),
    (FOUR | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Processes("node007:61440", 8, 3, [2])),
    (FOUR | {"CUDA_VISIBLE_DEVICES": "0"}, Processes("node007:61440", 8, 3)),  # Bound to one.
    (FOUR | {"SLURM_GPUS_PER_TASK": "2"}, Processes("node007:61440", 8, 3)),
    (
      FOUR | {"SLURM_GPUS_PER_TASK": "2", "SLURM_GPU_BIND": "none"},
      Processes("node007:61440", 8, 3, [2]),
    ),
    (FOUR | {"JAX_LOCAL_DEVICE_IDS": "4,5"}, Processes("node007:61440", 8, 3)),  # JAX reads it.
    (FOUR | {"JAX_COORDINATOR_ADDRESS": "b:2"}, Processes("b:2", 8, 3, [2])),
    (ORTE, Processes("10.0.0.1:61441", 4, 1, [1])),
    (OMPI | {"JAX_COORDINATOR_ADDRESS": "b:2"}, Processes("b:2", 4, 1, [1])),
    (
      INDEXED | {"JAX_COORDINATOR_ADDRESS": "run-0.run:2", "JAX_NUM_PROCESSES": "3"},
      Processes("run-0.run:2", 3, 2),
    ),
  ],
)
def test_many_processes_are_found(env, expected, environ):
  environ(env)
  assert distributed.find() == expected


def test_flags_come_before_the_environment_and_that_before_the_cluster(environ):
  environ(SLURM)
  assert distributed.find(num_processes=1) is None
  environ(JAX)
  assert distributed.find() == Processes("a:1", 4, 3)
  assert distributed.find("c:3", 9, 0) == Processes("c:3", 9, 0)


@pytest.mark.parametrize(
  ("flags", "env", "message"),
  [
    (("a:1",), {}, "--num_processes and --process_id missing"),
    (("", 2, 0), {}, "--coordinator missing"),
    (("a:1", 2, 2), {}, "--process_id=2 and --num_processes=2 do not fit"),
    (("a:1", 0, 0), {}, "do not fit"),
    (("", 1, 5), {}, "--process_id=5 and --num_processes=1 do not fit"),
    (("node", 2, 0), {}, "--coordinator=node must be host:port"),
    (("node:x", 2, 0), {}, "must be host:port"),
    ((), JAX | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID=x is no number"),
    ((), OMPI, NO_MPI),
    (("auto",), {}, "JAX cannot tell from the environment"),
    ((), INDEXED, r"pip install jax\[k8s\]"),
  ],
)
def test_what_does_not_fit_is_one_line(flags, env, message, environ, monkeypatch):
  environ(env)
  monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=message) as caught:
    distributed.find(*flags)
  assert "\n" not in str(caught.value)


def test_places_of_their_own_are_not_given_to_another_number_of_processes():
  assert processes.own(processes.joint({"used": 3})) == {"used": 3}
  with pytest.raises(UserError, match="2 processes read the data of this run, .* start 2 to go on"):
    processes.own({"__processes__": [{"used": 3}, {"used": 4}]})


def calls(address, *callers, timeout=20.0):
  """Threads, running, of processes (number, how many) in a roll call, and what they will say."""
  said = {}

  def one(place, process, count):
    try:
      rollcall.hold(address, count, process, timeout)
      said[place] = ""
    except UserError as error:
      said[place] = str(error)

  threads = [threading.Thread(target=one, args=(i, *pair)) for i, pair in enumerate(callers)]
  for thread in threads:
    thread.start()
  return threads, said


def call(*callers, **kwargs):
  """The errors, or "", of processes (number, how many) in a roll call."""
  threads, said = calls(f"localhost:{two_processes.free_port()}", *callers, **kwargs)
  for thread in threads:
    thread.join()
  return [said[i] for i in range(len(callers))]


def test_all_who_come_go_on_together():
  assert call((2, 3), (0, 3), (1, 3)) == ["", "", ""]


def test_whoever_else_connects_is_ignored():
  port = two_processes.free_port()
  threads, said = calls(f"localhost:{port}", (0, 2))
  while True:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 5) as stray:
      stray.sendall(b"GET / HTTP/1.1\r\n")
      assert stray.recv(100) == b""
      break
  rollcall.hold(f"localhost:{port}", 2, 1, 20.0)
  threads[0].join()
  assert said == {0: ""}


def test_who_is_missing_is_named_by_those_that_are_there():
  found = call((0, 4), (2, 4), timeout=1.0)
  assert len(set(found)) == 1 and found[0].startswith("processes 1, 3 of 4 did not come to")
  begin = time.monotonic()
  (alone,) = call((1, 2), timeout=0.3)
  assert alone.startswith("process 1 of 2 cannot reach process 0 at localhost:")
  assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
  ("callers", "message"),
  [
    (((0, 3), (1, 3), (1, 3)), "two processes have --process_id=1"),
    (((0, 2), (1, 3)), "process 1 was started as one of 3, and process 0 as one of 2"),
  ],
)
def test_numbers_that_do_not_fit_are_told_to_all(callers, message):
  found = call(*callers)
  assert all(line.startswith(message) for line in found), found


def test_a_port_in_use_is_said():
  with socket.create_server(("", two_processes.free_port())) as other:
    address = f"localhost:{other.getsockname()[1]}"
    with pytest.raises(UserError, match="process 0 cannot listen on port"):
      rollcall.hold(address, 2, 0, 1.0)


def test_what_was_said_aside_does_not_stay_with_the_coordinator(monkeypatch):
  said: dict[str, str] = {}

  class Client:
    key_value_set, key_value_delete = said.__setitem__, said.__delitem__

    def blocking_key_value_get(self, key, timeout_ms):
      return said.get(key, '"the other"')

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  monkeypatch.setattr(jax_distributed.global_state, "client", Client())
  monkeypatch.setattr(processes, "_asides", itertools.count())
  for n in range(5):
    assert processes.aside({"n": n}) == [{"n": n}, "the other"]
  assert list(said) == ["llm_jax/aside/4/0"]
