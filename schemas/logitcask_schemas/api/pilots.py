"""What a pilot measured: some lines of a corpus that the teacher really captured, and what follows for all of them."""

from typing import Annotated, Literal

from pydantic import Field

from logitcask_schemas.api.objects import ApiObject
from logitcask_schemas.api.requests import CarrierName


class Expected(ApiObject):
    """A sum over the corpus, with its 95 % interval."""

    expected: float
    low: float | None
    """Null, as `high`, where too few lines tell how much they differ."""
    high: float | None


class PilotEstimate(ApiObject):
    """Of the whole corpus."""

    tokens: Expected
    """Contexts are not among them."""
    cask_bytes: Expected
    """Of the shards, as this carrier stores them."""
    hint_bytes: Expected
    """Beside these."""
    seconds: Expected
    """Of the teacher's work, at the pilot's pace."""


class Pilot(ApiObject):
    """Measured on the lines that were sent. Nothing of it is kept."""

    object: Literal["pilot"] = "pilot"
    teacher: str
    carrier: CarrierName
    lines: int
    bad_lines: int
    """Lines that give no document, those that are skipped included."""
    documents: int
    tokens: int
    context_tokens: int
    """Read before documents, and not stored."""
    recorded_positions: int
    seconds: Annotated[float, Field(description="From the first document's beginning to the last one's end.")]
    tokens_per_second: float
    """Contexts included."""
    beside: Annotated[str | None, Field(description="Job that the teacher worked on meanwhile, which slows it down.")]
    shard_bytes: int
    """Of one shard of these documents."""
    framing_bytes: float
    """What of it every shard has, however many documents it holds."""
    bytes_per_position: float
    """Without that."""
    head_entries_per_position: float
    draws_per_position: float
    mean_entropy: float
    """Nats."""
    estimate: PilotEstimate | None
    """Null where the request does not say how large the corpus is."""
