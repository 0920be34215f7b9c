"""Losses on a pair of scores: reward models (scores) and DPO (log-ratios) share them.

Unless its docstring says otherwise, a loss takes `chosen` and `rejected` [B] float: reward-model
scores, or log-ratios log pi(y|x) / pi_ref(y|x) in nats summed over the answer's tokens. All
return a [B] float32 loss per pair, not reduced, and raise ValueError if the shapes differ.
`beta` is an inverse temperature, in 1 / unit of the scores.
"""

import jax
import jax.numpy as jnp

from llm_jax.losses.inputs import check_shapes, takes

_NLL_FLOOR = 1e-7  # An answer of probability 1 has infinite odds; keep them finite.


def logistic(
  chosen: jax.Array,
  rejected: jax.Array,
  beta: float = 1.0,
  smoothing: float = 0.0,
  margin: jax.Array | float = 0.0,
) -> jax.Array:
  """Bradley-Terry negative log-likelihood that `chosen` beats `rejected`.

    loss = -(1 - s) log sigmoid(m) - s log sigmoid(-m),  m = beta * (chosen - rejected) - margin

  With reward-model scores and beta=1 this is the RLHF reward loss (Ouyang et al. 2022,
  arXiv:2203.02155, eq. 1), `margin` is Llama 2's (Touvron et al. 2023, arXiv:2307.09288, eq. 2).
  With log-ratios it is DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); `smoothing` makes it
  conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences").

  Args:
    chosen: [B] scores or log-ratios.
    rejected: [B], in the same unit.
    beta: inverse temperature; DPO papers use 0.01 to 0.5.
    smoothing: probability in [0, 0.5) that a label is flipped.
    margin: scalar or [B], by how much beta * (chosen - rejected) should exceed 0.

  Returns:
    [B] float32 nats per pair; log 2 where m = 0.

  Raises:
    ValueError: if the shapes differ or `smoothing` is outside [0, 0.5).
  """
  check_shapes(chosen=chosen, rejected=rejected)
  _check_smoothing(smoothing)
  m_B = beta * _difference(chosen, rejected) - margin
  return -(1 - smoothing) * jax.nn.log_sigmoid(m_B) - smoothing * jax.nn.log_sigmoid(-m_B)


def hinge(chosen: jax.Array, rejected: jax.Array, beta: float = 1.0) -> jax.Array:
  """SLiC's rank calibration: max(0, 1 - beta * (chosen - rejected)), [B].

  Zhao et al. 2023, SLiC-HF, arXiv:2305.10425, eq. 1, with the log-ratios of RSO (Liu et al. 2023,
  arXiv:2309.06657, section 3).
  """
  check_shapes(chosen=chosen, rejected=rejected)
  return jax.nn.relu(1.0 - beta * _difference(chosen, rejected))


def ipo(chosen: jax.Array, rejected: jax.Array, beta: float = 0.1) -> jax.Array:
  """Identity preference optimisation: (chosen - rejected - 1 / (2 beta))^2, [B].

  Azar et al. 2023, arXiv:2310.12036, eq. 17, where beta is called tau. The gap that it pulls
  towards is finite. Peers disagree on the log-ratios: sums over the tokens as in the paper's
  equation, or means per token (`logratio_pairs(..., average=True)`).
  """
  check_shapes(chosen=chosen, rejected=rejected)
  return jnp.square(_difference(chosen, rejected) - 1.0 / (2.0 * beta))


def robust(
  chosen: jax.Array, rejected: jax.Array, beta: float = 1.0, smoothing: float = 0.1
) -> jax.Array:
  """The logistic loss made unbiased under label flips of known probability `smoothing`, [B].

    loss = ((1 - s) * -log sigmoid(m) - s * -log sigmoid(-m)) / (1 - 2 s),
    m = beta * (chosen - rejected)

  Chowdhury et al. 2024, robust DPO, arXiv:2403.00409, section 3. Its mean over flipped labels is
  the loss on the clean ones; a single value may be negative.

  Raises:
    ValueError: if the shapes differ or `smoothing` is outside [0, 0.5).
  """
  check_shapes(chosen=chosen, rejected=rejected)
  _check_smoothing(smoothing)
  m_B = beta * _difference(chosen, rejected)
  clean_B, flipped_B = -jax.nn.log_sigmoid(m_B), -jax.nn.log_sigmoid(-m_B)
  return ((1 - smoothing) * clean_B - smoothing * flipped_B) / (1 - 2 * smoothing)


def apo_zero(chosen: jax.Array, rejected: jax.Array, beta: float = 1.0) -> jax.Array:
  """Anchored: chosen up, rejected down: 1 - sigmoid(beta chosen) + sigmoid(beta rejected), [B].

  D'Oosterlinck et al. 2024, APO, arXiv:2408.06266, section 4: for answers better than the model's.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  return jax.nn.sigmoid(-beta * _f32(chosen)) + jax.nn.sigmoid(beta * _f32(rejected))


def apo_down(chosen: jax.Array, rejected: jax.Array, beta: float = 1.0) -> jax.Array:
  """Anchored, both down: sigmoid(beta chosen) + 1 - sigmoid(beta (chosen - rejected)), [B].

  D'Oosterlinck et al. 2024, APO, arXiv:2408.06266, section 4: for answers worse than the model's.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  m_B = beta * _difference(chosen, rejected)
  return jax.nn.sigmoid(beta * _f32(chosen)) + jax.nn.sigmoid(-m_B)


@takes("chosen_mean_logps", "rejected_mean_logps")
def simpo(chosen: jax.Array, rejected: jax.Array, beta: float, gamma: float) -> jax.Array:
  """Reference-free, length-normalised: -log sigmoid(beta * (chosen - rejected) - gamma), [B].

  Meng et al. 2024, SimPO, arXiv:2405.14734, eq. 6. Takes [B] mean log-probs in nats per token.
  The paper tunes per model: beta 2 to 10, gamma / beta 0.1 to 0.8.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  return -jax.nn.log_sigmoid(beta * _difference(chosen, rejected) - gamma)


@takes("chosen_mean_logps", "rejected_mean_logps")
def orpo(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """Odds ratio term: -log sigmoid(log (odds(chosen) / odds(rejected))), odds(p) = p / (1 - p), [B].

  Hong et al. 2024, ORPO, arXiv:2403.07691, eq. 7. Takes [B] mean log-probs in nats per token, < 0;
  they are clipped at -1e-7. The whole method is "nll_chosen + 0.1*orpo" (eq. 6).
  """
  check_shapes(chosen=chosen, rejected=rejected)
  chosen_B = jnp.minimum(_f32(chosen), -_NLL_FLOOR)
  rejected_B = jnp.minimum(_f32(rejected), -_NLL_FLOOR)
  miss_B = jnp.log(-jnp.expm1(chosen_B)) - jnp.log(-jnp.expm1(rejected_B))
  return -jax.nn.log_sigmoid(chosen_B - rejected_B - miss_B)


@takes("chosen_logps", weight="chosen_lengths")
def nll_chosen(chosen_logps: jax.Array) -> jax.Array:
  """Negative log-likelihood of the chosen answer, summed over its tokens, [B] float32 nats.

  Its normaliser is *tokens*: an objective divides the batch's sum by the chosen answers' tokens,
  so that it weighs as in supervised fine-tuning. The SFT term of RPO / DPOP (Pang et al. 2024,
  arXiv:2404.19733, eq. 1) and of ORPO.
  """
  return -_f32(chosen_logps)


@takes("logratio", "desirable", "baseline")
def kto(
  logratio: jax.Array,
  desirable: jax.Array,
  baseline: jax.Array,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> jax.Array:
  """Kahneman-Tversky optimisation of single answers that are good or bad, [B].

    z = max(0, baseline)
    good: w_d * (1 - sigmoid(beta (logratio - z)));  bad: w_u * (1 - sigmoid(beta (z - logratio)))

  Ethayarajh et al. 2024, arXiv:2402.01306, section 4. No gradient flows through z. On a paired
  batch `logratio_pairs` adds the term of the chosen answer (good) and of the rejected one (bad).

  Args:
    logratio: [B] log pi / pi_ref in nats, summed over the answer's tokens.
    desirable: [B] bool or 0/1, whether the answer is good.
    baseline: [] or [B] nats, the estimate of KL(pi || pi_ref): the mean log-ratio of mismatched
      (prompt, answer) pairs of the batch. It is data: a stage's label step puts it in the batch.
    beta: inverse temperature; the paper uses 0.1.
    desirable_weight: w_d. The paper balances w_d n_good / (w_u n_bad) in [1, 4/3].
    undesirable_weight: w_u.

  Returns:
    [B] float32 in [0, max(w_d, w_u)], not reduced.

  Raises:
    ValueError: if the shapes differ.
  """
  check_shapes(logratio=logratio, desirable=desirable)
  anchor_B = jnp.maximum(jax.lax.stop_gradient(_f32(baseline)), 0.0)
  above_B = beta * (_f32(logratio) - anchor_B)
  good_B = desirable_weight * jax.nn.sigmoid(-above_B)
  bad_B = undesirable_weight * jax.nn.sigmoid(above_B)
  return jnp.where(jnp.asarray(desirable) > 0, good_B, bad_B)


def sppo_hard(chosen: jax.Array, rejected: jax.Array, beta: float = 1.0) -> jax.Array:
  """Self-play with hard labels: (chosen - 1/(2 beta))^2 + (rejected + 1/(2 beta))^2, [B].

  Wu et al. 2024, SPPO, arXiv:2405.00675, eq. 4.7 with win probabilities 1 and 0, and beta = 1/eta.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  goal = 1.0 / (2.0 * beta)
  return jnp.square(_f32(chosen) - goal) + jnp.square(_f32(rejected) + goal)


def nca(chosen: jax.Array, rejected: jax.Array, beta: float = 1.0) -> jax.Array:
  """Noise-contrastive alignment of a pair, [B]; it keeps the chosen likelihood from falling.

    loss = -log sigmoid(b chosen) - (log sigmoid(-b chosen) + log sigmoid(-b rejected)) / 2

  Chen et al. 2024, NCA, arXiv:2402.05369, the pairwise form.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  c_B, r_B = beta * _f32(chosen), beta * _f32(rejected)
  noise_B = jax.nn.log_sigmoid(-c_B) + jax.nn.log_sigmoid(-r_B)
  return -jax.nn.log_sigmoid(c_B) - 0.5 * noise_B


def bco_pair(
  chosen: jax.Array,
  rejected: jax.Array,
  beta: float = 1.0,
  baseline: jax.Array | float = 0.0,
) -> jax.Array:
  """Binary classifier optimisation on a pair, [B].

    loss = -log sigmoid(beta (chosen - z)) - log sigmoid(-beta (rejected - z))

  Jung et al. 2024, BCO, arXiv:2404.04656. `baseline` z, scalar or [B], is the running mean
  log-ratio of all answers (the paper's reward shift over beta): data, without gradient.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  shift = jax.lax.stop_gradient(_f32(baseline))
  chosen_B, rejected_B = beta * (_f32(chosen) - shift), beta * (_f32(rejected) - shift)
  return -jax.nn.log_sigmoid(chosen_B) - jax.nn.log_sigmoid(-rejected_B)


def exo_pair(
  chosen: jax.Array, rejected: jax.Array, beta: float = 1.0, smoothing: float = 1e-3
) -> jax.Array:
  """Reverse KL of the model's preference to the label's, [B] float32 nats.

    loss = KL((q, 1 - q) || (1 - s, s)),  q = sigmoid(beta (chosen - rejected)), s = smoothing

  Ji et al. 2024, EXO, arXiv:2402.00856, eq. 16. Zero where the model prefers with 1 - s.

  Raises:
    ValueError: if the shapes differ or `smoothing` is outside (0, 0.5).
  """
  check_shapes(chosen=chosen, rejected=rejected)
  if not 0.0 < smoothing < 0.5:
    raise ValueError(f"smoothing must be in (0, 0.5), got {smoothing}")
  m_B = beta * _difference(chosen, rejected)
  right_B = jax.nn.sigmoid(m_B) * (jax.nn.log_sigmoid(m_B) - jnp.log1p(-smoothing))
  wrong_B = jax.nn.sigmoid(-m_B) * (jax.nn.log_sigmoid(-m_B) - jnp.log(smoothing))
  return right_B + wrong_B


def discopop(
  chosen: jax.Array, rejected: jax.Array, beta: float = 1.0, tau: float = 0.05
) -> jax.Array:
  """The discovered log-ratio modulated loss, [B].

    loss = (1 - w) * -log sigmoid(m) + w * exp(-m)
    w = sigmoid(m / tau),  m = beta * (chosen - rejected)

  Lu et al. 2024, DiscoPOP, arXiv:2406.08414, section 5. Not monotone: near m = 0 it is not convex.

  Raises:
    ValueError: if the shapes differ or `tau` is outside (0, 1), where exp(-m) could overflow.
  """
  check_shapes(chosen=chosen, rejected=rejected)
  if not 0.0 < tau < 1.0:
    raise ValueError(f"tau must be in (0, 1), got {tau}")
  m_B = beta * _difference(chosen, rejected)
  # w * exp(-m) as one exponential: alone, exp(-m) overflows where w is 0.
  exponential_B = jnp.exp(jax.nn.log_sigmoid(m_B / tau) - m_B)
  return jax.nn.sigmoid(-m_B / tau) * -jax.nn.log_sigmoid(m_B) + exponential_B


def _f32(x: jax.Array | float) -> jax.Array:
  return jnp.asarray(x, jnp.float32)


def _difference(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  return _f32(chosen) - _f32(rejected)


def _check_smoothing(smoothing: float) -> None:
  if not 0.0 <= smoothing < 0.5:
    raise ValueError(f"smoothing must be in [0, 0.5), got {smoothing}")
