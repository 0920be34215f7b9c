"""A sweep of small pretrainings that a scaling law is fitted to."""

import dataclasses
import math
import re
from dataclasses import field

from llm_jax.config.training import Pretrain
from llm_jax.errors import UserError


@dataclasses.dataclass
class ScalingLaw:
  """Models of several sizes, each at several budgets of FLOPs, trained to the end of its schedule.

  A run's tokens are what its budget leaves, C / (6 N); all else is `pretrain`.
  """

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"  # A directory that `experiments.prepare` wrote.
  sizes: tuple[str, ...] = ("32x2", "48x2", "64x3", "96x3", "128x4", "160x5")  # Width x layers.
  budgets: tuple[str, ...] = ("5e11", "1e12", "2e12", "4e12")  # FLOPs, 6 N D.
  head_dim: int = 32  # A width has as many heads of it as fit.
  least_steps: int = 40  # Runs of fewer updates are left out.
  most_epochs: float = 4.0  # And those that would read the corpus more often (arXiv:2305.16264).
  held_out: float = 0.25  # Share of the runs that the law is judged by, and not fitted to.
  bootstrap: int = 200  # Fits for the intervals.
  pretrain: Pretrain = field(default_factory=Pretrain)

  def validate(self) -> None:
    """Checks sizes, budgets and what all runs share.

    Raises:
      UserError: one line that names the field.
    """
    self.shapes()
    self.flops()
    if not 0 <= self.held_out < 1 or self.bootstrap < 0 or self.least_steps < 1:
      raise UserError(
        "config.held_out must be in [0, 1), config.bootstrap not negative and config.least_steps "
        f"at least 1, got {self.held_out}, {self.bootstrap} and {self.least_steps}"
      )
    if self.head_dim < 1 or self.most_epochs <= 0:
      raise UserError(
        "config.head_dim must be at least 1 and config.most_epochs above 0, got "
        f"{self.head_dim} and {self.most_epochs}"
      )
    for name in ("seed", "prepared"):
      if getattr(self.pretrain, name) != getattr(Pretrain(), name):
        raise UserError(f"config.pretrain.{name} is filled in: set config.{name}")
    self.pretrain.validate()

  def shapes(self) -> list[tuple[int, int]]:
    """Returns (width, layers) of each size.

    Raises:
      UserError: for what is none.
    """
    found = []
    for text in self.sizes:
      match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
      if not match or not int(match[1]) or not int(match[2]):
        raise UserError(f'config.sizes: "{text}" must be width x layers, such as 64x3')
      if int(match[1]) % self.heads(int(match[1])):
        raise UserError(f'config.sizes: the width of "{text}" must be a multiple of its heads')
      found.append((int(match[1]), int(match[2])))
    if len(set(found)) < 3 or len(set(found)) < len(found):
      raise UserError(f"config.sizes={self.sizes} must be three sizes or more, each once")
    return found

  def heads(self, width: int) -> int:
    """Returns the heads of a width."""
    return max(1, width // max(1, self.head_dim))

  def flops(self) -> list[float]:
    """Returns the budgets, least first.

    Raises:
      UserError: for what is none.
    """
    try:
      found = sorted(float(text) for text in self.budgets)
    except ValueError:
      found = []
    named = {f"{x:.3g}" for x in found}  # As in the names of runs.
    if len(found) < 2 or len(named) < len(found) or not all(0 < x < math.inf for x in found):
      raise UserError(
        f"config.budgets={self.budgets} must be two numbers of FLOPs or more, which differ in three"
        " digits"
      )
    return found
