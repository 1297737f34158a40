"""Errors of a running engine."""

from logitcask_schemas.errors import LogitcaskError


class EngineError(LogitcaskError, RuntimeError):
    """The engine behind a teacher stopped; what was in flight is lost and a new engine must be loaded."""
