"""What is in a corpus, over HTTP: its rows by number, and statistics of its lines."""

from typing import Annotated, Any, Literal

from pydantic import Field

from logitcask_schemas.api.objects import ApiObject


class CorpusRow(ApiObject):
    """A line of a corpus that is not blank."""

    line: Annotated[int, Field(description="From 1; blank lines count.")]
    bytes: int | None
    row: Annotated[dict[str, Any] | None, Field(description="The line; null where it is no object, or long, or deep.")]
    text: Annotated[str | None, Field(description="Its beginning as text, where `row` is null.")]
    code: Annotated[str | None, Field(description="What is wrong with it; null: nothing.")]
    message: str | None


class CorpusRowList(ApiObject):
    """A page of rows."""

    object: Literal["list"] = "list"
    data: list[CorpusRow]
    offset: int
    has_more: bool


class LengthBin(ApiObject):
    """Lines of at least half as many bytes, and fewer than so many."""

    below_bytes: int
    lines: int


class CorpusStatistics(ApiObject):
    """What the lines of a corpus are. Blank lines are no lines here."""

    object: Literal["corpus.statistics"] = "corpus.statistics"
    lines: Annotated[int, Field(description="That were looked at.")]
    is_whole: Annotated[bool, Field(description="Whether these are all.")]
    forms: Annotated[dict[str, int], Field(description="`text`, `messages`, `prompt`, `prompt_messages`, `input_ids`.")]
    with_custom_id: int
    bad_lines: Annotated[dict[str, int], Field(description="By code; a teacher may find more.")]
    shortest_bytes: int
    longest_bytes: int
    mean_bytes: float
    lengths: list[LengthBin]
