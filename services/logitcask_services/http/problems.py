"""Errors on the wire: RFC 9457 problem details, with the `error` member OpenAI's clients read. Handlers, once."""

import json
import logging
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import DatabaseError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from logitcask_schemas.cask.storage.files import NO_SPACE
from logitcask_schemas.errors import (
    CaskError,
    CaskNotFoundError,
    CaskReadError,
    CaskVersionError,
    CaskWriteError,
    IdentityMismatchError,
    LogitcaskError,
    ModelError,
    StoreError,
)
from logitcask_services.cask_places import CaskNameError
from logitcask_services.corpora.file_kind import NotJsonLinesError
from logitcask_services.corpora.packed import PackedError
from logitcask_services.generation.errors import RecipeError
from logitcask_services.jobs.database.corpora import CorpusInUseError
from logitcask_services.jobs.database.owners import QueueFullError, TooManyJobsError
from logitcask_services.jobs.database.removal import JobInUseError
from logitcask_services.jobs.database.uploads import UploadStateError
from logitcask_services.jobs.extraction import IdempotencyConflictError, IllegalTransitionError, NotFoundError
from logitcask_services.jobs.teacher_names import TeacherNameError
from logitcask_services.jobs.waiting import damage_of_database, disk_is_full

MEDIA_TYPE = "application/problem+json"
Responses = dict[int | str, dict[str, Any]]
CODES = {400: "invalid_body", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""Codes of what the framework refuses by itself."""
EVERYWHERE = (400, 403, 429, 431, 503)
"""Not HTTP; not for you; beyond the key's limits; too large a head; the database or a folder cannot be used. Any
operation may answer these."""
CLIENT_GONE = 499
"""Status of a request whose client went away before it was answered; for the metrics, nobody receives it."""
logger = logging.getLogger(__name__)


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
    request_id: str | None = None
    """Also the answer's `X-Request-Id`; lines of the log have it."""
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
        case TeacherNameError():
            return Problem(404 if error.code == "unknown_teacher" else 422, error.code, str(error), param="teacher")
        case ModelError():
            return Problem(422, "teacher_unusable", str(error), param="teacher")
        case IdempotencyConflictError():
            return Problem(422, "idempotency_key_reused", str(error), param="Idempotency-Key")
        case IllegalTransitionError():
            return Problem(409, "illegal_transition", str(error), extra={"current_status": error.current})
        case TooManyJobsError():
            return Problem(429, "too_many_jobs", str(error), headers={"Retry-After": "30"})
        case QueueFullError():
            return Problem(503, "queue_full", str(error), headers={"Retry-After": "60"})
        case NotJsonLinesError():
            return Problem(415, "not_json_lines", str(error))
        case CorpusInUseError():
            return Problem(409, "corpus_in_use", str(error), param="corpus_id", extra={"users": error.users})
        case JobInUseError():
            return Problem(409, "job_in_use", str(error))
        case UploadStateError():
            return Problem(409 if error.code.startswith("upload_") else 400, error.code, str(error))
        case PackedError():
            return Problem(413 if error.code == "unpacks_too_large" else 400, error.code, str(error))
        case RecipeError():
            return Problem(422, "invalid_recipe", str(error), param="recipe")
        case CaskNameError():
            return Problem(422, "invalid_cask_name", str(error), param="cask")
        case IdentityMismatchError():
            return Problem(409, "cask_mismatch", str(error), param="cask")
        case CaskVersionError():
            return Problem(409, "cask_version", str(error), param="cask")
        case CaskNotFoundError():
            return Problem(404, "not_found", str(error), param="cask")
        case CaskReadError() | CaskWriteError() | StoreError():
            return storage_unavailable(error)
        case CaskError():
            return Problem(409, "cask_unusable", str(error), param="cask")
        case _:
            return Problem(500, "internal_error", str(error))


def storage_unavailable(error: OSError) -> Problem:
    """507 or 503: a file system or an object store does not take or give what it should."""
    if error.errno in NO_SPACE:
        return storage_problem(f"the disk is full: {error}")
    return Problem(
        503,
        "storage_unavailable",
        f"the service cannot use its folders: {str(error).rstrip('.')}. Nothing was kept of the request; try again",
        headers={"Retry-After": "10"},
    )


class ProblemResponse(JSONResponse):
    """A problem as an answer. In ASCII, so that whatever a request held can be named."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, instance: str) -> None:
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        body, headers = problem.body(instance), dict(problem.headers or {})
        if request_id is not None:
            body, headers = {**body, "request_id": request_id}, {"X-Request-Id": request_id, **headers}
        super().__init__(body, status_code=problem.status, headers=headers)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Leaves the code behind, for the log and the metrics."""
        scope["problem"] = self._code
        await super().__call__(scope, receive, send)

    def render(self, content: Any) -> bytes:
        """JSON."""
        return json.dumps(content).encode()


def install(app: FastAPI) -> None:
    """Register the handlers."""

    def respond(request: Request, problem: Problem) -> Response:
        return ProblemResponse(problem, request.url.path)

    @app.exception_handler(LogitcaskError)
    def ours(request: Request, error: LogitcaskError) -> Response:
        return respond(request, problem_of(error))

    @app.exception_handler(ClientDisconnect)
    def gone(request: Request, _: ClientDisconnect) -> Response:
        logger.info("the client of %s %s went away before its request was complete", request.method, request.url.path)
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    def framework(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ClientDisconnect):
            return gone(request, error.__cause__)
        headers = dict(error.headers) if error.headers else None
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": ", ".join(sorted(_methods(request)))}
        code = CODES.get(error.status_code, f"http_{error.status_code}")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return respond(request, Problem(error.status_code, code, detail, headers=headers))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(request, _invalid_request(request, error))

    @app.exception_handler(OperationalError)
    def database(request: Request, error: OperationalError) -> Response:
        if disk_is_full(error):
            return respond(request, storage_problem("the disk of the job database is full"))
        return respond(
            request,
            Problem(
                503,
                "database_unavailable",
                f"the job database is unavailable: {error.orig}",
                headers={"Retry-After": "10"},
            ),
        )

    @app.exception_handler(DatabaseError)
    def damaged(request: Request, error: DatabaseError) -> Response:
        if (reason := damage_of_database(error)) is None:
            return unforeseen(request, error)
        logger.error("%s", reason)
        return respond(request, Problem(503, "database_unavailable", reason, headers={"Retry-After": "60"}))

    @app.exception_handler(OSError)
    def storage(request: Request, error: OSError) -> Response:
        logger.warning("%s", error, exc_info=error)
        return respond(request, storage_unavailable(error))

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> Response:  # the server logs the traceback
        return respond(
            request, Problem(500, "internal_error", f"unforeseen {type(error).__name__}; see the server's log")
        )


def _methods(request: Request) -> set[str]:
    """Methods that the path of a request knows."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return methods | ({"HEAD"} if "GET" in methods else set())


def _invalid_request(request: Request, error: RequestValidationError) -> Problem:
    faults: list[dict[str, str | None]] = []
    for fault in error.errors():
        place = fault["loc"]
        if fault["type"] == "json_invalid":
            where = _line_and_column(error.body, place[-1])
            return Problem(400, "invalid_body", f"the body is not JSON: {fault['ctx']['error']}{where}")
        if place == ("body",) and not _is_json(media_type := request.headers.get("content-type", "")):
            return Problem(
                415,
                "unsupported_media_type",
                f"the body is {media_type or 'of no type'!r}; expected JSON: send `Content-Type: application/json` "
                "(curl: `--json '{...}'`, or `-H 'Content-Type: application/json'` beside `-d`)",
                param="Content-Type",
            )
        faults.append({"param": ".".join(str(part) for part in place[1:]) or None, "message": fault["msg"]})
    detail = "; ".join(": ".join(filter(None, fault.values())) for fault in faults)
    return Problem(422, "invalid_request", detail, param=faults[0]["param"], extra={"errors": faults})


def _line_and_column(text: object, place: object) -> str:
    if not isinstance(text, str) or not isinstance(place, int):
        return ""
    return f" at line {text.count(chr(10), 0, place) + 1}, column {place - text.rfind(chr(10), 0, place)}"


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def documented(*statuses: int, others: Responses | None = None) -> Responses:
    """OpenAPI `responses` for these statuses, and others."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    problems: Responses = {
        status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses
    }
    return {**(others or {}), **problems}


def describe(description: dict[str, Any]) -> dict[str, Any]:
    """Add what `documented` refers to, and every operation's answers to requests that reach no route."""
    schemas = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    components = description.setdefault("components", {}).setdefault("schemas", {})
    components |= schemas.pop("$defs") | {"ProblemBody": schemas}
    for methods in description["paths"].values():
        for method, operation in methods.items():
            # 413: a body beyond the limits of the key.
            for status, answer in documented(*EVERYWHERE, *(() if method == "get" else (413,))).items():
                operation["responses"].setdefault(str(status), answer)
    return description
