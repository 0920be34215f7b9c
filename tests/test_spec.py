"""Loss specs: what they resolve to, and the one line that each mistake gets."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from llm_jax import spec
from llm_jax.errors import UserError
from llm_jax.losses import policy, preference, token

PAIRS = "llm_jax.losses.preference"


def tilted(chosen, rejected, k: int = 1):
  return k * (rejected - chosen)


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
  module = types.ModuleType("my_pkg.losses")
  tilted.__module__ = "my_pkg.losses"
  module.tilted, module.jax, module._hidden = tilted, jax, tilted
  monkeypatch.setitem(sys.modules, "my_pkg", types.ModuleType("my_pkg"))
  monkeypatch.setitem(sys.modules, "my_pkg.losses", module)


def same(fn, bare, **kwargs):
  if not kwargs:
    return fn is bare
  return isinstance(fn, functools.partial) and fn.func is bare and fn.keywords == kwargs


def test_a_name_and_a_call():
  assert same(spec.resolve("logistic", PAIRS), preference.logistic)
  assert same(spec.resolve(" logistic() ", PAIRS), preference.logistic)
  assert same(spec.resolve("ipo(beta=0.2)", PAIRS), preference.ipo, beta=0.2)
  assert same(spec.resolve("ipo(beta=2)", PAIRS), preference.ipo, beta=2)
  assert same(
    spec.resolve("cross_entropy(z_loss=1e-4)", "llm_jax.losses.token"),
    token.cross_entropy,
    z_loss=1e-4,
  )
  ppo = spec.resolve("ppo_clip(clip=.2, clip_high=None)", "llm_jax.losses.policy")
  assert same(ppo, policy.ppo_clip, clip=0.2, clip_high=None)


def test_any_module_and_any_callable():
  assert same(spec.resolve("my_pkg.losses:tilted(k=3)", PAIRS), tilted, k=3)
  assert same(spec.resolve(tilted, PAIRS), tilted)
  total = spec.Sum(((1.0, tilted),))
  assert spec.resolve(total, PAIRS) is total
  assert spec.terms_of(total) == total.terms
  assert spec.terms_of(tilted) == ((1.0, tilted),)


@pytest.mark.parametrize(
  ("text", "weights"),
  [
    ("logistic(beta=0.1) + 0.2*nll_chosen", [1, 0.2]),
    ("logistic - nll_chosen*2", [1, -2]),
    ("-0.5*logistic + my_pkg.losses:tilted(k=3) - 1e-1*orpo()", [-0.5, 1, -0.1]),
    ("2*(logistic - 0.5*hinge)", [2, -1]),
    ("0.5*logistic", [0.5]),
    ("-logistic", [-1]),
  ],
)
def test_sums(text, weights):
  total = spec.resolve(text, PAIRS)
  assert isinstance(total, spec.Sum)
  assert [weight for weight, _ in total.terms] == pytest.approx(weights)
  assert all(callable(fn) for _, fn in total.terms)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("logistc(beta=1)", 'did you mean "logistic"'),
    ("zzz", "there are: apo_down, apo_zero"),
    ("logistic(bta=1)", 'did you mean "beta"'),
    ("orpo(beta=1)", "no keyword 'beta'; it has none"),
    ("logistic(0.1)", "arguments must be keywords"),
    ("logistic(**{'beta': 1})", "arguments must be keywords"),
    ("logistic(chosen=1)", "no keyword 'chosen'"),
    ("logistic(beta='high')", "beta cannot be 'high'"),
    ("logistic(beta=True)", "beta cannot be True"),
    ("logistic(margin='x')", "margin cannot be 'x'"),
    ("logistic(beta=x)", "must be a literal"),
    ("logistic(beta=1", "cannot read"),
    ("logistic(beta=1, beta=2)", "given twice"),
    ("", "cannot read"),
    ("1", "cannot read"),
    ("logistic * hinge", "cannot read"),
    ("logistic / 2", "cannot read"),
    ("'a' * logistic", "cannot read"),
    ("jax.numpy.sum", "cannot read"),
    ("f()()", "cannot read"),
    ("a:b:c", "cannot read"),
    ("x:", "cannot read"),
    ("simpo(beta=2.0)", "simpo needs gamma=..."),
    ("simpo", "simpo needs beta=..., gamma=..."),
    ("no_such_pkg.losses:f", "cannot import the module 'no_such_pkg.losses'"),
    ("my_pkg.losses:tiltd", 'did you mean "tilted"'),
    ("my_pkg.losses:tilted(q=1)", "no keyword 'q'"),
    ("logistic + nll_chozen", 'did you mean "nll_chosen"'),
  ],
)
def test_mistakes_get_one_line(text, message):
  with pytest.raises(UserError) as caught:
    spec.resolve(text, PAIRS)
  line = str(caught.value)
  assert message in line and repr(text)[1:-1] in line.replace("\\", "")
  assert "\n" not in line


@pytest.mark.parametrize("name", ["jax", "jnp", "takes", "check_shapes", "_difference", "__name__"])
def test_only_the_module_s_own_public_functions_are_losses(name):
  with pytest.raises(UserError):
    spec.resolve(name, PAIRS)


def test_no_helper_passes_for_a_loss():
  with pytest.raises(UserError, match="cross_entropy, entropy, kl, token_logps"):
    spec.resolve("qqqqq", "llm_jax.losses.token")
  with pytest.raises(UserError, match="cispo, dual_clip, gspo, ppo_clip, reinforce, value_clip"):
    spec.resolve("qqqqq", "llm_jax.losses.policy")


def test_a_resolved_loss_is_the_function():
  loss = spec.resolve("ipo(beta=0.5)", PAIRS)
  assert loss(jnp.array([3.0]), jnp.array([0.0])) == 4.0
