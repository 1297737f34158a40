"""What the service answers with: the objects of its HTTP interface.

A client keeps members that it does not know, as a newer service may send them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from logitcask_schemas.api.requests import ExtractionRequest, Overflow
from logitcask_schemas.record.capture_spec import CaptureSpec, stored_spec

Status = Literal[
    "validating",
    "queued",
    "in_progress",
    "finalizing",
    "pausing",
    "paused",
    "completed",
    "failed",
    "cancelling",
    "cancelled",
]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
FINAL: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled"})
Seconds = Annotated[int | None, Field(description="Seconds since 1970, UTC; null when it has not happened.")]


class ApiObject(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="allow")


class Corpus(ApiObject):
    """An uploaded corpus."""

    object: Literal["corpus"] = "corpus"
    id: str
    name: str | None
    """The caller's label."""
    bytes: int
    lines: int
    sha256: Annotated[str, Field(description="SHA-256 (hex) of the content.")]
    created_at: Annotated[int, Field(description="Seconds since 1970, UTC.")]
    deduplicated: Annotated[bool, Field(description="Whether the same content had been uploaded before.")] = False
    received_sha256: Annotated[
        str | None,
        Field(
            description="Of what was sent, which is other bytes where it was packed. In the answer to an upload only."
        ),
    ] = None


class CorpusList(ApiObject):
    """A page of corpora."""

    object: Literal["list"] = "list"
    data: list[Corpus]
    has_more: bool


class Failure(ApiObject):
    """A line, document or row that did not make it, and why."""

    stage: Literal["corpus", "capture", "generation"]
    """`corpus`: the line gives no document, or row. `capture`: the teacher failed on the document. `generation`: a step
    left the row out."""
    line: int
    document: int | None = None
    """Its number, where the line gave one."""
    custom_id: str | None
    """The caller's name of the line."""
    code: str
    message: str


class ExtractionCheck(ApiObject):
    """The request could be started now, as far as can be told without its corpus."""

    object: Literal["extraction.check"] = "extraction.check"
    cask: str
    cask_exists: Annotated[bool, Field(description="Whether it would go on with a cask, rather than begin one.")]
    teacher: Annotated[
        str | None, Field(description="Name of the teacher; null while it loads, when lengths and ids go unchecked.")
    ]
    max_length: Annotated[int | None, Field(description="Most tokens of a document; null while the teacher loads.")]


class Reason(ApiObject):
    """Why something is as it is."""

    code: str
    message: str


class RequestCounts(ApiObject):
    """In documents, and lines that gave none."""

    total: int
    completed: Annotated[int, Field(description="In the cask: captured now, or there already.")]
    failed: Annotated[int, Field(description="Bad lines, and documents the teacher failed on; listed under errors.")]
    skipped: Annotated[int, Field(description="Longer than max_length under overflow `skip`.")]


class LineCounts(ApiObject):
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


class DocumentCounts(ApiObject):
    """Documents the lines gave."""

    total: int
    captured: int
    present: Annotated[int, Field(description="In the cask before, or more than once in the corpus.")]
    failed: int


class Usage(ApiObject):
    """How far it is, and what it cost."""

    tokens_done: int
    tokens_total: int
    tokens_captured: int
    bytes_written: int


class Extraction(ExtractionRequest):
    """An extraction: what was asked, and how far it is."""

    model_config = ConfigDict(extra="allow")

    object: Literal["extraction"] = "extraction"
    id: str
    status: Status
    created_at: int
    queued_at: Seconds = None
    in_progress_at: Seconds = None
    finalizing_at: Seconds = None
    pausing_at: Seconds = None
    paused_at: Seconds = None
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
    teacher: Annotated[  # type: ignore[assignment]  # the request has its name here, see `teacher_name`
        dict[str, Any] | None, Field(description="Identity of the teacher; null until validated.")
    ]
    teacher_name: Annotated[str | None, Field(description="As it was asked for; null: the service's first.")] = None
    waiting: Annotated[Reason | None, Field(description="What holds it up, while something does.")]
    error: Annotated[Reason | None, Field(description="Why it failed.")]

    @field_validator("capture", mode="before")
    @classmethod
    def _of_any_version(cls, capture: Any) -> Any:
        """Older services had wider limits; fields that only newer ones have are left out."""
        if not isinstance(capture, Mapping):
            return capture
        return stored_spec({name: value for name, value in capture.items() if name in CaptureSpec.model_fields})


class Progress(ApiObject):
    """How far a running extraction is, between two entries of its log."""

    status: Status
    usage: Usage
    request_counts: RequestCounts
    throughput_tps: float | None
    eta_seconds: float | None


class ExtractionList(ApiObject):
    """A page of extractions."""

    object: Literal["list"] = "list"
    data: list[Extraction]
    has_more: bool


class Event(ApiObject):
    """One entry of a job's log."""

    object: Literal["extraction.event", "generation.event"] = "extraction.event"
    id: int
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]


class EventList(ApiObject):
    """A page of events, oldest first."""

    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class ShardOfExtraction(ApiObject):
    """A published shard, with what else its entry in the cask says."""

    chunk: int
    name: str
    bytes: int
    sha256: str
    documents: int
    tokens: int


class Manifest(ApiObject):
    """What an extraction has put into its cask."""

    object: Literal["extraction.manifest"] = "extraction.manifest"
    extraction_id: str
    cask: str
    partial: Annotated[bool, Field(description="Whether the extraction has not completed.")]
    teacher: dict[str, Any] | None
    capture: CaptureSpec
    """Of the cask, with hints' layers counted from 0 on; before there is a cask, as it was asked for."""
    shards: list[ShardOfExtraction]


class PreviewPiece(ApiObject):
    """A run of tokens of one kind, as text."""

    kind: Literal["text", "answer", "control", "answer_control"]
    text: str
    tokens: int


class PreviewDocument(ApiObject):
    """A document as the student will see it."""

    line: int
    tokens: int
    answer_tokens: int | None
    """Null where the line does not tell what is an answer."""
    recorded_positions: int | None = None
    """Null from services that record all."""
    context_tokens: int = 0
    """Read by the teacher before it."""
    pieces: list[PreviewPiece]
    cut: bool
    """Whether more tokens follow than are shown."""


class BytesPerToken(ApiObject):
    """Of an Arrow cask, without the framing of shards."""

    low: float
    high: float
    expected: float | None
    basis: Literal["cask", "measured_elsewhere", "bounds"]
    """Where `expected` comes from: the cask's own shards; text and teacher of the documentation; nowhere."""
    hints: float = 0.0
    """Beside these: hints per recorded position; of one row per document it is 0."""
    hints_per_document: float = 0.0
    """Beside these: hints per document; of a row per recorded position it is 0."""


class Preview(ApiObject):
    """What preparation makes of the lines."""

    object: Literal["preview"] = "preview"
    lines: int
    documents: int
    tokens: int
    recorded_positions: int | None = None
    """Positions that get a record; a document of L tokens has L - 1. Null from services that record all."""
    context_tokens: int = 0
    """Read by the teacher before documents, and not stored."""
    bad_lines: int
    skipped_lines: int
    truncated_lines: int
    split_lines: int
    bad_by_code: dict[str, int]
    notes: dict[str, int]
    first_lines: dict[str, list[int]]
    """For codes of notes and bad lines, `truncated` and `split`: where."""
    bad: list[Failure]
    """The first ones."""
    shown: list[PreviewDocument]
    bytes_per_token: BytesPerToken
    tokens_per_second: Annotated[
        float | None, Field(description="Of this teacher in its latest extractions; null where none was measured.")
    ] = None
    teacher: str
    max_length: int
    overflow: Overflow
