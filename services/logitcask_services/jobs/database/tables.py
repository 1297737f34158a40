"""The tables of the job database. Times are seconds since 1970, UTC."""

from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import JSON, Dialect, ForeignKey, Index, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from logitcask_schemas.api.generation import StoredGeneration
from logitcask_schemas.api.objects import Status
from logitcask_schemas.api.requests import ExtractionRequest, stored_request

SCHEMA_VERSION = 6
"""1: the first. 2: notes, first lines. 3: the request as one document, until then a column for each of its fields.
4: jobs of several kinds in the table that held extractions alone. 5: priorities and places in the queue, the state of
the service. 6: uploads in parts; corpora that were deleted."""
JobRequest = ExtractionRequest | StoredGeneration


class RequestColumn(TypeDecorator[JobRequest]):
    """A request as JSON; its `kind` says which model it is read with."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: JobRequest | None, dialect: Dialect) -> Any:
        """To the database."""
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> JobRequest | None:
        """From the database."""
        if value is None:
            return None
        return StoredGeneration.model_validate(value) if value["kind"] == "generate" else stored_request(value)


class Base(DeclarativeBase):
    """Declarative base."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
        Status: Text,
    }


def _counter() -> Mapped[int]:
    """A column of one kind of job; rows of other kinds leave it at 0."""
    return mapped_column(default=0, server_default="0")


class CorpusRow(Base):
    """An uploaded corpus; the content lies in the corpus folder under its digest."""

    __tablename__ = "corpora"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    bytes: Mapped[int]
    lines: Mapped[int]
    name: Mapped[str | None]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
    """Set where the content is gone; the row stays for the jobs that name it."""


class UploadRow(Base):
    """A file that comes in parts, which lie in a folder of its own until it is complete."""

    __tablename__ = "uploads"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    status: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    corpus_id: Mapped[str | None] = mapped_column(ForeignKey("corpora.id"))


class PartRow(Base):
    """A part of such a file, whole on the disk."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("upload_parts_by_upload", "upload", "number"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    upload: Mapped[int] = mapped_column(ForeignKey("uploads.number"))
    bytes: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[float]


class JobRow(Base):
    """One job: what was asked, where it stands. Its counters change with each committed chunk."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_by_status", "status", "number"),)
    __mapper_args__ = {"polymorphic_on": "kind", "with_polymorphic": "*"}  # noqa: RUF012 - SQLAlchemy reads it from the class

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(default="capture")
    """The request's, beside it for queries."""
    corpus_id: Mapped[str] = mapped_column(ForeignKey("corpora.id"))
    """The request's, beside it for joins."""
    request: Mapped[Any] = mapped_column(RequestColumn)

    status: Mapped[Status]
    timestamps: Mapped[dict[str, Any]]
    """Status to the last time it was entered."""
    waiting: Mapped[dict[str, Any] | None]
    """{code, message} while something outside (disk, teacher) holds the job up."""
    error: Mapped[dict[str, Any] | None]
    """{code, message} of a failed job."""
    teacher: Mapped[dict[str, Any] | None]
    """Identity of the teacher the work was prepared for."""

    lines: Mapped[int] = mapped_column(default=0)
    bad_lines: Mapped[int] = mapped_column(default=0)

    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Larger ones go first; as the request says, or as it was changed since."""
    place: Mapped[int] = mapped_column(default=0, server_default="0")
    """Among those of equal priority smaller ones go first. A new job's is behind all; a move exchanges places."""


class ExtractionRow(JobRow):
    """An extraction."""

    __mapper_args__ = {"polymorphic_identity": "capture"}  # noqa: RUF012 - SQLAlchemy reads it from the class
    if TYPE_CHECKING:
        request: Mapped[ExtractionRequest]

    skipped_lines: Mapped[int] = _counter()
    truncated_lines: Mapped[int] = _counter()
    split_lines: Mapped[int] = _counter()
    notes: Mapped[dict[str, Any] | None]
    """{code: documents} of what preparation found unusual; None before it, and in rows of older versions."""
    first_lines: Mapped[dict[str, Any] | None]
    """{code: [line, ...]}: the first lines of the corpus that notes, bad lines and cuts concern."""
    documents: Mapped[int] = _counter()
    tokens_total: Mapped[int] = _counter()

    captured_documents: Mapped[int] = _counter()
    present_documents: Mapped[int] = _counter()
    failed_documents: Mapped[int] = _counter()
    tokens_done: Mapped[int] = _counter()
    tokens_captured: Mapped[int] = _counter()
    bytes_written: Mapped[int] = _counter()
    capture_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")


class GenerationRow(JobRow):
    """A generation."""

    __mapper_args__ = {"polymorphic_identity": "generate"}  # noqa: RUF012 - SQLAlchemy reads it from the class
    if TYPE_CHECKING:
        request: Mapped[StoredGeneration]

    generated_tokens: Mapped[int] = _counter()
    generation_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    rows: Mapped[dict[str, Any] | None]
    """A `RowCounts`, once it is known."""
    corpora: Mapped[list[dict[str, Any]] | None]
    """Each a `GeneratedCorpus`, once they are written."""


class StageRow(Base):
    """The requests of one teacher step of a generation, or of one of its rounds."""

    __tablename__ = "stages"

    job: Mapped[int] = mapped_column(ForeignKey("jobs.number"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """In the order in which they run."""
    name: Mapped[str]
    """Number of the step, with the round: `2`, `0-r3`."""
    kind: Mapped[str]
    template: Mapped[str | None]
    requests: Mapped[int]
    requests_done: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    generated_tokens: Mapped[int] = mapped_column(default=0)


class AnswerChunkRow(Base):
    """A run of consecutive requests of a stage: one file of answers, one transaction."""

    __tablename__ = "answer_chunks"

    job: Mapped[int] = mapped_column(ForeignKey("jobs.number"), primary_key=True)
    stage: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    first_request: Mapped[int]
    requests: Mapped[int]
    done: Mapped[bool] = mapped_column(default=False)
    deaths: Mapped[int] = mapped_column(default=0)
    """How often the teacher died while it worked on this chunk."""


class ChunkRow(Base):
    """A run of consecutive documents: one shard, one transaction."""

    __tablename__ = "chunks"

    extraction: Mapped[int] = mapped_column(ForeignKey("jobs.number"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    first_document: Mapped[int]
    documents: Mapped[int]
    tokens: Mapped[int]
    done: Mapped[bool] = mapped_column(default=False)
    deaths: Mapped[int] = mapped_column(default=0)
    """How often the teacher died while it worked on this chunk."""


class ShardRow(Base):
    """A shard that a chunk published. A chunk whose documents were all in the cask already has none."""

    __tablename__ = "shards"

    extraction: Mapped[int] = mapped_column(ForeignKey("jobs.number"), primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True, index=True)
    entry: Mapped[dict[str, Any]]
    """The shard's entry in the cask."""


class EventRow(Base):
    """The log of a job; `seq` is the event id clients resume from."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_job", "job", "seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.number"))
    created_at: Mapped[float]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class FailureRow(Base):
    """A `Failure` of a job."""

    __tablename__ = "line_errors"
    __table_args__ = (Index("line_errors_by_job", "job", "seq"),)

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.number"))
    stage: Mapped[str]
    line: Mapped[int]
    document: Mapped[int | None]
    custom_id: Mapped[str | None]
    code: Mapped[str]
    message: Mapped[str]


class ServiceStateRow(Base):
    """What is true of the whole service and outlives the process."""

    __tablename__ = "service_state"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[dict[str, Any]]


class IdempotencyRow(Base):
    """An answered request with an Idempotency-Key."""

    __tablename__ = "idempotency"

    scope: Mapped[str] = mapped_column(primary_key=True)
    """Operation and caller."""
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """SHA-256 of the request."""
    object_id: Mapped[str]
    created_at: Mapped[float]
