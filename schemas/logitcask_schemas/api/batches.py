"""Batches over HTTP, in the shape of OpenAI's API: an extraction or a generation, seen as its clients expect it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.api.objects import ApiObject, Seconds
from logitcask_schemas.api.requests import Metadata

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Endpoint = Literal["/v1/chat/completions", "/v1/extractions"]


class BatchRequest(BaseModel):
    """What to do with the lines of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: Annotated[
        Endpoint,
        Field(
            description="`/v1/chat/completions`: the teacher writes the next turn of each conversation; where they end "
            "with the assistant's turn already, they are captured. `/v1/extractions`: every line is captured."
        ),
    ]
    completion_window: Annotated[str, Field(max_length=16, description="Nothing depends on it.")] = "24h"
    metadata: Annotated[
        Metadata | None,
        Field(
            description="`cask` names the cask; of an extraction also `capture` (JSON), `max_length`, `overflow`, "
            "`loss_on`. All of it comes back."
        ),
    ] = None

    def canonical(self) -> bytes:
        """Bytes that are equal for equal requests."""
        return self.model_dump_json().encode()


class BatchCounts(ApiObject):
    """How many lines there are, and what became of them."""

    total: int
    completed: int
    failed: int


class BatchError(ApiObject):
    """Why a batch failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(ApiObject):
    """The same as a list."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class Batch(ApiObject):
    """A job as a batch; its id is that of the job behind `batch_`."""

    object: Literal["batch"] = "batch"
    id: str
    endpoint: Endpoint
    input_file_id: str
    completion_window: str = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    errors: BatchErrors | None
    created_at: int
    in_progress_at: Seconds = None
    finalizing_at: Seconds = None
    completed_at: Seconds = None
    failed_at: Seconds = None
    cancelling_at: Seconds = None
    cancelled_at: Seconds = None
    expires_at: Seconds = None
    expired_at: Seconds = None
    request_counts: BatchCounts
    metadata: dict[str, Any] | None


class BatchList(ApiObject):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
