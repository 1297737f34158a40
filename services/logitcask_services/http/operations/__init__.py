"""Health, metrics, version, models."""
