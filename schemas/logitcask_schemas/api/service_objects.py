"""What the service says of itself, over HTTP: its state, its queue, its teachers."""

from typing import Annotated, Any, Literal

from pydantic import Field

from logitcask_schemas.api.objects import ApiObject, Seconds, Status


class Health(ApiObject):
    """The process answers."""

    status: Literal["ok"] = "ok"


class NotReady(ApiObject):
    """One reason for not being ready."""

    code: str
    message: str


class WaitingWork(ApiObject):
    """What holds up jobs that are already there, with the message of one of them."""

    code: str
    message: str
    extractions: int
    generations: int = 0


class Readiness(ApiObject):
    """Whether new work would be done now, and what work waits for."""

    status: Literal["ready", "not_ready"]
    reasons: list[NotReady]
    waiting: list[WaitingWork]
    paused: Annotated[bool, Field(description="Whether an operator has paused the queue; new work is accepted.")] = (
        False
    )


class QueueEntry(ApiObject):
    """A job that waits, or is held."""

    id: str
    kind: Literal["capture", "generate"]
    status: Status
    priority: int


class Queue(ApiObject):
    """The jobs that have a place in the queue, in order, and whether the queue is paused."""

    object: Literal["queue"] = "queue"
    paused: bool
    paused_at: Seconds = None
    running: Annotated[str | None, Field(description="Id of the job that the teacher works on.")]
    data: list[QueueEntry]
    has_more: bool


class Version(ApiObject):
    """The running version."""

    version: str


class Model(ApiObject):
    """The teacher."""

    object: Literal["model"] = "model"
    id: str
    owned_by: Literal["logitcask"] = "logitcask"
    max_model_len: int
    status: str
    teacher: dict[str, Any]


class ModelList(ApiObject):
    """The teachers that have been loaded; none while one loads for the first time."""

    object: Literal["list"] = "list"
    data: list[Model]


class NamedTeacher(ApiObject):
    """One of the teachers that requests may name."""

    object: Literal["teacher"] = "teacher"
    name: str
    engine: str
    is_default: Annotated[bool, Field(description="Whether requests without a name mean this one.")]
    state: Annotated[str, Field(description="`unloaded`, or that of the one in memory: loading, ready, ...; failed.")]
    reason: Annotated[str | None, Field(description="Why it is not ready, or what it cannot do at all.")] = None
    model: Annotated[str | None, Field(description="Name of its folder or repository; null until known.")] = None
    max_model_len: Annotated[int | None, Field(description="Most tokens of a document; null until known.")]
    teacher: Annotated[dict[str, Any] | None, Field(description="Identity; null until it was loaded once.")]


class TeacherList(ApiObject):
    """The operator's teachers, in their order."""

    object: Literal["list"] = "list"
    data: list[NamedTeacher]
    has_students: Annotated[bool, Field(description="Whether generations may name `students/NAME`.")]
