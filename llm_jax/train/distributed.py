"""Start-up of many processes: who they are, from flags, the environment or the cluster."""

import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_jax.errors import UserError
from llm_jax.train import rollcall

TIMEOUT = 300  # Seconds in which all processes must come.
_PATIENCE = 60  # Seconds that a process which ends waits for the others to end, too.
_FAREWELL = 10  # Seconds that one which fails waits for the others to fail, too.

# What a step of srun has; JAX looks for the same.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class Processes(NamedTuple):
  """How this process is one of many.

  Attributes:
    coordinator: "host:port" of process 0.
    count: how many there are.
    index: this one's number.
    devices: of this host, those of this process; None: all that it sees.
  """

  coordinator: str
  count: int
  index: int
  devices: Sequence[int] | None = None


def start(
  coordinator: str = "",
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = TIMEOUT,
) -> int:
  """Joins the processes of one program, before JAX touches a device; returns how many there are.

  Nothing happens where there is one only. See `find` for who they are.

  Args:
    coordinator: "host:port" of process 0.
    num_processes: how many there are.
    process_id: this one's number.
    timeout: seconds in which all of them must come.

  Raises:
    UserError: if they do not find each other, or their numbers do not fit.
  """
  found = find(coordinator, num_processes, process_id, timeout)
  if found is None:
    return 1
  rollcall.hold(found.coordinator, found.count, found.index, timeout)
  _connect_directly(rollcall.split(found.coordinator)[0])
  import jax

  # Its handler of SIGTERM would keep the signal from the training loop.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_check_proxy_envs", False)  # It warns of what is dealt with above.
  jax.distributed.initialize(
    found.coordinator,
    found.count,
    found.index,
    local_device_ids=found.devices,
    cluster_detection_method="deactivate",
    initialization_timeout=int(timeout),
    shutdown_timeout_seconds=_PATIENCE,
  )
  devices = jax.device_count()  # Of all: every process waits here for the others.
  if not found.index:
    print(f"{found.count} processes, {devices} devices", file=sys.stderr, flush=True)
  return found.count


def leave(code: int) -> None:
  """Ends a process of many that has failed with an exit code; returns if it is alone.

  JAX would keep it for a minute, and then abort all. Where all fail alike, as of bad input, each
  says so; where one fails, the others miss it, and JAX ends them.
  """
  if "jax" not in sys.modules or not sys.modules["jax"].distributed.is_initialized():
    return
  import jax
  import orbax.checkpoint as ocp

  try:
    ocp.multihost.get_barrier_sync_fn()(key="llm_jax/leave", timeout_ms=1000 * _FAREWELL)
    time.sleep(jax.process_index() == 0)  # The others would be aborted for want of this one.
  except Exception:
    print("the other processes did not fail: they will miss this one", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def find(
  coordinator: str = "",
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = TIMEOUT,
) -> Processes | None:
  """Returns how this process is one of many; None if it is alone.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
  and what these do not say from the cluster: a step of Slurm, Open MPI, or an Indexed Job of
  Kubernetes. "auto" as the coordinator asks JAX for any cluster that it knows, such as TPU pods.
  One process, given or found, is alone.

  Raises:
    UserError: if a number is missing, is none or does not fit, or the cluster cannot be asked.
  """
  env = os.environ
  coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS", "")
  count = _number(env, "JAX_NUM_PROCESSES") if num_processes is None else num_processes
  index = _number(env, "JAX_PROCESS_ID") if process_id is None else process_id
  kind, their_count, their_index = _cluster(env)
  given = bool(coordinator) or count is not None or index is not None
  if count == 1 or not (kind or given):
    _check(1, index if count == 1 else None)
    return None
  count = their_count if count is None else count
  index = their_index if index is None else index
  address = "" if coordinator == "auto" else coordinator
  if None in (address or None, count, index) and (kind or coordinator == "auto"):
    address, count, index = _detected(kind, address or None, count, index, timeout)
    if count == 1:
      return None
  parts = {"--coordinator": address, "--num_processes": count, "--process_id": index}
  missing = [name for name, value in parts.items() if value in (None, "")]
  if missing or count is None or index is None or not address:
    raise UserError(
      f"{' and '.join(missing)} missing: several processes need --coordinator=host:port, "
      "--num_processes and --process_id, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID; a process of its own needs none of them"
    )
  _check(count, index)
  rollcall.split(address)
  return Processes(address, count, index, _devices(env))


def _cluster(env: Mapping[str, str]) -> tuple[str, int | None, int | None]:
  """Returns (its name, processes, this one's number); "" where there is no cluster."""
  if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return "Open MPI", int(env["OMPI_COMM_WORLD_SIZE"]), int(env["OMPI_COMM_WORLD_RANK"])
  if all(name in env for name in _SLURM) and int(env["SLURM_NTASKS"]) > 1:
    return "Slurm", int(env["SLURM_NTASKS"]), int(env["SLURM_PROCID"])
  # A pod of any other kind is alone.
  if "KUBERNETES_SERVICE_HOST" in env and env.get("JOB_COMPLETION_INDEX"):
    return "Kubernetes", None, int(env["JOB_COMPLETION_INDEX"])
  return "", None, None


def _detected(
  kind: str, address: str | None, count: int | None, index: int | None, timeout: float
) -> tuple[str, int | None, int | None]:
  """What JAX finds out of what is None.

  Raises:
    UserError: if it finds nothing, or fails.
  """
  if kind == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
    raise UserError(
      "a pod of an Indexed Job asks Kubernetes for the others, which needs the package kubernetes "
      "(pip install jax[k8s]): install it, set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES as in "
      "docs/cluster.md, or give --num_processes=1 if this pod is alone"
    )
  # The public jax.distributed.initialize() asks and connects in one, and aborts if that fails.
  from jax._src import clusters

  try:
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      address, count, index, [], None, int(timeout)
    )
  except Exception as error:
    raise UserError(
      f"{kind or 'the cluster'} does not say where the processes are: {error}"
    ) from error
  if found[0] is None:
    raise UserError(
      f"JAX cannot tell from {kind or 'the environment'} where process 0 is: give "
      "--coordinator=host:port, or --num_processes=1 if this process is alone"
    )
  return found[0], found[1], found[2]


def _devices(env: Mapping[str, str]) -> list[int] | None:
  """Returns the device of a process that shares its host, and its view of the devices, with others.

  JAX gives every process of Slurm and Open MPI the device of its number on the host. That is wrong
  for one that is alone there, and for one that was bound to devices of its own.
  """
  if env.get("JAX_LOCAL_DEVICE_IDS"):
    return None  # JAX reads it.
  here, rank = 1, 0
  if "OMPI_COMM_WORLD_LOCAL_SIZE" in env:
    here, rank = int(env["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(env["OMPI_COMM_WORLD_LOCAL_RANK"])
  elif all(name in env for name in _SLURM):
    here, rank = _slurm_tasks(env), int(env["SLURM_LOCALID"])
    if "SLURM_GPUS_PER_TASK" in env and env.get("SLURM_GPU_BIND", "") != "none":
      return None
  visible = env.get("CUDA_VISIBLE_DEVICES", env.get("ROCR_VISIBLE_DEVICES", ""))
  bound = 0 < len([x for x in visible.split(",") if x]) < here
  return None if here == 1 or bound else [rank]


def _slurm_tasks(env: Mapping[str, str]) -> int:
  """Tasks on this node of a step: "2(x3),1" is two on each of three nodes, and one on a fourth."""
  text = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
  counts: list[int] = []
  for part in text.split(","):
    tasks, _, times = part.rstrip(")").partition("(x")
    counts += [int(tasks)] * int(times or 1)
  return counts[min(int(env.get("SLURM_NODEID", "0")), len(counts) - 1)]


def _connect_directly(host: str) -> None:
  """Keeps the connection to process 0 out of an HTTP proxy, to which gRPC would take it."""
  excepted = [os.environ.get(name) for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY")]
  os.environ["no_grpc_proxy"] = ",".join([*filter(None, excepted), host])


def _check(count: int, index: int | None) -> None:
  if count < 1 or index is not None and not 0 <= index < count:
    raise UserError(
      f"--process_id={index} and --num_processes={count} do not fit: numbers go from 0 to one less "
      "than the number of processes"
    )


def _number(env: Mapping[str, str], name: str) -> int | None:
  text = env.get(name, "")
  if text and not text.isdecimal():
    raise UserError(f"{name}={text} is no number")
  return int(text) if text else None
