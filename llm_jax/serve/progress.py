"""How far a run is: the state of each stage, its key figures, and the files that it has written."""

import pathlib
import time
from typing import Any

from llm_jax.serve.workdirs import as_object, first_rows, last_rows, read_json
from llm_jax.stages.pipeline import ORDER
from llm_jax.train import checkpoint
from llm_jax.train.curves import number

_QUIET = 180.0  # Seconds without a new line after which a stage counts as stopped.
# The file that a stage without training steps writes last.
_LAST_FILE = {
  "prepare": "manifest.json", "preferences": "counts.json", "evaluate": "evaluate.json",
}  # fmt: skip
TITLES = {
  "prepare": "Prepare the corpus",
  "pretrain": "Pretrain",
  "sft": "Fine-tune on answers",
  "preferences": "Collect preferences",
  "reward": "Reward model",
  "reward_shuffled": "Control: shuffled labels",
  "dpo": "DPO",
  "ppo": "PPO",
  "grpo": "GRPO",
  "online_dpo": "Online DPO",
  "rejection": "Rejection sampling",
  "evaluate": "Evaluate",
}
# The figures that say most about a stage, of the last row that has them: name, label, unit.
_FIGURES = {
  "pretrain": (("eval/bits_per_byte", "bits per byte, held out", ""), ("loss", "loss", "nats")),
  "sft": (("eval/loss", "loss, held out", "nats"), ("loss", "loss", "nats")),
  "reward": (("eval/accuracy", "accuracy, held out", "%"), ("accuracy", "accuracy", "%")),
  "dpo": (("rewards/accuracies", "reward accuracy", "%"), ("rewards/margins", "margin", "nats")),
  "ppo": (("objective/scores", "score", ""), ("objective/kl", "KL to the reference", "nats")),
}
_WINS = ("dpo_vs_sft", "ppo_vs_sft")
_ALIKE = {"reward_shuffled": "reward", "grpo": "ppo", "online_dpo": "dpo", "rejection": "sft"}


def pipeline(root: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the stages of a run in order, each {"name", "title", "state", "seconds", "done",
  "figures"}.

  "state" is "waiting", "running", "stopped" or "done"; "done" the share of its steps; "figures"
  are {"label", "value", "unit"}.
  """
  if not root.is_dir():
    return []
  config, seconds = read_json(root / "config.json"), read_json(root / "time.json").get("seconds")
  planned = [name for name in ORDER if name.removesuffix("_shuffled") in config]
  there = [p for p in root.iterdir() if p.is_dir() and (p / "config.json").exists()]
  others = sorted((p for p in there if p.name not in planned), key=_begun)
  names = planned + [p.name for p in others]
  return [_stage(root / name, name, as_object(seconds)) for name in names]


def examples(root: pathlib.Path, prepared: str, most: int = 8) -> dict[str, Any]:
  """Something to begin with: held-out questions, and pairs of each kind of a run's preferences.

  Returns:
    {"questions": [text], "pairs": [{"kind", "prompt", "chosen", "rejected"}]}; [] of what is not
    there.
  """
  asked = first_rows(pathlib.Path(prepared) / "questions" / "validation.jsonl", most)
  pairs: dict[str, dict[str, Any]] = {}
  for row in first_rows(root / "preferences" / "validation.jsonl", 50):
    kind = str(row.get("kind", ""))
    texts = {key: _text(row.get(key)) for key in ("prompt", "chosen", "rejected")}
    if all(texts.values()):
      pairs.setdefault(kind, {"kind": kind.replace("_", " ")} | texts)
  questions = [text for row in asked if (text := _text(row.get("prompt")))]
  return {"questions": questions, "pairs": list(pairs.values())[:most]}


def _text(value: Any) -> str:
  """A text, that of {"text": ...}, or ""."""
  found = value.get("text") if isinstance(value, dict) else value
  return found if isinstance(found, str) else ""


def _begun(path: pathlib.Path) -> tuple[int, float]:
  rank = list(ORDER).index(path.name) if path.name in ORDER else len(ORDER)
  return rank, (path / "config.json").stat().st_mtime


def _stage(path: pathlib.Path, name: str, seconds: dict[str, Any]) -> dict[str, Any]:
  state, share = _state(path, name)
  family = _ALIKE.get(name, name)
  return {
    "name": name,
    "title": TITLES.get(name, name),
    "state": state,
    "done": share,
    "seconds": number(seconds.get(name)),
    "figures": _counts(path, name) or _last_figures(path, _FIGURES.get(family, ())),
  }


def _state(path: pathlib.Path, name: str) -> tuple[str, float]:
  if not (path / "config.json").exists():
    return "waiting", 0.0
  last = _LAST_FILE.get(name)
  steps = read_json(path / "config.json").get("steps")
  if last or not isinstance(steps, int) or steps < 1:
    finished = (path / last).exists() if last else (path / "summary.json").exists()
    return ("done", 1.0) if finished else (_alive(path), 0.0)
  saved = checkpoint.latest_step(path / "checkpoints") or 0
  rows = last_rows(path / "metrics.jsonl", 4096)
  step = max([saved, *(row["step"] for row in rows if isinstance(row.get("step"), int))])
  if saved >= steps:
    return "done", 1.0
  return _alive(path), min(step / steps, 1.0)


def _alive(path: pathlib.Path) -> str:
  """A stage that writes nothing for long has stopped; preparing and compiling take a while."""
  newest = max((p.stat().st_mtime for p in path.iterdir()), default=0.0)
  return "running" if time.time() - newest < _QUIET else "stopped"


def _last_figures(path: pathlib.Path, wanted: tuple) -> list[dict[str, Any]]:
  rows = last_rows(path / "metrics.jsonl")
  found = []
  for key, label, unit in wanted:
    seen = (number(row.get(key)) for row in reversed(rows))
    value = next((value for value in seen if value is not None), None)
    found += [{"label": label, "value": value, "unit": unit}] if value is not None else []
  return found


def _counts(path: pathlib.Path, name: str) -> list[dict[str, Any]]:
  if name == "prepare":
    splits = as_object(read_json(path / "manifest.json").get("splits"))
    total = {
      key: sum(_whole(as_object(part).get(key)) for part in splits.values())
      for key in ("documents", "tokens")
    }
    return [{"label": key, "value": value, "unit": ""} for key, value in total.items() if value]
  if name == "preferences":
    pairs = as_object(read_json(path / "counts.json").get("pairs"))
    return [
      {"label": f"pairs, {split}", "value": sum(map(_whole, as_object(kinds).values())), "unit": ""}
      for split, kinds in pairs.items()
    ]
  if name == "evaluate":
    rates = as_object(read_json(path / "evaluate.json").get("win_rates"))
    wins = {name: number(as_object(rates.get(name)).get("rate")) for name in _WINS}
    return [
      {"label": name.replace("_vs_", " wins over "), "value": rate, "unit": "%"}
      for name, rate in wins.items()
      if rate is not None
    ]
  return []


def _whole(value: Any) -> int:
  return value if isinstance(value, int) else 0
