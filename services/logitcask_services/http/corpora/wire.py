"""Wire types of corpora."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from logitcask_services.jobs.tables import CorpusRow


class Corpus(BaseModel):
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

    @classmethod
    def of(cls, row: CorpusRow, *, deduplicated: bool = False) -> Self:
        """From the database."""
        return cls(
            id=row.id,
            name=row.name,
            bytes=row.bytes,
            lines=row.lines,
            sha256=row.sha256,
            created_at=int(row.created_at),
            deduplicated=deduplicated,
        )


class CorpusList(BaseModel):
    """A page of corpora."""

    object: Literal["list"] = "list"
    data: list[Corpus]
    has_more: bool
