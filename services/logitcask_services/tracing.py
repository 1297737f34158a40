"""Traces of requests and of the stages of jobs, by OpenTelemetry, where its own variables (`OTEL_*`) ask for them.

`configure` reads the variables; without it, or without them, a `span` costs nothing and needs no package. Names of
spans and their attributes hold ids, routes and numbers, never texts, paths or keys.
"""

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from logitcask_schemas.errors import LogitcaskError, MissingExtraError
from logitcask_schemas.terminal import installed_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

EXPORTERS: Final = "opentelemetry_traces_exporter"
"""Entry points under which OpenTelemetry's packages say what exporters there are."""
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Attribute = str | int | float | bool
_tracer: "Tracer | None" = None


class TracingError(LogitcaskError, ValueError):
    """The variables ask for what is not there."""


def configure() -> bool:
    """Trace as the environment says: whether it asks for traces at all.

    Raises MissingExtraError where OpenTelemetry is not installed, TracingError on an exporter that nobody has.
    """
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(os.environ.get, ENDPOINTS)) else "none")
    if disabled or exporter == "none":
        return False
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("tracing (OTEL_* variables are set)", "otel", "opentelemetry-sdk") from error
    if exporter == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        exporter = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    known = {entry.name: entry for entry in importlib.metadata.entry_points(group=EXPORTERS)}
    if exporter not in known:
        raise TracingError(
            f"OTEL_TRACES_EXPORTER asks for {exporter!r}; installed are {', '.join(sorted(known)) or 'none'}. Install "
            "the extra otel (in a clone: pip install '.[otel]'), or the exporter's package"
        )
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name: dict[str, str] = {} if named else {"service.name": "logitcask"}
    provider = TracerProvider(resource=Resource.create({"service.version": installed_version(), **name}))
    provider.add_span_processor(BatchSpanProcessor(known[exporter].load()()))
    use(provider)
    return True


def use(provider: "TracerProvider | None") -> None:
    """Trace with this provider, which flushes itself when the process ends; None: no more."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("logitcask", installed_version())


def tracer() -> "Tracer | None":
    """What makes spans, or None where nobody wants any."""
    return _tracer


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[None]:
    """A span around the block; an exception that leaves it is noted by its class alone."""
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import Status, StatusCode

    members = {f"logitcask.{member}": value for member, value in attributes.items()}
    with _tracer.start_as_current_span(
        name, attributes=members, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
