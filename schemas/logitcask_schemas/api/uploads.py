"""Multi-part uploads and files over HTTP, in the shape of OpenAI's API: a corpus in parts, or as a file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.api.objects import ApiObject

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]
MAX_PARTS = 10_000
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]


class FileObject(ApiObject):
    """A corpus, or what a job wrote, as a file."""

    object: Literal["file"] = "file"
    id: str
    bytes: int
    created_at: Annotated[int, Field(description="Seconds since 1970, UTC.")]
    filename: str
    purpose: Literal["batch", "batch_output"] = "batch"
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | None = None


class FileList(ApiObject):
    """A page of files, newest first."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(ApiObject):
    """What was deleted."""

    id: str
    object: str
    deleted: Literal[True] = True


class UploadRequest(BaseModel):
    """A file that is to come in parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=1, le=2**53, description="Of the whole file, as it is sent.")]
    filename: Name
    purpose: Annotated[str, Field(max_length=64)] = "batch"
    mime_type: Annotated[str, Field(max_length=200)] = "application/jsonl"


class CompletionRequest(BaseModel):
    """The parts of a file, in its order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part_ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MAX_PARTS)]
    md5: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$", description="Of the whole file, in hex.")] = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="The same with SHA-256.")] = None


class UploadPart(ApiObject):
    """One part of a file."""

    object: Literal["upload.part"] = "upload.part"
    id: str
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


class Upload(ApiObject):
    """A file that comes in parts, and those that are here."""

    object: Literal["upload"] = "upload"
    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: UploadStatus
    file: FileObject | None = None
    parts: Annotated[list[UploadPart], Field(description="Those that are here, in the order in which they came.")]
