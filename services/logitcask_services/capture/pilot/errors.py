"""What can go wrong in a pilot."""

from logitcask_schemas.errors import LogitcaskError


class PilotError(LogitcaskError, ValueError):
    """A pilot cannot answer: no usable sample, a document that the teacher failed on, a budget out of reach."""
