"""Training: placement, one step, optimizers, checkpoints, metrics and the loop."""
