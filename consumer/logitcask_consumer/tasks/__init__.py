"""Task sets: questions whose answers are right or wrong, asked through lm-evaluation-harness, also perturbed."""
