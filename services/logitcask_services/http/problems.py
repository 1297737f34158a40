"""Errors on the wire: RFC 9457 problem details, with the `error` member OpenAI's clients read. Handlers, once."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from logitcask_schemas.errors import CaskError, CaskNotFoundError, IdentityMismatchError, LogitcaskError
from logitcask_services.jobs.requests import IdempotencyConflictError, NotFoundError
from logitcask_services.jobs.room import disk_is_full
from logitcask_services.jobs.states import IllegalTransitionError
from logitcask_services.layout import CaskNameError

MEDIA_TYPE = "application/problem+json"
Responses = dict[int | str, dict[str, Any]]
CODES = {400: "invalid_body", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""Codes of what the framework refuses by itself."""


class ErrorMember(BaseModel):
    """The error as OpenAI's clients expect it."""

    message: str
    type: str
    param: str | None = None
    code: str


class ProblemBody(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str
    """`urn:logitcask:problem:` and the code."""
    title: str
    status: int
    detail: str
    instance: str
    error: ErrorMember


class Problem(LogitcaskError, RuntimeError):
    """An answer other than success, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.headers = headers
        self.extra = extra or {}

    def body(self, instance: str) -> dict[str, Any]:
        """The JSON object."""
        kind = "authentication_error" if self.status == HTTPStatus.UNAUTHORIZED else "invalid_request_error"
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = "server_error"
        return {
            "type": f"urn:logitcask:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code},
            **self.extra,
        }


def storage_problem(detail: str) -> Problem:
    """507: the disk is full or below the floor."""
    return Problem(
        507, "insufficient_storage", f"{detail}. Free space on the server and try again", headers={"Retry-After": "60"}
    )


def problem_of(error: LogitcaskError) -> Problem:
    """The answer for one of our own errors."""
    match error:
        case Problem():
            return error
        case NotFoundError():
            return Problem(404, "not_found", str(error), param=f"{error.kind}_id")
        case IdempotencyConflictError():
            return Problem(422, "idempotency_key_reused", str(error), param="Idempotency-Key")
        case IllegalTransitionError():
            return Problem(409, "illegal_transition", str(error), extra={"current_status": error.current})
        case CaskNameError():
            return Problem(422, "invalid_cask_name", str(error), param="cask")
        case IdentityMismatchError():
            return Problem(409, "cask_mismatch", str(error), param="cask")
        case CaskNotFoundError():
            return Problem(404, "not_found", str(error), param="cask")
        case CaskError():
            return Problem(409, "cask_unusable", str(error), param="cask")
        case _:
            return Problem(500, "internal_error", str(error))


def install(app: FastAPI) -> None:
    """Register the handlers."""

    def respond(request: Request, problem: Problem) -> JSONResponse:
        return JSONResponse(
            problem.body(request.url.path), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE
        )

    @app.exception_handler(LogitcaskError)
    def ours(request: Request, error: LogitcaskError) -> JSONResponse:
        return respond(request, problem_of(error))

    @app.exception_handler(HTTPException)
    def framework(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, f"http_{error.status_code}")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers) if error.headers else None
        return respond(request, Problem(error.status_code, code, detail, headers=headers))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults: list[dict[str, str | None]] = [
            {"param": ".".join(str(part) for part in fault["loc"][1:]) or None, "message": fault["msg"]}
            for fault in error.errors()
        ]
        detail = "; ".join(": ".join(filter(None, fault.values())) for fault in faults)
        return respond(
            request,
            Problem(422, "invalid_request", detail, param=faults[0]["param"], extra={"errors": faults}),
        )

    @app.exception_handler(OperationalError)
    def database(request: Request, error: OperationalError) -> JSONResponse:
        if disk_is_full(error):
            return respond(request, storage_problem("the disk of the job database is full"))
        return respond(request, Problem(503, "database_unavailable", f"the job database is unavailable: {error.orig}"))

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:  # the server logs the traceback
        return respond(
            request, Problem(500, "internal_error", f"unforeseen {type(error).__name__}; see the server's log")
        )


def documented(*statuses: int, others: Responses | None = None) -> Responses:
    """OpenAPI `responses` for these statuses, and others."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    problems: Responses = {
        status: {"description": HTTPStatus(status).phrase, "model": ProblemBody, "content": content}
        for status in statuses
    }
    return {**(others or {}), **problems}
