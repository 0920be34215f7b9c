"""The peers' side of tools/compare_losses: runs in an environment of theirs, reads and writes .npz.

python _peer_losses.py trl-0.24 | trl-1.12 | tunix-0.1.7 INPUTS.npz OUTPUTS.npz
It needs numpy and the peer, nothing of llm_jax. Outputs that a peer does not have are left out.
"""

import importlib.machinery
import sys
import types
import unittest.mock

import numpy as np


def trl_0_24(given: dict) -> dict:
  """Preference losses, called without their trainers."""
  # Beside transformers 5 this version takes its optional packages for installed, and imports them.
  for name in (
    "mergekit",
    "mergekit.config",
    "mergekit.merge",
    "llm_blender",
    "weave",
    "weave.trace",
    "weave.trace.context",
  ):
    spec = importlib.machinery.ModuleSpec(name, None)
    sys.modules.setdefault(name, unittest.mock.MagicMock(__spec__=spec))
  import torch
  from trl.trainer.cpo_trainer import CPOTrainer
  from trl.trainer.dpo_config import FDivergenceType
  from trl.trainer.dpo_trainer import DPOTrainer
  from trl.trainer.kto_trainer import KTOTrainer
  from trl.trainer.orpo_trainer import ORPOTrainer

  beta, smoothing = float(given["beta"]), float(given["smoothing"])
  names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
  logps = [torch.tensor(given[name]) for name in names]
  running = types.SimpleNamespace(mean=0.0)
  running.update = lambda rewards: setattr(running, "mean", rewards.mean())

  def trainer(**fields):
    own = {"beta": beta, "label_smoothing": 0.0, "reference_free": False, "use_weighting": False}
    own |= {"f_divergence_type": FDivergenceType.REVERSE_KL, "f_divergence_params": {}}
    own |= {"accelerator": types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)}
    own |= {"args": types.SimpleNamespace(discopop_tau=0.05, rpo_alpha=None), "running": running}
    return types.SimpleNamespace(**own | fields)

  out = {}
  for kind in ("hinge", "ipo", "bco_pair", "sppo_hard", "nca_pair", "apo_zero", "apo_down"):
    out[kind] = DPOTrainer.dpo_loss(trainer(), *logps, loss_type=kind)[0]
  out["sigmoid"] = DPOTrainer.dpo_loss(trainer(), *logps, loss_type="sigmoid")[0]
  out["discopop"] = DPOTrainer.dpo_loss(trainer(), *logps, loss_type="discopop")[0]
  for kind in ("sigmoid", "robust", "exo_pair"):
    smooth = trainer(label_smoothing=smoothing)
    out[f"{kind} smooth"] = DPOTrainer.dpo_loss(smooth, *logps, loss_type=kind)[0]
  means = [x / 50 for x in logps[:2]]
  cpo = trainer(loss_type="simpo", simpo_gamma=float(given["gamma"]), alpha=0.0)
  out["simpo"] = CPOTrainer.cpo_loss(cpo, *means)[0]
  out["orpo"] = -ORPOTrainer.odds_ratio_loss(trainer(beta=1.0), *means)[0]
  kto = trainer(calculate_KL=True, loss_type="kto", desirable_weight=1.0, undesirable_weight=0.7)
  mismatched = torch.tensor(given["mismatched"]), torch.tensor(given["ref_mismatched"])
  found = KTOTrainer.kto_loss(
    kto, logps[0], logps[1], mismatched[0], logps[2], logps[3], mismatched[1]
  )
  out["kto"] = found[0]
  return {name: value.numpy() for name, value in out.items()}


def trl_1_12(given: dict) -> dict:
  """What its PPO had as functions."""
  import torch
  from trl.experimental.ppo import ppo_trainer as ppo

  x, mask = torch.tensor(given["rewards"]), torch.tensor(given["mask"]).bool()
  keep = mask.float()
  return {
    "masked_mean": ppo.masked_mean(x, keep).numpy(),
    "whiten": (ppo.masked_whiten(x, keep) * keep).numpy(),
    "whiten, mean kept": (ppo.masked_whiten(x, keep, shift_mean=False) * keep).numpy(),
  }


def tunix_0_1_7(given: dict) -> dict:
  """Advantages and divergences."""
  import jax.numpy as jnp
  from tunix.rl import algo_core, common

  rewards, values, mask = (jnp.asarray(given[name]) for name in ("rewards", "values", "mask"))
  scores, group = given["scores"], int(given["group"])
  gamma, lam = float(given["discount"]), float(given["lam"])
  advantages, returns = algo_core.compute_gae_advantages(rewards, values, mask, gamma, lam)
  whitened = algo_core.masked_whiten(rewards, mask) * mask
  out = {
    "gae": advantages * mask,
    "gae returns": returns * mask,
    "whiten": whitened,
    "group_advantage": algo_core.compute_advantages(scores, group),
    "dr_grpo": algo_core.compute_drgrpo_advantages(jnp.asarray(scores), group),
    "rloo": algo_core.compute_rloo_advantages(jnp.asarray(scores), group),
  }
  logps = jnp.asarray(given["logps"]), jnp.asarray(given["ref_logps"])
  for name, method in (("k1", "kl"), ("k2", "mse_kl"), ("k3", "low_var_kl")):
    out[name] = common.compute_kl_divergence(*logps, method=method)
  return {name: np.asarray(value) for name, value in out.items()}


if __name__ == "__main__":
  peer, source, target = sys.argv[1:]
  found = {"trl-0.24": trl_0_24, "trl-1.12": trl_1_12, "tunix-0.1.7": tunix_0_1_7}[peer]
  with np.load(source) as arrays:
    np.savez(target, **found(dict(arrays)))
