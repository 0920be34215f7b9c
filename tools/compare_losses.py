"""Our losses, advantages and divergences beside the peers', number by number.

python -m tools.compare_losses --peer=trl-0.24=venv24/bin/python --peer=tunix-0.1.7=venvt/bin/python

A peer runs in an environment of its own (`pip install torch trl==0.24.0`,
`trl==1.12.0`, `google-tunix==0.1.7`; a CPU will do), gets the same random inputs, and the table has
the largest difference relative to the largest value. Where a convention differs, the row names the
keyword of ours that follows the peer's. Exit code 1 if a difference exceeds --tolerance.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from llm_jax.errors import UserError, nearest
from llm_jax.losses import preference, returns, token
from tools import _figures

PEERS = ("trl-0.24", "trl-1.12", "tunix-0.1.7")
BETA, SMOOTHING, GAMMA, DISCOUNT, LAM, GROUP = 0.1, 0.2, 0.5, 0.97, 0.9, 4


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--peer", action="append", default=[], help="NAME=python of its environment")
  parser.add_argument("--seed", type=int, default=0, help="of the inputs")
  parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  options = parser.parse_args(argv)
  worst: list[float] = []

  def measure() -> dict:
    found = compare(options.peer, options.seed)
    worst.extend(row["difference"] for row in found["rows"])
    return found

  code = _figures.finish(measure, table, options.json)
  return code or int(max(worst, default=0.0) > options.tolerance)


def compare(peers: list[str], seed: int) -> dict:
  """Returns a row for each function of each peer.

  Raises:
    UserError: if a peer is unknown, cannot be run, or fails.
  """
  if not peers:
    raise UserError(f"--peer is missing: NAME=PYTHON, of {', '.join(PEERS)}")
  given, rows = inputs(seed), []
  for word in peers:
    name, _, python = word.partition("=")
    if name not in PEERS or not python:
      raise UserError(f"--peer={word} must be NAME=PYTHON{nearest(name, PEERS)}")
    theirs = _run(name, python, given)
    for key, (keyword, ours) in OURS[name].items():
      difference = np.abs(np.asarray(ours(given)) - theirs[key]).max()
      scale = max(float(np.abs(theirs[key]).max()), 1.0)
      rows.append({"peer": name, "what": key, "ours": keyword, "difference": difference / scale})
  return {"seed": seed, "rows": json.loads(json.dumps(rows, default=float))}


def inputs(seed: int) -> dict[str, np.ndarray]:
  """Log-probs of answers, rewards with gaps, scores in groups."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape, scale=1.0: rng.normal(scale=scale, size=shape).astype(np.float32)  # noqa: E731
  pairs = 64
  given = {"chosen": -40 + normal(pairs, scale=9), "rejected": -42 + normal(pairs, scale=9)}
  given |= {f"ref_{side}": given[side] + normal(pairs, scale=4) for side in ("chosen", "rejected")}
  given["mismatched"] = -50 + normal(pairs, scale=9)
  given["ref_mismatched"] = given["mismatched"] - 1 + normal(pairs, scale=2)
  given |= {name: normal(8, 24) for name in ("rewards", "values")}
  given["logps"] = -2 + normal(8, 24)
  given["ref_logps"] = given["logps"] + normal(8, 24, scale=0.5)
  # A prompt, an answer that may have a gap (a tool's turn) in it, and padding.
  mask = np.zeros((8, 24), np.float32)
  for row in range(8):
    mask[row, 3 : rng.integers(12, 25)] = 1
    mask[row, 6 : rng.integers(6, 10)] = 0
  given |= {"mask": mask, "scores": normal(32), "group": np.int32(GROUP)}
  numbers = {"beta": BETA, "smoothing": SMOOTHING, "gamma": GAMMA, "discount": DISCOUNT, "lam": LAM}
  return given | {name: np.float32(value) for name, value in numbers.items()}


def table(found: dict) -> str:
  """The rows as Markdown."""
  lines = ["| peer | theirs | ours | largest difference |", "|---|---|---|--:|"]
  for row in found["rows"]:
    lines.append(f"| {row['peer']} | {row['what']} | {row['ours']} | {row['difference']:.1e} |")
  return "\n".join(lines)


def _run(name: str, python: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  script = pathlib.Path(__file__).with_name("_peer_losses.py")
  with tempfile.TemporaryDirectory() as scratch:
    source, target = (pathlib.Path(scratch) / f"{part}.npz" for part in ("in", "out"))
    np.savez(source, **given)
    command = [python, str(script), name, str(source), str(target)]
    try:
      done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
      raise UserError(f"--peer={name}={python} cannot be started: {error.strerror}") from error
    if done.returncode:
      last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
      raise UserError(f"--peer={name}={python} failed: {last}")
    with np.load(target) as arrays:
      return dict(arrays)


def _pair(fn: Callable, **options) -> Callable:
  """A loss on log-ratios."""

  def ours(g: dict):
    ratios = (jnp.asarray(g[side] - g[f"ref_{side}"]) for side in ("chosen", "rejected"))
    return fn(*ratios, **options)

  return ours


def _bco(g: dict):
  ratios = [jnp.asarray(g[side] - g[f"ref_{side}"]) for side in ("chosen", "rejected")]
  return preference.bco_pair(*ratios, beta=BETA, baseline=jnp.concatenate(ratios).mean())


def _kto(g: dict):
  ratios = [jnp.asarray(g[side] - g[f"ref_{side}"]) for side in ("chosen", "rejected")]
  baseline = jnp.maximum(jnp.mean(g["mismatched"] - g["ref_mismatched"]), 0.0)
  loss = functools.partial(preference.kto, beta=BETA, undesirable_weight=0.7)
  both = [
    loss(ratio, jnp.full_like(ratio, wanted), jnp.full_like(ratio, baseline))
    for ratio, wanted in zip(ratios, (1.0, 0.0), strict=True)
  ]
  return jnp.concatenate(both)


def _means(fn: Callable, **options) -> Callable:
  """A loss on log-probs a token."""
  return lambda g: fn(jnp.asarray(g["chosen"] / 50), jnp.asarray(g["rejected"] / 50), **options)


def _gae(part: int) -> Callable:
  return lambda g: returns.gae(
    *(jnp.asarray(g[name]) for name in ("rewards", "values", "mask")), gamma=DISCOUNT, lam=LAM
  )[part]


def _whiten(**options) -> Callable:
  return lambda g: returns.whiten(jnp.asarray(g["rewards"]), jnp.asarray(g["mask"]), **options)


def _groups(fn: Callable, **options) -> Callable:
  return lambda g: fn(jnp.asarray(g["scores"]).reshape(-1, GROUP), **options).reshape(-1)


def _kl(estimator: str) -> Callable:
  return lambda g: token.kl(jnp.asarray(g["logps"]), jnp.asarray(g["ref_logps"]), estimator)


# What a peer calls it -> (what it is here, with the keyword that follows the peer, a function).
OURS: dict[str, dict[str, tuple[str, Callable]]] = {
  "trl-0.24": {
    "sigmoid": ("logistic(beta)", _pair(preference.logistic, beta=BETA)),
    "sigmoid smooth": (
      "logistic(beta, smoothing)", _pair(preference.logistic, beta=BETA, smoothing=SMOOTHING)
    ),
    "robust smooth": (
      "robust(beta, smoothing)", _pair(preference.robust, beta=BETA, smoothing=SMOOTHING)
    ),
    "exo_pair smooth": (
      "exo_pair(beta, smoothing)", _pair(preference.exo_pair, beta=BETA, smoothing=SMOOTHING)
    ),
    "hinge": ("hinge(beta)", _pair(preference.hinge, beta=BETA)),
    "ipo": ("ipo(beta), config.average=False", _pair(preference.ipo, beta=BETA)),
    "bco_pair": ("bco_pair(beta, baseline), theirs over beta", _bco),
    "sppo_hard": ("sppo_hard(beta)", _pair(preference.sppo_hard, beta=BETA)),
    "nca_pair": ("nca(beta)", _pair(preference.nca, beta=BETA)),
    "apo_zero": ("apo_zero(beta)", _pair(preference.apo_zero, beta=BETA)),
    "apo_down": ("apo_down(beta)", _pair(preference.apo_down, beta=BETA)),
    "discopop": ("discopop(beta, tau)", _pair(preference.discopop, beta=BETA, tau=0.05)),
    "simpo": ("simpo(beta, gamma)", _means(preference.simpo, beta=BETA, gamma=GAMMA)),
    "orpo": ("orpo()", _means(preference.orpo)),
    "kto": ("kto(beta, undesirable_weight)", _kto),
  },
  "trl-1.12": {
    "masked_mean": (
      "types.masked_mean", lambda g: (g["rewards"] * g["mask"]).sum() / g["mask"].sum()
    ),
    "whiten": ("whiten(ddof=1)", _whiten()),
    "whiten, mean kept": ("whiten(shift_mean=False)", _whiten(shift_mean=False)),
  },
  "tunix-0.1.7": {
    "gae": (
      'whiten(gae(gaps="carry"))',
      lambda g: returns.whiten(_gae(0)(g), jnp.asarray(g["mask"])),
    ),
    "gae returns": ('gae(gaps="carry")', _gae(1)),
    "whiten": ("whiten(ddof=1)", _whiten()),
    "group_advantage": ("group_advantage(eps=1e-6)", _groups(returns.group_advantage)),
    "dr_grpo": ("group_advantage(scale=False)", _groups(returns.group_advantage, scale=False)),
    "rloo": ("rloo_advantage()", _groups(returns.rloo_advantage)),
    "k1": ("kl(k1)", _kl("k1")),
    "k2": ("kl(k2)", _kl("k2")),
    "k3": ("kl(k3)", _kl("k3")),
  },
}  # fmt: skip


if __name__ == "__main__":
  sys.exit(main())
