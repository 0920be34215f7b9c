"""Runs the quickstart with several seeds and prints each check's mean over them.

python -m tools.seeds --out=runs/seeds --seeds=0,1,2
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys


def main(argv: list[str] | None = None) -> int:
  """Runs what is missing, one seed after the other, then prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/seeds"))
  parser.add_argument("--seeds", default="0,1,2")
  options, flags = parser.parse_known_args(argv)
  if own := [flag for flag in flags if flag.startswith(("--workdir", "--config.seed"))]:
    print(
      f"error: {own[0]}: --out and --seeds say where runs go and what seeds they have",
      file=sys.stderr,
    )
    return 2
  summaries = []
  for seed in options.seeds.split(","):
    workdir = options.out / f"seed{seed}"
    if not (workdir / "summary.json").exists():
      command = ["-m", "experiments.pipeline", f"--workdir={workdir}", f"--config.seed={seed}"]
      code = subprocess.run([sys.executable, *command, *flags], check=False).returncode
      if code:
        return code
    summaries.append(json.loads((workdir / "summary.json").read_text()))
  print(table(summaries))
  return 0


def table(summaries: list[dict]) -> str:
  """One row a check: its target, the figure of every seed, the mean, and whether the mean holds."""
  seeds = " | ".join(f"seed {s['seed']}" for s in summaries)
  lines = [f"| figure | target | {seeds} | mean |", "|---|---|" + "--:|" * (len(summaries) + 1)]
  for rows in zip(*(s["checks"] for s in summaries), strict=True):
    values = [row["value"] for row in rows]
    cells = " | ".join(f"{v:.3f}" for v in [*values, statistics.fmean(values)])
    lines.append(f"| {rows[0]['name']} | {rows[0]['target']} | {cells} |")
  for name, key in (("seconds", "time"), ("peak memory, GiB", "peak_memory_gib")):
    values = [s[key]["total"] if key == "time" else s[key] for s in summaries]
    cells = " | ".join(f"{v:.1f}" for v in [*values, statistics.fmean(values)])
    lines.append(f"| {name} | | {cells} |")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
