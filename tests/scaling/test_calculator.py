"""What a budget buys, against what was published of well-known runs."""

import numpy as np
import pytest

from llm_jax import config
from llm_jax.scaling import budget, chinchilla, devices, flops

A100 = devices.peak_flops("a100-80")
LAW = chinchilla.PUBLISHED["besiroglu"]


@pytest.mark.parametrize(
  ("params", "tokens", "published"),
  [(174.6e9, 300e9, 3.14e23), (280e9, 300e9, 5.04e23), (70e9, 1.4e12, 5.88e23)],
  ids=["gpt3", "gopher", "chinchilla"],
)
def test_six_flops_a_parameter_and_token(params, tokens, published):
  found = budget.plan(devices=1, peak=1e15, params=params, tokens=tokens)
  assert found.flops == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
  ("params", "hours", "published"),
  [(6.74e9, 184_320, 0.39), (13.02e9, 368_640, 0.38), (68.98e9, 1_720_320, 0.43)],
  ids=["7b", "13b", "70b"],
)
def test_llama_2_reached_what_its_hours_say(params, hours, published):
  found = budget.mfu(params, 2e12, hours, A100)
  assert found == pytest.approx(published, rel=0.01)
  back = budget.plan(devices=2048, peak=A100, mfu=found, params=params, tokens=2e12)
  assert back.device_hours == pytest.approx(hours)
  assert back.days == pytest.approx(hours / 2048 / 24)


@pytest.mark.parametrize(
  ("cfg", "tokens", "published"),
  [
    (config.Model(32_000, 16_384, 80, 128, hidden=65_536, mlp="plain"), 300e9, 5.04e23),
    (config.Model(32_000, 8192, 80, 64, hidden=32_768, mlp="plain"), 1.4e12, 5.88e23),
  ],
  ids=["gopher", "chinchilla"],
)
def test_the_exact_count_is_near_six_of_them(cfg, tokens, published):
  """Their relative positions, a thirteenth of each layer, are not of this decoder."""
  exact = flops.exact_train_flops_per_token(cfg, 2048) * tokens
  assert 0.92 < exact / published < 1
  less = exact - flops.train_flops_per_token(cfg, 2048) * tokens
  assert less / tokens == 3 * (2 * 32_000 * cfg.dim + 3 * 80 * cfg.heads * 2048)


def test_two_give_the_third():
  first = budget.plan(devices=64, peak=A100, params=7e9, days=14, price=2, watts=400)
  assert first.device_hours == 64 * 14 * 24
  assert first.dollars == 2 * first.device_hours
  assert first.kilowatt_hours == pytest.approx(0.4 * first.device_hours)
  for given in (
    {"params": 7e9, "tokens": first.tokens},
    {"days": 14, "tokens": first.tokens},
  ):
    again = budget.plan(devices=64, peak=A100, price=2, watts=400, **given)
    np.testing.assert_allclose(again[:7], first[:7])


def test_days_alone_get_the_best_model():
  found = budget.plan(devices=64, peak=A100, days=14)
  assert (found.params, found.tokens) == pytest.approx(found.best)
  assert found.waste == pytest.approx(1)
  assert "near the optimum" in found.verdict
  assert found.kilowatt_hours is None


@pytest.mark.parametrize(
  ("factor", "verdict"), [(8, "under-trained"), (1.1, "near the optimum"), (0.2, "over-trained")]
)
def test_verdicts(factor, verdict):
  best = budget.plan(devices=64, peak=A100, days=14)
  found = budget.plan(devices=64, peak=A100, days=14, params=factor * best.params)
  assert found.verdict.startswith(verdict)
  assert found.loss > best.loss and found.waste > 1
  # As many FLOPs as that, best spent, would reach its loss with less.
  least = found.flops / found.waste
  assert chinchilla.loss(LAW, *chinchilla.optimal(LAW, least)) == pytest.approx(found.loss)


@pytest.mark.parametrize(
  "given",
  [
    {},
    {"params": 7e9},
    {"tokens": 1e9},
    {"params": 7e9, "tokens": 1e9, "days": 3},
    {"days": -1},
    {"days": 1, "mfu": 1.5},
    {"days": 1, "devices": 0},
  ],
)
def test_budgets_that_cannot_be(given):
  with pytest.raises(ValueError, match="give two|numbers must be|above 0"):
    budget.plan(**({"devices": 1, "peak": A100} | given))


def test_devices_by_the_names_that_people_use():
  assert devices.peak_flops("a100-80") == devices.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
  assert devices.watts("h100") == 700 and devices.watts("NVIDIA H100 PCIe") == 350
  assert devices.watts("TPU v4") is None and devices.peak_flops("cpu") is None
  assert devices.peak_flops("l40s") != devices.peak_flops("l4")
