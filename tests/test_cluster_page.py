"""docs/cluster.md: its job files hold together, and the launcher takes its commands."""

import pathlib
import re
import shlex
import subprocess

import pytest
from absl import flags

from experiments import _fields, _launch
from llm_jax.train import distributed

# ml_collections reads a config file in a way that is old.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PAGE = (pathlib.Path(__file__).resolve().parents[1] / "docs" / "cluster.md").read_text()
(SCRIPT,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
(MANIFEST,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


def parsed(words):
  """What the launcher makes of the words from "-m" on."""
  module, *rest = words[words.index("-m") + 1 :]
  assert module.partition(".")[2] in _launch.SHARED
  path = str(_launch.CONFIGS / f"{module.partition('.')[2]}.py")
  default = _launch.load_config(path)
  _fields.check_overrides(rest, default)
  command = _launch.parse([module, *rest], path, default, flags.FlagValues())
  _fields.validate(command.cfg)
  return command


def directive(name):
  return re.search(rf"#SBATCH --{name}=(\S+)", SCRIPT)[1]


def test_the_slurm_script_is_one_and_its_mesh_takes_all_devices():
  subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=True)
  (words,) = re.findall(r"^srun ((?:[^\n\\]|\\\n)*)", SCRIPT, re.M)
  mesh = parsed(shlex.split(words.replace("\\\n", ""))).cfg.mesh
  assert mesh.data * mesh.fsdp == int(directive("nodes")) * int(directive("gpus-per-node"))
  assert "trap : TERM" in SCRIPT and directive("signal").startswith("TERM@")


def test_the_pods_of_the_manifest_find_each_other(monkeypatch):
  yaml = pytest.importorskip("yaml")
  service, job = yaml.safe_load_all(MANIFEST)
  name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
  assert service["spec"]["clusterIP"] == "None"
  assert service["spec"]["selector"] == {"job-name": name}
  assert pod["subdomain"] == service["metadata"]["name"]
  assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
  (container,) = pod["containers"]
  command = parsed(container["command"])
  mesh, gpus = command.cfg.mesh, container["resources"]["limits"]["nvidia.com/gpu"]
  assert mesh.data * mesh.fsdp == spec["completions"] * gpus
  assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
  for variable in [*container["env"], {"name": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.1"}]:
    monkeypatch.setenv(variable["name"], variable["value"])
  for index in range(spec["completions"]):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
    found = distributed.find(**command.join)
    host = f"{name}-0.{pod['subdomain']}"
    assert found == distributed.Processes(f"{host}:8476", spec["completions"], index)
  for rule in spec["podFailurePolicy"]["rules"][:2]:
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_commands_by_hand_are_two_processes():
  lines = [x for x in PAGE.splitlines() if x.startswith("python -m ") and "--coordinator" in x]
  found = [distributed.find(**parsed(shlex.split(line)).join) for line in lines]
  assert [x.index for x in found] == [0, 1] and {x.count for x in found} == {2}
  assert len({x.coordinator for x in found}) == 1


def test_flags_and_variables_of_the_table_exist():
  source = pathlib.Path(distributed.__file__).read_text()
  for name in re.findall(r"`--(coordinator|\w+_\w+)\b", PAGE):
    assert name in _launch.FLAG_HELP
  for name in re.findall(r"`(JAX_(?!COMPILATION)\w+)`", PAGE):
    assert name in source
