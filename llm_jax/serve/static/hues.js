// The colour of a stage on every page: the name of a CSS variable.

const HUES = {
  pretrain: "base", sft: "sft", rejection: "sft", reward: "reward", reward_shuffled: "muted",
  dpo: "dpo", online_dpo: "dpo", ppo: "ppo", grpo: "ppo",
};

export function hue(stage, other = "muted") {
  return Object.hasOwn(HUES, stage) ? HUES[stage] : other;
}
