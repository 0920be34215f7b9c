"""What each logged metric means, in plain words: for a report, a page, or a reader of the rows."""

HELD_OUT = "eval/"

# A name that ends in "/" stands for every name that begins so; "{}" is what follows.
_MEANINGS = {
  # Every training stage: train/step.py and train/loop.py.
  "step": "Updates of the parameters so far.",
  "loss": "What the optimizer minimises, all terms of the loss added up, averaged over the "
  "updates since the last row.",
  "grad_norm": "Length of the gradient before clipping (global L2 norm). Jumps come before spikes "
  "of the loss.",
  "param_norm": "Length of all trained parameters after the update (global L2 norm).",
  "lr": "Learning rate of the update, as the schedule gives it.",
  "skipped": "Share of the updates since the last row that were thrown away, because loss or "
  "gradient was not finite or an outlier. 0 is normal.",
  "time/unix": "When the row was written, in seconds since 1970.",
  "time/step": "Seconds per update, compilation and evaluation left out.",
  "time/data_share": "Share of the time in which the step waited for its batch. Near 0 the device "
  "is busy; for online methods drawing answers is in it.",
  "time/tokens_per_second": "Places of the batches per second, padding included.",
  "time/eval": "Seconds that the evaluation took.",
  "time/recompilations": "How often the step was compiled again so far; each costs seconds. It "
  "should stay absent.",
  "memory/host": "Resident memory of the process, in GiB.",
  "memory/device": "Memory in use on the fullest local device, in GiB.",
  "memory/device_peak": "The most memory so far on the fullest local device, in GiB.",
  # Pretraining and fine-tuning: objectives.next_token, stages/training.py.
  "nll": "Negative log-likelihood of the next token, in nats per counted token; exp of it is the "
  "perplexity.",
  "ptx/nll": "Negative log-likelihood of the pretraining text that is mixed into PPO, in nats per "
  "token.",
  "eval/loss": "The loss on held-out data. A gap to the training loss that grows is memorising.",
  "eval/loss/": "Negative log-likelihood on the held-out part of {}, in nats per token.",
  "eval/bits_per_byte": "Negative log-likelihood of held-out text in bits per UTF-8 byte, which "
  "can be compared across tokenizers. Lower is better.",
  # Reward model: objectives.score_pairs, stages/reward.py.
  "accuracy": "Share of the pairs in which the chosen answer scores higher; a tie counts one "
  "half, a coin gets 50 %.",
  "accuracy/": "Share of the pairs that are ranked right where the rejected answer is of the kind "
  "{}.",
  "margin": "Mean score of the chosen answer minus that of the rejected one; the sigmoid of it is "
  "the model's probability. Growing without accuracy is over-confidence.",
  "chosen_score": "Mean raw score of chosen answers. Only differences matter: the offset is free.",
  "rejected_score": "Mean raw score of rejected answers. Only differences matter: the offset is "
  "free.",
  "calibration_error": "Expected calibration error: how far the model's probabilities lie from "
  "the shares that are right, in 10 bins. 0 is honest.",
  "length_correlation": "Correlation (Pearson's) of the margin with how many tokens longer the "
  "chosen answer is. Near 1, the model rewards length.",
  # The DPO family: objectives.logratio_pairs, losses/labelled.py.
  "rewards/chosen": "Implicit reward of chosen answers: log-ratio of policy to reference as the "
  "loss sees it, in nats, not multiplied by beta.",
  "rewards/rejected": "Implicit reward of rejected answers: log-ratio of policy to reference as "
  "the loss sees it, in nats, not multiplied by beta.",
  "rewards/margins": "Implicit reward of the chosen answer minus that of the rejected one, in "
  "nats. It should grow.",
  "rewards/accuracies": "Share of the answers that the implicit rewards rank right; a tie counts "
  "one half.",
  "logps/chosen": "Log-probability of chosen answers, in nats, summed over their tokens. That it "
  "falls is normal for DPO: the loss sees only the difference to the rejected ones.",
  "logps/rejected": "Log-probability of rejected answers, in nats, summed over their tokens.",
  "kl": "The baseline of KTO: mean log-ratio of policy to reference on answers to other prompts, "
  "in nats, an estimate of the KL.",
  # Online methods: stages/labels.py, ppo.py, grpo.py, online_dpo.py.
  "objective/scores": "Mean score of the drawn answers, as the method sees it (a reward model's "
  "is in standard deviations from the reference's answers).",
  "objective/raw_scores": "Mean score of the drawn answers as the reward model gives it, before "
  "its unit is fixed.",
  "objective/kl": "KL of the policy to the reference, in nats per answer: the log-ratio of drawn "
  "tokens, summed (k1). It is unbiased, so a small batch may come out below zero.",
  "objective/non_score_reward": "The KL penalty in the reward: minus the coefficient times "
  "objective/kl.",
  "objective/rlhf_reward": "Mean score minus the KL penalty: what is maximised.",
  "objective/entropy": "Minus the log-probability of drawn answers, in nats per answer: an "
  "estimate of the policy's entropy. A collapse means that it always says the same.",
  "objective/score_gap": "Mean score of the chosen answers minus that of the rejected ones.",
  "kl_coef": "Weight of the KL penalty in the reward; with a KL target it adapts.",
  "gold/mean": "Mean gold score of the drawn answers, agreement with the true answer by a fixed "
  "rule, in [0, 1]. It is measured and not optimised: a score that rises without it is "
  "over-optimisation.",
  "score": "Mean score of the likeliest answers (greedy decoding).",
  "scores/": "Mean of the term {} of the score, before its weight.",
  "policy/approxkl": "KL between the policy and the one that drew the answers, per token in nats: "
  "half the squared change of the log-probability (k2). It is how far the updates went.",
  "policy/clipfrac": "Share of the tokens whose gradient the policy loss has clipped away. More "
  "than about 20 % means that updates are too large.",
  "policy/entropy": "Entropy of the policy's next token, in nats per token.",
  "val/ratio": "Mean ratio of the policy's probability of a drawn token to that when it was "
  "drawn. It should stay near 1.",
  "val/clipfrac": "Share of the tokens whose gradient the clipped value loss has cut away.",
  "val/error": "Mean squared error of the critic's values against the returns.",
  "val/return": "Mean return of a token: the discounted reward still to come that the critic "
  "learns.",
  "val/return_squared": "Mean squared return; minus the square of the mean it is the returns' "
  "variance.",
  "val/explained_variance": "Share of the returns' variance that the critic explains: 1 is "
  "perfect, 0 no better than a constant, below 0 worse.",
  "loss/policy": "The policy's part of the loss. Its size says little: the gradient is what "
  "counts.",
  "loss/value": "The critic's part of the loss, before its weight.",
  "loss/kl": "KL to the reference as the loss has it, in nats per token, before its weight.",
  "rollout/end_rate": "Share of the drawn answers that end by themselves before the limit.",
  "rollout/length": "Mean length of the drawn answers, in tokens.",
  "rollout/logp_gap": "The most by which sampler and learner disagree on a token's "
  "log-probability, in nats. It should be rounding.",
  "groups/tied": "Share of the prompts whose answers all have the same score: nothing is learned "
  "from these.",
  "pairs/tied": "Share of the prompts whose answers all have the same score: they give no pair.",
  # Rejection sampling: stages/rejection.py.
  "chosen/scores": "Mean score of the answers that were chosen to learn from.",
  "chosen/length": "Mean length of the chosen answers, in tokens.",
  "chosen/answers": "How many answers were chosen in the round.",
  "chosen/prompts": "Share of the prompts of which an answer was chosen.",
  "best_of/": "Mean over prompts of their best of n answers ({}: n, and what it is measured by). "
  "It shows what more samples would buy.",
}


def explain(name: str) -> str:
  """Returns one or two sentences on a metric, with its unit; "" of an unknown name.

  Args:
    name: as it is logged. The longest known beginning counts ("scores/" of "scores/exact"); a name
      that begins with "eval/" and has no meaning of its own is the same metric on held-out data.
  """
  own = _meaning(name)
  if own or not name.startswith(HELD_OUT):
    return own
  found = _meaning(name.removeprefix(HELD_OUT))
  if not found:
    return ""
  first = found[0] if found[1].isupper() else found[0].lower()  # "KL" stays as it is.
  return f"On held-out data: {first}{found[1:]}"


def _meaning(name: str) -> str:
  if name in _MEANINGS and not name.endswith("/"):
    return _MEANINGS[name]
  starts = [key for key in _MEANINGS if key.endswith("/") and name.startswith(key) and name != key]
  longest = max(starts, key=len, default="")
  return _MEANINGS[longest].format(name.removeprefix(longest)) if longest else ""
