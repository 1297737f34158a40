"""The tables of the job database. Times are seconds since 1970, UTC."""

from typing import Any, ClassVar

from sqlalchemy import JSON, Dialect, ForeignKey, Index, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from logitcask_schemas.api.objects import Status
from logitcask_schemas.api.requests import ExtractionRequest, stored_request

SCHEMA_VERSION = 3
"""1: the first. 2: notes, first lines. 3: the request as one document, until then a column for each of its fields."""


class RequestColumn(TypeDecorator[ExtractionRequest]):
    """A request as JSON; its `kind` says which model it is read with."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: ExtractionRequest | None, dialect: Dialect) -> Any:
        """To the database."""
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> ExtractionRequest | None:
        """From the database."""
        return None if value is None else stored_request(value)


class Base(DeclarativeBase):
    """Declarative base."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        Status: Text,
        ExtractionRequest: RequestColumn,
    }


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


class ExtractionRow(Base):
    """One extraction: what was asked, where it stands, what it did. Counters change with each committed chunk."""

    __tablename__ = "extractions"
    __table_args__ = (Index("extractions_by_status", "status", "number"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    corpus_id: Mapped[str] = mapped_column(ForeignKey("corpora.id"))
    """The request's, beside it for joins."""
    request: Mapped[ExtractionRequest]

    status: Mapped[Status]
    timestamps: Mapped[dict[str, Any]]
    """Status to the last time it was entered."""
    waiting: Mapped[dict[str, Any] | None]
    """{code, message} while something outside (disk, teacher) holds the extraction up."""
    error: Mapped[dict[str, Any] | None]
    """{code, message} of a failed extraction."""
    teacher: Mapped[dict[str, Any] | None]
    """Identity of the teacher the tokens were prepared for."""

    lines: Mapped[int] = mapped_column(default=0)
    bad_lines: Mapped[int] = mapped_column(default=0)
    skipped_lines: Mapped[int] = mapped_column(default=0)
    truncated_lines: Mapped[int] = mapped_column(default=0)
    split_lines: Mapped[int] = mapped_column(default=0)
    notes: Mapped[dict[str, Any] | None]
    """{code: documents} of what preparation found unusual; None before it, and in rows of older versions."""
    first_lines: Mapped[dict[str, Any] | None]
    """{code: [line, ...]}: the first lines of the corpus that notes, bad lines and cuts concern."""
    documents: Mapped[int] = mapped_column(default=0)
    tokens_total: Mapped[int] = mapped_column(default=0)

    captured_documents: Mapped[int] = mapped_column(default=0)
    present_documents: Mapped[int] = mapped_column(default=0)
    failed_documents: Mapped[int] = mapped_column(default=0)
    tokens_done: Mapped[int] = mapped_column(default=0)
    tokens_captured: Mapped[int] = mapped_column(default=0)
    bytes_written: Mapped[int] = mapped_column(default=0)
    capture_seconds: Mapped[float] = mapped_column(default=0.0)


class ChunkRow(Base):
    """A run of consecutive documents: one shard, one transaction."""

    __tablename__ = "chunks"

    extraction: Mapped[int] = mapped_column(ForeignKey("extractions.number"), primary_key=True)
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

    extraction: Mapped[int] = mapped_column(ForeignKey("extractions.number"), primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True, index=True)
    entry: Mapped[dict[str, Any]]
    """The shard's entry in the cask."""


class EventRow(Base):
    """The log of an extraction; `seq` is the event id clients resume from."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_extraction", "extraction", "seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    extraction: Mapped[int] = mapped_column(ForeignKey("extractions.number"))
    created_at: Mapped[float]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class FailureRow(Base):
    """A `Failure` of an extraction."""

    __tablename__ = "line_errors"
    __table_args__ = (Index("line_errors_by_extraction", "extraction", "seq"),)

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    extraction: Mapped[int] = mapped_column(ForeignKey("extractions.number"))
    stage: Mapped[str]
    line: Mapped[int]
    document: Mapped[int | None]
    custom_id: Mapped[str | None]
    code: Mapped[str]
    message: Mapped[str]


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
