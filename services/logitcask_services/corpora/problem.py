"""Why a line of a corpus gives no document."""

from typing import Any

from logitcask_schemas.errors import LogitcaskError

_KINDS = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}


class LineProblem(LogitcaskError, ValueError):
    """A line that cannot become a document: a stable code and a sentence for people."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.custom_id = custom_id


def kind_of_value(value: Any) -> str:
    """What JSON calls a value."""
    return _KINDS.get(type(value), "null")
