"""Errors of recipes and templates."""

from logitcask_schemas.errors import LogitcaskError


class RecipeError(LogitcaskError, ValueError):
    """A recipe or a template cannot be read, or cannot be used as asked."""
