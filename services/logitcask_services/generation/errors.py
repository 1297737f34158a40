"""Errors of recipes and templates."""

from logitcask_schemas.errors import LogitcaskError


class RecipeError(LogitcaskError, ValueError):
    """A recipe or a template cannot be read, or cannot be used as asked."""


class AnswersMisplacedError(LogitcaskError, ValueError):
    """The answers that were kept are of other rows than the steps make now."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(
            f"step {stage}: answer {number} was given for another row than the steps make now. Something that decides "
            "which rows there are has changed since it was asked: a setting (max_line_bytes), or the version of "
            "logitcask. Start the service as it was and resume, or generate again"
        )
