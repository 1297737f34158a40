"""Subcommands of `logitcask` that the services bring: serve, submit, jobs, models."""
