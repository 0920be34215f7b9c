"""The launcher behind every experiment: flags, one-line errors, the run's directory, the stage.

JAX is imported with the stage, after the command line was found good, so errors come at once.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from experiments import _fields, _plan
from llm_jax import rundir
from llm_jax.errors import UserError, nearest
from llm_jax.train import allocator, compiling, distributed, gpu_settings

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
FLAG_HELP = {
  "config": "a file with get_config(), or file.py:variant; then --config.FIELD=VALUE sets a field",
  "workdir": "where the run is written; the same command again continues it",
  "dry_run": "print the resolved config, parameters, FLOPs and memory; run nothing",
  "profile": "10:13 traces steps 10, 11 and 12 of each training into profile/ of its directory",
  "rewind_to": "a step with a checkpoint, or healthy: the run goes back to it once, and on",
  "skip_batches": "400:450 leaves out batches 400 to 449 from --rewind_to on",
  "coordinator": "host:port of process 0, the same for all processes of a run (docs/cluster.md)",
  "num_processes": "how many processes there are; 1: this one is alone",
  "process_id": "the number of this one, from 0",
  "start_timeout": "seconds in which all of them must come",
  "help": "print this and leave",
}
SHARED = ("pretrain", "sft", "reward", "dpo")  # Stages that many processes may run together.


def main(
  stage: str,
  argv: Sequence[str] | None = None,
  after: Callable[[str], None] | None = None,
  *,
  config: str = "",
  swap: Mapping[str, Any] | None = None,
) -> None:
  """Runs `llm_jax.stages.<stage>.run(cfg, workdir, **swap)` as the command line says, then exits.

  Args:
    stage: name of the module in llm_jax.stages.
    argv: the words, the program's name first; sys.argv if None.
    after: called with the workdir once the stage is done.
    config: the file with get_config() that --config stands for; "": configs/<stage>.py.
    swap: what the stage takes in the place of its own parts, such as {"loss": a function}.

  Exit codes: 0 done, 1 unexpected error (with its traceback), 2 bad input (one line on stderr),
  130 interrupted.
  """
  if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _excepthook
  words = list(sys.argv if argv is None else argv)
  path = config or str(CONFIGS / f"{stage}.py")
  code = _guarded(lambda: _launch(stage, words, path, after, dict(swap or {})))
  if code:
    distributed.leave(code)
  sys.exit(code)


def _excepthook(*error: Any) -> None:
  """Prints a traceback as Python does, but for passwords and keys, which a message may quote."""
  sys.stderr.write(rundir.redact("".join(traceback.format_exception(*error))))


def _guarded(run: Callable[[], None]) -> int:
  try:
    run()
  except UserError as error:
    # It may quote a flag, which others may read in a log.
    print("error:", rundir.redact(" ".join(str(error).split())), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
    return 130
  except BrokenPipeError:  # The reader of our output left, as in `... --help | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  return 0


def _launch(
  stage: str,
  argv: list[str],
  path: str,
  after: Callable[[str], None] | None,
  swap: dict[str, Any],
) -> None:
  path = config_path(argv) or path
  default = load_config(path)
  if {"-h", "-help", "--help", "--helpfull", "--helpshort"} & set(argv[1:]):
    print(usage(stage, default))
    return
  _fields.check_overrides(argv[1:], default)
  cfg, workdir, dry_run, profile, join, overrides, back = parse(argv, path, default)
  _fields.validate(cfg)
  steps = profiled(profile, stage, cfg)
  if dry_run:
    print(rundir.redact(_plan.describe(stage, cfg)))
    return
  if not workdir:
    raise UserError(f"--workdir is missing; for example --workdir=runs/{stage}")
  allocator.huge_pages()
  _quiet_libraries()
  settings = gpu_settings.apply()  # XLA reads them when it starts.
  many = _start(stage, join) > 1
  gpu_settings.announce(settings, many)
  settings |= compiling.cache(many)
  with _first(many, lambda: rundir.launch(cfg, workdir, overrides, argv, settings)):
    module = importlib.import_module(f"llm_jax.stages.{stage}")
    _rewind(stage, cfg, workdir, **back)
    with _profiling(steps):
      module.run(cfg, workdir, **swap)
  if after:
    after(workdir)


def load_config(path: str) -> Any:
  """Returns what get_config() of the file gives; "file.py:variant" hands on the variant.

  Raises:
    UserError: if there is no such file or variant, or if it does not give a dataclass.
  """
  name, *variant = path.split(":", 1)
  file = pathlib.Path(name)
  if file.is_dir():
    known = ", ".join(sorted(p.stem for p in file.glob("[!_]*.py")))
    raise UserError(f"--config must name a file of configs/{file.name}/; there are: {known}")
  if not file.is_file():
    own = file.parent if file.parent.resolve().parent == CONFIGS else CONFIGS
    known = nearest(file.stem, [p.stem for p in own.glob("[!_]*.py")])
    raise UserError(f"--config={path}: no file {name}{known}")
  module_spec = importlib.util.spec_from_file_location("_config_of_launch", file)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f"--config={path}: {name} is no Python file")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    cfg = module.get_config(*variant)
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"--config={path}: {type(error).__name__}: {error}") from error
  if not dataclasses.is_dataclass(cfg) or isinstance(cfg, type):
    raise UserError(f"--config={path}: get_config() must return a dataclass of llm_jax.config")
  return cfg


def config_path(argv: Sequence[str]) -> str:
  """Returns the last --config of a command line, or ""; absl reads it after the fields.

  Raises:
    UserError: if it has no value.
  """
  path, words = "", list(argv[1:])
  for word, following in zip(words, [*words[1:], ""], strict=False):
    flag, equals, value = word.partition("=")
    if flag in ("--config", "-config"):
      path = value if equals else following
      if not path or path.startswith("-"):
        raise UserError("--config needs a value: a file with get_config(), or file.py:variant")
  return path


class Command(NamedTuple):
  """A command line: what its flags say, and the fields that it set, dotted name -> value."""

  cfg: Any
  workdir: str
  dry_run: bool
  profile: str
  join: dict[str, Any]
  overrides: dict[str, Any]
  rewind: dict[str, Any]


def parse(
  argv: Sequence[str], path: str, default: Any, values: flags.FlagValues | None = None
) -> Command:
  """Reads a command line.

  Args:
    argv: the words, the program's name first.
    path: the config file, if the command line names none.
    default: what the file gives; its values have the types that errors name.
    values: where the flags are defined; None: the program's own.

  Raises:
    UserError: for an unknown flag, a value of the wrong type or a stray word.
  """
  values = flags.FLAGS if values is None else values
  try:
    holder = config_flags.DEFINE_config_file(
      "config", path, FLAG_HELP["config"], values, sys_argv=list(argv)
    )
    for name in ("workdir", "profile", "coordinator", "rewind_to", "skip_batches"):
      flags.DEFINE_string(name, "", FLAG_HELP[name], values)
    for name, usual in (("num_processes", None), ("process_id", None), ("start_timeout", 300)):
      flags.DEFINE_integer(name, usual, FLAG_HELP[name], flag_values=values)
    flags.DEFINE_bool("dry_run", False, FLAG_HELP["dry_run"], values)
    stray = values(list(argv))[1:]
  except flags.UnrecognizedFlagError as error:
    name, *rest = error.flagname.split(".", 1)
    hint = nearest(name, FLAG_HELP).replace('"', '"--', 1)
    hint = hint.replace('"?', f'.{rest[0]}"?') if rest else hint
    raise UserError(f"unknown flag --{error.flagname}{hint}") from error
  except flags.Error as error:
    raise UserError(_flag_message(error, default)) from error
  if stray:
    raise UserError(f'unexpected word "{stray[0]}"; a field is set with --config.FIELD=VALUE')
  overrides = config_flags.get_override_values(values["config"])
  join = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
  join["timeout"] = values.start_timeout
  return Command(
    holder.value, values.workdir, values.dry_run, values.profile, join, dict(overrides),
    {"to": values.rewind_to, "skip": values.skip_batches},
  )  # fmt: skip


def profiled(text: str, stage: str, cfg: Any) -> range | None:
  """Returns the steps that --profile=`text` names; None of "".

  Raises:
    UserError: if these are no steps, a training does not have them, or nothing is trained.
  """
  if not text:
    return None
  match = re.fullmatch(r"(\d+):(\d+)", text)
  steps = range(int(match[1]), int(match[2])) if match else range(0)
  if not steps or steps.start < 2:
    raise UserError(
      f"--profile={text}: two numbers are needed, the first at least 2 (step 1 compiles) and below "
      "the second: --profile=10:13 traces steps 10, 11 and 12"
    )
  trained = _plan.stages(stage, cfg)
  if not trained:
    raise UserError(f"--profile={text}: experiments.{stage} trains nothing, leave it out")
  for name, part in trained.items():
    if steps[-1] > part.steps:
      field = "config.steps" if part is cfg else f"config.{name}.steps"
      raise UserError(f"--profile={text}: there is no step {steps[-1]}, {field}={part.steps}")
  return steps


def usage(stage: str, cfg: Any) -> str:
  """Returns the text of --help: the flags and every field with its value in the config."""
  text = sys.modules["__main__"].__doc__ or f"python -m experiments.{stage} --workdir=DIR"
  lines = [text.strip(), "", "Flags:"]
  lines += [f"  --{name:<13} {help_text}" for name, help_text in FLAG_HELP.items()]
  fields = rundir.flatten(dataclasses.asdict(cfg))
  lines += ["", "Fields and their values:"]
  lines += [f"  --config.{name}={json.dumps(value)}" for name, value in fields.items()]
  return "\n".join(lines)


def _flag_message(error: flags.Error, cfg: Any) -> str:
  """absl's message in one line; of a wrong type, what the field takes."""
  line = " ".join(str(error).split()).removeprefix("flag ")
  match = re.match(r"--config\.([\w.]+)=(.*?): ", line)
  if not match or not isinstance(error, flags.IllegalFlagValueError):
    return line
  return f"--config.{match[1]}={match[2]}: config.{match[1]} takes {_fields.takes(cfg, match[1])}"


def _profiling(steps: range | None) -> contextlib.AbstractContextManager:
  """Where the loop finds which steps to trace: no field of the config, so a run can go on."""
  if steps is None:
    return contextlib.nullcontext()
  from llm_jax.train import profile

  return profile.steps(steps)


def _rewind(stage: str, cfg: Any, workdir: str, to: str, skip: str) -> None:
  """Takes a run back, if that is asked for.

  Raises:
    UserError: if it trains several models or none, or has no such checkpoint.
  """
  from llm_jax.train import processes, rewind

  numbers = rewind.parse(skip)
  if not to:
    if skip:
      raise UserError(f"--skip_batches={skip} needs --rewind_to, the step from which they go")
    return
  if not any(part is cfg for part in _plan.stages(stage, cfg).values()):
    raise UserError(f"--rewind_to={to}: give it to a stage's own experiment, not to {stage}")
  processes.first(lambda: rewind.apply(workdir, to, numbers))


def _start(stage: str, join: Mapping[str, Any]) -> int:
  """Joins the other processes of this run; returns how many there are."""
  if stage not in SHARED and (found := distributed.find(**join)):
    raise UserError(
      f"experiments.{stage} runs in one process, and this is one of {found.count}: start it alone, "
      "or with --num_processes=1 if each is to have a run of its own"
    )
  return distributed.start(**join)


@contextlib.contextmanager
def _first(many: bool, context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
  """The context of a run, which the first of many processes enters before any goes on."""
  with contextlib.ExitStack() as stack:
    if many:
      from llm_jax.train import processes

      processes.first(lambda: stack.enter_context(context()))
    else:
      stack.enter_context(context())
    yield


def _quiet_libraries() -> None:
  """Keeps the libraries' INFO chatter off the terminal; warnings and errors still show."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  for name in ("absl", "jax", "orbax", "grain", "tensorflow_datasets", "trafilatura"):
    logging.getLogger(name).setLevel(logging.WARNING)
