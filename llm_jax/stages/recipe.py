"""A published pipeline of post-training: its stages in order, each in its own directory."""

import dataclasses
import importlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from llm_jax import config, rundir, spec
from llm_jax.data import examples, posttraining
from llm_jax.data.tokenizers import files as tokenizer_files
from llm_jax.errors import UserError
from llm_jax.stages import pipeline, runs
from llm_jax.train import metrics

_FINISHED = "finished.json"
_QUESTIONS = 256  # Of which examples are made: DPO reads all of them before it begins.
_FILES = ("data", "eval_data", "validation_data", "preferences", "labels")
# Figures of a stage that the table at the end shows, where it has them; all are in summary.json.
_SHOWN = {
  "pretrain": ("eval/bits_per_byte",),
  "sft": ("loss", "eval/loss"),
  "reward": ("loss", "eval/accuracy"),
  "dpo": ("loss", "eval/rewards/accuracies", "eval/rewards/margins"),
  "ppo": ("objective/scores", "objective/kl"),
  "grpo": ("objective/scores", "objective/kl"),
  "online_dpo": ("objective/scores", "objective/kl"),
  "rejection": ("objective/scores", "chosen/scores"),
  "rlaif": ("written", "order_changed"),
}
_LOSSES = {
  "pretrain": "token", "sft": "token", "rejection": "token", "reward": "preference",
  "dpo": "preference", "online_dpo": "preference", "ppo": "policy", "grpo": "policy",
}  # fmt: skip


def run(cfg: config.Recipe, workdir: str) -> dict[str, Any]:
  """Runs all stages and writes `summary.json`; finished stages are not run again.

  Raises:
    UserError: if something is missing or does not fit; what can be found is found before the first
      stage begins.
  """
  root = pathlib.Path(workdir)
  check(cfg)
  stages = cfg.connected(str(root), _with_template(cfg, root))
  if names := _examples(cfg):
    examples.write(root / "examples", names, runs.asked(cfg.prepared, "train")[:_QUESTIONS])
  clock = pipeline.Clock(root / "time.json")
  for name, stage in stages.items():
    directory = root / name
    print(f"== {name}", flush=True)
    with rundir.launch(stage, str(directory)):
      if (directory / _FINISHED).exists():
        print(f"{name}: finished before", flush=True)
        continue
      module = importlib.import_module(f"llm_jax.stages.{module_of(stage)}")
      with clock.measure(name):
        module.run(stage, str(directory))
      rundir.write_json(directory / _FINISHED, {"seconds": clock.seconds[name]})
  result = summarized(cfg, root, clock.seconds)
  rundir.write_json(root / "summary.json", result)
  print("\n" + table(result), flush=True)
  return result


def module_of(stage: Any) -> str:
  """Returns the name of the module that runs a stage: that of its config, OnlineDpo: online_dpo."""
  return re.sub(r"(?<!^)(?=[A-Z])", "_", type(stage).__name__).lower()


def check(cfg: config.Recipe) -> None:
  """Finds what a late stage would refuse, before the first one takes its hours.

  Raises:
    UserError: naming the field.
  """
  cfg.validate()
  for name, stage in cfg.stages().items():
    if isinstance(stage, config.Stage | config.Rlaif):
      _check_stage(name, stage)
    for path, field in _files(stage):
      if not pathlib.Path(path).exists():
        raise UserError(
          f"config.{name}.{field}: {path} is missing; where published data is to be had is in "
          'docs/posttraining.md, "Recipes"'
        )
  examples.check(_examples(cfg))
  tokenizer = runs.tokenizer(cfg.prepared)
  if cfg.template:
    tokenizer.use_template(cfg.template)
  if not (pathlib.Path(cfg.base) / "model.json").exists() and not runs.is_hugging_face(cfg.base):
    raise UserError(
      f"{cfg.base} is neither a run that trained a model nor a folder of Hugging Face: set "
      "--config.base (`make quickstart` makes the usual one)"
    )


def _check_stage(name: str, stage: config.Stage | config.Rlaif) -> None:
  try:
    stage.validate()
  except UserError as error:
    raise UserError(str(error).replace("config.", f"config.{name}.")) from error
  kind = module_of(stage)
  losses = {"loss": _LOSSES.get(kind, ""), "value_loss": "policy"}
  for field, module in losses.items():
    if module and hasattr(stage, field):
      try:
        spec.resolve(getattr(stage, field), f"llm_jax.losses.{module}")
      except UserError as error:
        raise UserError(f"config.{name}.{field}: {error}") from error


def _files(stage: Any) -> Iterator[tuple[str, str]]:
  """Yields the files and folders of data that a stage names, and the fields, without links."""
  for field in _FILES:
    value = getattr(stage, field, ())
    entries = value if isinstance(value, tuple) else filter(None, value.split(","))
    for entry in entries:
      if not entry.strip().startswith("@"):
        (file,) = posttraining.files([entry.strip()], f"config.{field}")
        yield file.path, field


def _examples(cfg: config.Recipe) -> list[str]:
  """Returns the names of the files below @examples that the stages read."""
  return sorted(set(re.findall(r"@examples/([\w.-]+)", json.dumps(dataclasses.asdict(cfg)))))


def _with_template(cfg: config.Recipe, root: pathlib.Path) -> str:
  """Returns a prepared corpus whose tokenizer has the template: `cfg.prepared`, or one like it.

  The other one has links to everything but the tokenizer, which is a copy with that template.
  """
  if not cfg.template or runs.tokenizer(cfg.prepared).template == cfg.template:
    return cfg.prepared
  view = root / "prepared"
  view.mkdir(parents=True, exist_ok=True)
  source = pathlib.Path(cfg.prepared).resolve()
  if not (view / "tokenizer" / "tokenizer.json").exists():  # Written last.
    tokenizer_files.adopt(source / "tokenizer", view / "tokenizer", template=cfg.template)
  for path in source.iterdir():
    if path.name != "tokenizer" and not (view / path.name).exists():
      (view / path.name).symlink_to(path)
  return str(view)


def summarized(cfg: config.Recipe, root: pathlib.Path, seconds: dict[str, float]) -> dict[str, Any]:
  """Returns for each stage its updates, its time, and the last value of everything it measured."""
  found = {}
  for name, stage in cfg.stages().items():
    last: dict[str, Any] = {}
    for row in metrics.read(root / name):
      last |= row
    counts = root / name / "counts.json"
    if counts.exists():
      last |= json.loads(counts.read_text(encoding="utf-8"))
    found[name] = {
      "stage": module_of(stage),
      "steps": last.pop("step", 0),
      "seconds": round(seconds.get(name, 0.0), 1),
      "metrics": {key: value for key, value in last.items() if not key.startswith("time/")},
    }
  return {"recipe": type(cfg).__name__, "seed": cfg.seed, "base": cfg.base, "stages": found}


def table(result: dict[str, Any]) -> str:
  """Returns a summary as a table in Markdown."""
  lines = ["| stage | steps | seconds | at the end |", "|---|--:|--:|---|"]
  for name, found in result["stages"].items():
    shown = [key for key in _SHOWN.get(found["stage"], ()) if key in found["metrics"]]
    figures = ", ".join(f"{key} {_figure(found['metrics'][key])}" for key in shown)
    lines.append(f"| {name} | {found['steps']:,} | {found['seconds']:,.0f} | {figures} |")
  return "\n".join(lines)


def _figure(value: float) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
