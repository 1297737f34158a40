"""Exit codes of every `logitcask` command."""

from typing import Final

EXIT_FAILURE: Final = 1
"""It could not be done; stderr says why."""
EXIT_USAGE: Final = 2
"""The command line is wrong, or an extra is not installed."""
EXIT_PROBLEMS: Final = 3
"""It was done, and the job or cask has problems."""
EXIT_INTERRUPTED: Final = 130
"""Ctrl-C."""
