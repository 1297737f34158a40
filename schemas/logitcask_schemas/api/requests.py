"""What a caller asks of the service: one model from the HTTP body over the job database to the answer."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.record.capture_spec import CaptureSpec, stored_spec

Overflow = Literal["truncate", "split", "skip"]
OnError = Literal["skip", "fail"]
LossOn = Literal["all", "assistant", "completion"]
CarrierName = Literal["arrow", "zarr", "parquet", "packed"]

MIN_LENGTH: Final = 4
"""Smallest `max_length`: what `split` needs so that every piece has at least two tokens."""
MAX_LENGTH: Final = 2**31 - 1
CASK_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TEACHER_NAME: Final = r"(students/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
NAME_RULE: Final = "1 to 128 letters, digits, dots, hyphens or underscores, the first a letter or digit"

CaskName = Annotated[str, Field(pattern=f"^{CASK_NAME.pattern}$", description="Name of the cask, not a path.")]
TeacherName = Annotated[
    str,
    Field(
        pattern=f"^{TEACHER_NAME}$",
        description="One that `GET /v1/teachers` lists, or for a generation `students/NAME`; never a path.",
    ),
]
LARGEST_PRIORITY: Final = 1000
Priority = Annotated[
    int,
    Field(
        ge=-LARGEST_PRIORITY,
        le=LARGEST_PRIORITY,
        description="Waiting jobs with a larger one go first; equal ones in the order of the queue.",
    ),
]
Metadata = dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]]


def is_cask_name(text: str) -> bool:
    """Whether a cask may have this name."""
    return CASK_NAME.fullmatch(text) is not None


class ExtractionPlan(BaseModel):
    """How to capture, and where to: all of a request but the corpus."""

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[Literal["capture"], Field(description="What is made of the corpus.")] = "capture"
    cask: CaskName
    teacher: Annotated[TeacherName | None, Field(description="By whom; default: the first of the service's.")] = None
    capture: CaptureSpec = CaptureSpec()
    max_length: Annotated[
        int | None,
        Field(ge=MIN_LENGTH, le=MAX_LENGTH, description="Most tokens of a document; default: the teacher's context."),
    ] = None
    overflow: Annotated[Overflow, Field(description="What becomes of longer documents.")] = "truncate"
    loss_on: Annotated[
        LossOn,
        Field(
            description="Which tokens get a record: `all`, those of `assistant` turns (completions and labels with "
            "them), or the `completion` alone. The others are read by the teacher and stored as tokens only."
        ),
    ] = "all"
    carrier: Annotated[
        CarrierName,
        Field(description="File format of the shards: `arrow` to train from, `zarr`, `parquet` or `packed` to ship."),
    ] = "arrow"
    on_error: Annotated[
        OnError, Field(description="`skip` lists bad lines and goes on; `fail` ends the extraction at the first.")
    ] = "skip"
    metadata: Annotated[Metadata, Field(max_length=16)] = {}
    priority: Priority = 0


class ExtractionRequest(ExtractionPlan):
    """What to capture, how, and where to. The job database stores it as it is."""

    corpus_id: Annotated[str, Field(max_length=64)]

    def canonical(self) -> bytes:
        """Bytes that are equal for equal requests; an Idempotency-Key is tied to their digest."""
        # Requests had none of these when the first keys were made: one kind, one teacher, and all was recorded.
        without = {"kind"} | ({"loss_on"} if self.loss_on == "all" else set())
        without |= {"teacher"} if self.teacher is None else set()
        without |= set() if self.priority else {"priority"}
        return json.dumps(self.model_dump(mode="json", exclude=without), sort_keys=True).encode()


class JobChange(BaseModel):
    """What may be changed of a job that waits."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority


class QueueMove(BaseModel):
    """Where in the queue a job is put."""

    model_config = ConfigDict(extra="forbid")

    before: Annotated[
        str | None, Field(max_length=64, description="Id of the waiting job before which it is put; null: the front.")
    ] = None


def stored_request(fields: Mapping[str, Any]) -> ExtractionRequest:
    """The request that this or an older version stored, whose limits of a capture spec may have been wider.

    Raises:
        ValidationError: No version would have written it.
    """
    return ExtractionRequest.model_validate({**fields, "capture": stored_spec(fields["capture"])})
