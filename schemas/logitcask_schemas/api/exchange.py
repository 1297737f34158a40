"""What a client and a service say to each other, without a network: requests, answers, tries again, and their words.

A call is a *flow*: a generator that yields what is to be done (`Request`, `Pause`, ...) and is sent what came of it.
`connection.py` and `async_connection.py` do it, with threads that wait and without; all else is here, and once.
"""

import json
import random
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from logitcask_schemas.errors import LogitcaskError

T = TypeVar("T")
O = TypeVar("O", bound=BaseModel)  # noqa: E741 - an object
TIMEOUT_SECONDS: Final = 60.0
"""The service sends a comment every 15 s on streams; four missed ones mean a dead connection."""
UPLOAD_SECONDS: Final = 1800.0
"""The answer comes when the last byte is on the disk, which may have gigabytes to write by then."""
TRIES: Final = 4
FIRST_PAUSE: Final = 0.4
LONGEST_PAUSE: Final = 30.0
"""Seconds; a service that asks for more is not waited for."""
BUSY: Final = frozenset({429, 503})
"""Statuses of a service that may do better later."""


class ServiceError(LogitcaskError, RuntimeError):
    """The service refused a request; the message is its own. `status` is 0 where the client refused it.

    `retry_after_seconds`: when it may be asked again, as the service says; 0 where it does not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.code = code


class ServiceUnreachableError(LogitcaskError, ConnectionError):
    """Nothing answers where the service should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, below the service's address."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Iterator[bytes] | None = None
    read_seconds: float = TIMEOUT_SECONDS
    """How long an answer is waited for."""
    repeatable: bool = False
    """Whether the same request, sent twice, does no more than once: it only reads, or has an Idempotency-Key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, whole."""

    server: str
    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request whose answer is read as it comes; answered by an `Answer` whose content is empty on success.

    What was open before is closed.
    """

    request: Request


@dataclass(frozen=True, slots=True)
class Next:
    """Read on in what is open: the next block of bytes, or as events (id, type, data); None at the end."""

    as_events: bool = False


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """Give this to the caller, and go on."""

    value: T


ServerEvent: TypeAlias = tuple[str, str, str]
"""Id, type and data of a server-sent event."""
Reply: TypeAlias = Answer | bytes | ServerEvent | None
Flow: TypeAlias = Generator[Request | Pause | Open | Next, Reply, T]
"""A call with one result. Where a request reaches nobody, ServiceUnreachableError is thrown into it."""
ItemFlow: TypeAlias = Generator[Request | Pause | Open | Next | Item[T], Reply, None]
"""A call with results one after another."""


def sent(request: Request) -> Flow[Answer]:
    """The answer, which may be a refusal. A request that may be repeated is, with full jitter, while nobody is there.

    Retry-After is kept, up to `LONGEST_PAUSE`.
    """
    for attempt in range(TRIES):
        is_last = attempt == TRIES - 1 or not request.repeatable
        # The whole of an ever longer interval, so that clients that were refused together do not come back together.
        pause = random.uniform(0.0, FIRST_PAUSE * 2**attempt)
        try:
            reply = yield request
        except ServiceUnreachableError:
            if is_last:
                raise
        else:
            assert isinstance(reply, Answer)
            asked = seconds_to_retry(reply)
            if reply.status not in BUSY or is_last or asked > LONGEST_PAUSE:
                return reply
            pause += asked
        yield Pause(pause)
    raise AssertionError("unreachable")


def seconds_to_retry(answer: Answer) -> float:
    """Seconds after which the service may be asked again; 0 where it does not say, or not as a number."""
    text = answer.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0.0


def fetch(kind: type[O], request: Request) -> Flow[O]:
    """The object that answers. Raises ServiceError, ServiceUnreachableError."""
    return object_of(kind, (yield from sent(request)))


def getting(kind: type[O], path: str, params: Mapping[str, Any] | None = None) -> Flow[O]:
    """The object at a path."""
    return (yield from fetch(kind, Request(method="GET", path=path, params=params or {}, repeatable=True)))


def posting(
    kind: type[O],
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    repeatable: bool = False,
) -> Flow[O]:
    """The object that answers a JSON document; it may be repeated where it has an Idempotency-Key, or `repeatable`."""
    headers, content = dict(headers or {}), None
    if body is not None:
        # Not a library's JSON, which raises on numbers and texts that the service refuses in words.
        content, headers = json.dumps(body).encode(), {**headers, "Content-Type": "application/json"}
    request = Request(
        method=method,
        path=path,
        params=params or {},
        headers=headers,
        content=content,
        repeatable=repeatable or "Idempotency-Key" in headers,
    )
    return (yield from fetch(kind, request))


def lines_request(
    path: str, lines: bytes | Iterator[bytes], *, params: Mapping[str, Any], bytes_total: int | None = None
) -> Request:
    """A request whose body is JSON lines; of a stream, so many bytes are announced."""
    headers = {"Content-Type": "application/jsonl"}
    if bytes_total is not None:
        headers["Content-Length"] = str(bytes_total)
    return Request(method="POST", path=path, params=params, headers=headers, content=lines, read_seconds=UPLOAD_SECONDS)


def posting_for(media_type: str, path: str, body: Mapping[str, Any], *, seconds: float) -> Flow[bytes]:
    """What answers a JSON document in this media type, which takes the service up to so many seconds."""
    request = Request(
        method="POST",
        path=path,
        headers={"Content-Type": "application/json", "Accept": media_type},
        content=json.dumps(body).encode(),
        read_seconds=seconds + TIMEOUT_SECONDS,
    )
    answer = yield from sent(request)
    require_success(answer)
    if answer.headers.get("content-type") != media_type:
        raise stranger(answer)
    return answer.content


def opened(request: Request) -> Flow[Answer]:
    """The beginning of an answer that is then read with `Next`. Raises ServiceError where it is a refusal."""
    answer = yield Open(request)
    assert isinstance(answer, Answer)
    require_success(answer)
    return answer


def object_of(kind: type[O], answer: Answer) -> O:
    """The object that an answer holds.

    Raises:
        ServiceError: It is a refusal, no answer of ours, or one of another version.
    """
    require_success(answer)
    try:
        body = json.loads(answer.content)
        if not isinstance(body, dict) or "object" not in body:
            raise TypeError(f"a JSON object of ours has the member `object`, got {str(body)[:60]!r}")
    except (ValueError, TypeError) as error:
        raise stranger(answer) from error
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3])
        raise ServiceError(
            answer.status,
            "another_version",
            f"the service at {answer.server} is of another version of logitcask; its answer to "
            f"{answer.method} {answer.path} cannot be read here ({faults}). Use the version that it runs",
        ) from error


def require_success(answer: Answer) -> None:
    """Raise ServiceError in the service's own words where it refused, and how a key is given where one is needed."""
    if answer.is_success:
        return
    try:
        fault = json.loads(answer.content)["error"]
        told = str(fault["message"])
        if answer.status == HTTPStatus.UNAUTHORIZED:
            told += "; on the command line: --api-key-file or LOGITCASK_API_KEY"
        raise ServiceError(answer.status, str(fault["code"]), told, seconds_to_retry(answer))
    except (ValueError, KeyError, TypeError) as error:
        raise stranger(answer) from error


def stranger(answer: Answer) -> ServiceError:
    """What answers is no service of ours."""
    to = f"; it points to {answer.headers['location']}" if "location" in answer.headers else ""
    return ServiceError(
        answer.status,
        "not_our_service",
        f"what answers at {answer.server} is no logitcask service (status {answer.status} to "
        f"{answer.method} {answer.path}{to}); name another with --server or LOGITCASK_SERVER",
    )


_NOT_TLS: Final = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|UNKNOWN_PROTOCOL")
"""What OpenSSL's versions say where the answer is no TLS, but plain text."""


def unreachable(server: str, error: Exception) -> ServiceUnreachableError:
    """What a transport's error means, with where the service was looked for."""
    reason = str(error) or type(error).__name__
    if server.startswith("https://") and _NOT_TLS.search(reason):
        plain = server.replace("https://", "http://", 1)
        return ServiceUnreachableError(
            f"what answers at {server} does not speak https ({reason}); a service without a proxy speaks "
            f"http: name {plain} with --server or LOGITCASK_SERVER"
        )
    return ServiceUnreachableError(
        f"no service answers at {server} ({reason}); start one with `logitcask serve`, or name another "
        "with --server or LOGITCASK_SERVER"
    )


def collected(flow_of_page: Callable[[Mapping[str, Any]], Flow[tuple[list[T], bool]]], limit: int) -> Flow[list[T]]:
    """The first `limit` objects of a list that is asked for page by page; each has an `id`.

    Args:
        flow_of_page: asks for a page with these parameters; its objects, and whether there are more.
        limit: most objects.
    """
    listed: list[T] = []
    while len(listed) < limit:
        params: dict[str, Any] = {"limit": min(limit - len(listed), 100)}
        if listed:
            params["after"] = getattr(listed[-1], "id")  # noqa: B009 - the type variable has no bound
        data, has_more = yield from flow_of_page(params)
        listed += data
        if not has_more:
            break
    return listed
