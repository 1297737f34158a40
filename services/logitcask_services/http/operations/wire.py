"""Wire types of health, version and models."""

from typing import Any, Literal

from pydantic import BaseModel


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class NotReady(BaseModel):
    """One reason for not being ready."""

    code: str
    message: str


class WaitingWork(BaseModel):
    """What holds up extractions that are already there, with the message of one of them."""

    code: str
    message: str
    extractions: int


class Readiness(BaseModel):
    """Whether new work would be done now, and what work waits for."""

    status: Literal["ready", "not_ready"]
    reasons: list[NotReady]
    waiting: list[WaitingWork]


class Version(BaseModel):
    """The running version."""

    version: str


class Model(BaseModel):
    """The teacher."""

    object: Literal["model"] = "model"
    id: str
    owned_by: Literal["logitcask"] = "logitcask"
    max_model_len: int
    status: str
    teacher: dict[str, Any]


class ModelList(BaseModel):
    """The one teacher, or none while it loads for the first time."""

    object: Literal["list"] = "list"
    data: list[Model]
