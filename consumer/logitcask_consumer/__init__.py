"""The training side: sparse distillation losses, datasets over casks, the trainer and the report."""
