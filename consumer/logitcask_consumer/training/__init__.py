"""A training run: trainer, output folder, checkpoints, signals."""
