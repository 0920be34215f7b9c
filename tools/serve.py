"""The models of a run behind OpenAI's interface, on this machine.

python -m tools.serve --workdir=runs/quickstart
python -m tools.serve --workdir=runs/quickstart --port=8001 --rows=64 --prompt=1024

  curl http://127.0.0.1:8000/v1/models
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "ppo", "messages": [{"role": "user", "content": "What is itertools.chain?"}]}'

Every stage of the run that trained a language model is served by its name, and loaded when it is
first asked for. If the environment variable LLM_JAX_TOKEN is set, clients must send it ("api_key"
of OpenAI's client). Other machines are served with --bind, which needs a token, and the name that
they use with --host.
"""

import argparse
import ipaddress
import os
import socket
import sys
import types

from llm_jax.errors import UserError

TOKEN = "LLM_JAX_TOKEN"


def main(argv: list[str] | None = None) -> int:
  """Serves until it is interrupted; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  add_options(parser)
  return run(parser.parse_args(argv), with_page=False)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds what a server needs to know."""
  parser.add_argument("--workdir", required=True, help="a run of the pipeline")
  parser.add_argument("--prepared", default="", help="its corpus; default: WORKDIR/prepare")
  parser.add_argument("--port", type=int, default=8000)
  parser.add_argument("--bind", default="127.0.0.1", help="address to listen at")
  parser.add_argument("--host", action="append", default=[], help="a name that clients use")
  parser.add_argument("--rows", type=int, default=32, help="answers that are drawn together")
  parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt at most")
  parser.add_argument("--max_new", type=int, default=256, help="tokens of an answer at most")


def run(options: argparse.Namespace, with_page: bool) -> int:
  """Serves until it is interrupted, the playground's page too if `with_page`; 2 for bad input."""
  try:
    _serve(options, with_page)
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  return 0


def _serve(options: argparse.Namespace, with_page: bool) -> None:
  token = os.environ.get(TOKEN, "")
  check(options, token)
  try:
    import uvicorn

    from llm_jax.serve import app, guards, playground
  except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing: pip install 'llm_jax[web]'") from error
  from llm_jax.serve.models import Models
  from llm_jax.serve.workdirs import Workdirs
  from llm_jax.train import compiling

  compiling.cache()
  workdirs = Workdirs([options.workdir, *getattr(options, "beside", [])])
  models = Models(
    options.workdir, options.prepared, wait=with_page,
    rows=options.rows, prompt=options.prompt, max_new=options.max_new,
  )  # fmt: skip
  play = playground.make(workdirs, models) if with_page else None
  hosts = (*guards.HOSTS, *options.host)
  application = app.create(models, hosts=hosts, token=token, play=play)
  name = f"[{options.bind}]" if ":" in options.bind else options.bind
  address = f"http://{name}:{options.port}"

  class Server(uvicorn.Server):
    """Lets pages that watch a run go before it waits for all others."""

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
      if play:
        play.closing.set()
      super().handle_exit(sig, frame)

  with _listener(options.bind, options.port) as listener:
    print(f"models: {', '.join(models.names) or 'none yet'}")
    if play:
      print(f"playground: {address}/{f'?token={token}' if token else ''}")
    print(f"{address}/v1", flush=True)
    # Answers that are not done would keep the server from ending.
    settings = uvicorn.Config(
      application, log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )
    Server(settings).run([listener])


def _listener(address: str, port: int) -> socket.socket:
  """A socket that listens.

  Raises:
    UserError: if it cannot.
  """
  family = socket.AF_INET6 if ":" in address else socket.AF_INET
  try:
    return socket.create_server((address, port), family=family)
  except OSError as error:
    raise UserError(f"--bind={address} --port={port}: {error.strerror}; choose another") from error


def check(options: argparse.Namespace, token: str) -> None:
  """Refuses what is out of range, and to serve other machines without a token.

  Raises:
    UserError: naming the option.
  """
  for name in ("rows", "prompt", "max_new"):
    if getattr(options, name) < 1:
      raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
  if not 0 < options.port < 65536:
    raise UserError(f"--port={options.port} must be 1 to 65535")
  try:
    local = ipaddress.ip_address(options.bind).is_loopback
  except ValueError as error:
    raise UserError(f"--bind={options.bind} must be an address, such as 127.0.0.1") from error
  if token and not (token.isascii() and token.isprintable() and " " not in token):
    raise UserError(f"{TOKEN} must be printable ASCII without spaces")
  if not local and not token:
    raise UserError(
      f"--bind={options.bind} serves other machines: set the environment variable {TOKEN} to a "
      "token that clients must send"
    )


if __name__ == "__main__":
  sys.exit(main())
