"""Nothing is asked of the network: stages run in a process that ends if something is."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Ends the process at once, as a library may catch what is raised and go on.
GUARD = """
import os, sys
own = ("127.0.0.1", "::1", "localhost", "", None)
def hook(event, given):
  if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
    address = given[1]
    host = address[0] if isinstance(address, tuple) else ""  # Else of a socket of this machine.
  elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
    host = given[0]
  else:
    return
  host = host.decode() if isinstance(host, bytes) else host
  if host not in own:
    print("asked", event, host, file=sys.stderr, flush=True)
    os._exit(97)
sys.addaudithook(hook)
sys.argv = ["stage", *sys.argv[2:]]
"""
LAUNCH = "from experiments import _launch\n_launch.main('{}')"
PREPARE = """
from llm_jax.data import pydocs
few = ("textwrap", "bisect", "heapq", "shlex", "string", "statistics", "fnmatch", "glob")
listed = [m for m in pydocs.modules() if m.name in few or m.topic]
pydocs.modules = lambda seed: listed
"""


def guarded(code, *words):
  environment = os.environ | {"LLM_JAX_FAULT": ""}
  # What a proxy would hide from the guard goes to it in the open.
  environment = {k: v for k, v in environment.items() if not k.lower().endswith("_proxy")}
  return subprocess.run(
    [sys.executable, "-c", GUARD + code, "-", *words],
    cwd=ROOT, env=environment, capture_output=True, text=True,
  )  # fmt: skip


@pytest.mark.parametrize(
  "code",
  [
    "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
    "import socket; socket.create_connection(('example.invalid', 80))",
    "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
    "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass",
  ],
)
def test_the_guard_ends_who_asks(code):
  done = guarded(code)
  assert done.returncode == 97 and done.stderr.startswith("asked socket.")


def test_the_guard_lets_this_machine_talk_to_itself():
  code = "import socket; s = socket.create_server(('127.0.0.1', 0))\n"
  code += "socket.create_connection(s.getsockname()); print('heard')"
  assert guarded(code).stdout == "heard\n"


@pytest.mark.long
def test_a_corpus_and_training_on_it_ask_for_nothing(tmp_path):
  prepared, small = tmp_path / "prepare", ["--config.vocab_size=600", "--config.workers=1"]
  stage = PREPARE + LAUNCH.format("prepare")
  done = guarded(stage, f"--workdir={prepared}", *small, "--config.validation=0.3")
  assert done.returncode == 0, done.stderr
  tiny = [f"--config.prepared={prepared}", "--config.steps=2", "--config.batch=8"]
  tiny += ["--config.length=64", "--config.eval_every=2", "--config.checkpoint_every=2"]
  shape = [f"--config.model.{name}" for name in ("dim=16", "layers=1", "heads=2")]
  done = guarded(LAUNCH.format("pretrain"), f"--workdir={tmp_path / 'a'}", *tiny, *shape)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "a" / "metrics.jsonl").exists()
