"""Idempotency-Key: the same key with the same request gives the same object; with another one, 422; meanwhile, 409."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Header, Query, Request

from logitcask_services.http.metrics import ServiceMetrics
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.database.owners import JobAllowance
from logitcask_services.jobs.extraction import IdempotencyKey, NotFoundError
from logitcask_services.keys import ApiKey
from logitcask_services.service import Service

After = Annotated[str | None, Query(max_length=64, description="Only objects listed after the one with this id.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Most objects in the page.")]


@contextmanager
def unknown_after() -> Iterator[None]:
    """Raises Problem 404 that names the parameter, where the object to continue after does not exist."""
    try:
        yield
    except NotFoundError as error:
        raise Problem(404, "not_found", str(error), param="after") from error


IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A name of your choice for this request; sending it again does not do the work again.",
    ),
]


class InFlight:
    """Keys whose first request has not been answered yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: set[tuple[str, str]] = set()

    @contextmanager
    def hold(self, scope: str, key: str | None) -> Iterator[None]:
        """Own the key for the length of a request. Raises Problem 409 where another request owns it."""
        if key is None:
            yield
            return
        with self._lock:
            if (scope, key) in self._keys:
                raise Problem(
                    409,
                    "request_in_flight",
                    f"a request with Idempotency-Key {key!r} is being worked on; wait for its answer",
                    param="Idempotency-Key",
                    headers={"Retry-After": "1"},
                )
            self._keys.add((scope, key))
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard((scope, key))


def scope_of(operation: str, caller: str) -> str:
    """Keys of different operations and callers do not meet."""
    return f"{operation} {caller}"


def key_for(scope: str, key: str | None, request: bytes) -> IdempotencyKey | None:
    """The key with the fingerprint of its request, given as canonical bytes."""
    if key is None:
        return None
    return IdempotencyKey(scope=scope, key=key, fingerprint=hashlib.sha256(request).hexdigest())


def allowance_of(key: ApiKey, service: Service) -> JobAllowance:
    """How many jobs may wait when this caller makes one."""
    return JobAllowance(all_jobs=service.settings.max_waiting_jobs, name=key.name, own_jobs=key.limits.waiting_jobs)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _in_flight(request: Request) -> InFlight:
    keys: InFlight = request.app.state.in_flight
    return keys


def _metrics(request: Request) -> ServiceMetrics:
    metrics: ServiceMetrics = request.app.state.metrics
    return metrics


ServiceDep = Annotated[Service, Depends(_service)]
InFlightDep = Annotated[InFlight, Depends(_in_flight)]
MetricsDep = Annotated[ServiceMetrics, Depends(_metrics)]
