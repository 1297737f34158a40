"""Wire types of extractions."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.prepare import MIN_LENGTH, Overflow
from logitcask_services.folders import CASK_NAME
from logitcask_services.jobs.database.tables import EventRow
from logitcask_services.jobs.extraction import CarrierName, OnError, Status

MAX_LENGTH = 2**31 - 1
CaskName = Annotated[
    str,
    Field(pattern=f"^{CASK_NAME.pattern}$", description="Name of the cask, not a path."),
]
Metadata = dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]]
Seconds = Annotated[int | None, Field(description="Seconds since 1970, UTC; null when it has not happened.")]


class ExtractionPlan(BaseModel):
    """How to capture, and where to: all of a request but the corpus."""

    model_config = ConfigDict(extra="forbid")

    cask: CaskName
    capture: CaptureSpec = CaptureSpec()
    max_length: Annotated[
        int | None,
        Field(ge=MIN_LENGTH, le=MAX_LENGTH, description="Most tokens of a document; default: the teacher's context."),
    ] = None
    overflow: Annotated[Overflow, Field(description="What becomes of longer documents.")] = "truncate"
    carrier: Annotated[
        CarrierName, Field(description="File format of the shards: `arrow` to train from, `zarr` or `parquet` to ship.")
    ] = "arrow"
    on_error: Annotated[
        OnError, Field(description="`skip` lists bad lines and goes on; `fail` ends the extraction at the first.")
    ] = "skip"
    metadata: Annotated[Metadata, Field(max_length=16)] = {}


class ExtractionCreate(ExtractionPlan):
    """What to capture, how, and where to."""

    corpus_id: Annotated[str, Field(max_length=64)]


class ExtractionCheck(BaseModel):
    """The request could be started now, as far as can be told without its corpus."""

    object: Literal["extraction.check"] = "extraction.check"
    cask: str
    cask_exists: Annotated[bool, Field(description="Whether it would go on with a cask, rather than begin one.")]
    teacher: Annotated[
        str | None, Field(description="Name of the teacher; null while it loads, when lengths and ids go unchecked.")
    ]
    max_length: Annotated[int | None, Field(description="Most tokens of a document; null while the teacher loads.")]


class Reason(BaseModel):
    """Why something is as it is."""

    code: str
    message: str


class RequestCounts(BaseModel):
    """In documents, and lines that gave none."""

    total: int
    completed: Annotated[int, Field(description="In the cask: captured now, or there already.")]
    failed: Annotated[int, Field(description="Bad lines, and documents the teacher failed on; listed under errors.")]
    skipped: Annotated[int, Field(description="Longer than max_length under overflow `skip`.")]


class LineCounts(BaseModel):
    """Lines of the corpus."""

    total: int
    bad: int
    skipped: int
    truncated: int
    split: int
    notes: Annotated[
        dict[str, int], Field(description="What is unusual: a code, and how many documents or lines it is true of.")
    ] = {}
    first_lines: Annotated[
        dict[str, list[int]], Field(description="For codes of notes and bad lines, `truncated` and `split`: where.")
    ] = {}


class DocumentCounts(BaseModel):
    """Documents the lines gave."""

    total: int
    captured: int
    present: Annotated[int, Field(description="In the cask before, or more than once in the corpus.")]
    failed: int


class Usage(BaseModel):
    """How far it is, and what it cost."""

    tokens_done: int
    tokens_total: int
    tokens_captured: int
    bytes_written: int


class Extraction(BaseModel):
    """An extraction."""

    object: Literal["extraction"] = "extraction"
    id: str
    status: Status
    corpus_id: str
    cask: str
    capture: CaptureSpec
    max_length: int | None
    overflow: Overflow
    carrier: CarrierName
    on_error: OnError
    metadata: dict[str, str]
    created_at: int
    queued_at: Seconds = None
    in_progress_at: Seconds = None
    finalizing_at: Seconds = None
    completed_at: Seconds = None
    failed_at: Seconds = None
    cancelling_at: Seconds = None
    cancelled_at: Seconds = None
    request_counts: RequestCounts
    lines: LineCounts
    documents: DocumentCounts
    usage: Usage
    throughput_tps: Annotated[float | None, Field(description="Captured tokens per second: now, or over the run.")]
    eta_seconds: float | None
    teacher: Annotated[dict[str, Any] | None, Field(description="Identity of the teacher; null until validated.")]
    waiting: Annotated[Reason | None, Field(description="What holds it up, while something does.")]
    error: Annotated[Reason | None, Field(description="Why it failed.")]


class ExtractionList(BaseModel):
    """A page of extractions."""

    object: Literal["list"] = "list"
    data: list[Extraction]
    has_more: bool


class Event(BaseModel):
    """One entry of an extraction's log."""

    object: Literal["extraction.event"] = "extraction.event"
    id: int
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]

    @classmethod
    def of(cls, row: EventRow) -> Self:
        """From the database."""
        return cls(
            id=row.seq,
            created_at=int(row.created_at),
            level=row.level,
            type=row.type,
            message=row.message,
            data=row.data,
        )


class EventList(BaseModel):
    """A page of events, oldest first."""

    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class ShardOfExtraction(BaseModel):
    """A published shard."""

    model_config = ConfigDict(extra="allow")

    chunk: int
    name: str
    bytes: int
    sha256: str
    documents: int
    tokens: int


class Manifest(BaseModel):
    """What an extraction has put into its cask."""

    object: Literal["extraction.manifest"] = "extraction.manifest"
    extraction_id: str
    cask: str
    partial: Annotated[bool, Field(description="Whether the extraction has not completed.")]
    teacher: dict[str, Any] | None
    capture: CaptureSpec
    shards: list[ShardOfExtraction]
