"""Training: the loss, the loop, its checkpoints."""
