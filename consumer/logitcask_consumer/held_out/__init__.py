"""Measuring students on documents they were not trained on: what training and the report have in common."""
