"""Traces: requests by route, stages of jobs by job; nothing where nobody asked."""

import subprocess
import sys

import pytest

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from logitcask_schemas.errors import MissingExtraError
from logitcask_services import tracing
from tests.support.services.service_harness import server_environment, wait_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans():
    """A function that gives the ended spans by name."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)

    def ended():
        by_name = {}
        for span in exporter.get_finished_spans():
            by_name.setdefault(span.name, []).append(span)
        return by_name

    yield ended
    tracing.use(None)


def test_requests_and_stages(serve, documents, spans):
    server = serve()
    job = server.submit(server.upload(documents))
    server.finish(job["id"])
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    server.client.get("/v1/corpora/secret-name?limit=3", headers=headers)
    wait_for(lambda: "logitcask.capture" in spans() and "GET /v1/corpora/{corpus_id}" in spans())
    (call,) = spans()["GET /v1/corpora/{corpus_id}"]
    assert (f"{call.context.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(call.attributes) == {
        "http.request.method": "GET",
        "http.route": "/v1/corpora/{corpus_id}",
        "http.response.status_code": 404,
    }
    for stage in ("logitcask.prepare", "logitcask.capture"):
        (span,) = spans()[stage]
        assert dict(span.attributes) == {"logitcask.job": job["id"]}
    published = spans()["logitcask.publish"]
    assert [span.attributes["logitcask.chunk"] for span in published] == list(range(len(published)))
    assert len(published) > 1
    assert "secret-name" not in str([span.to_json() for named in spans().values() for span in named])


def test_an_error_is_noted_without_its_words(spans):
    with pytest.raises(ValueError, match="what a user wrote"), tracing.span("stage", job="j"):
        raise ValueError("what a user wrote")
    (span,) = spans()["stage"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError")
    assert span.events == ()


def test_without_a_provider_nothing_is_made(spans):
    tracing.use(None)
    with tracing.span("stage"):
        pass
    assert spans() == {}


ALL = ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", *tracing.ENDPOINTS)
CONFIGURE = """
from logitcask_schemas.errors import MissingExtraError
from logitcask_services import tracing
print(tracing.configure())
with tracing.span("a stage"):
    pass
"""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "False"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "False"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, "False"),
        ({"OTEL_TRACES_EXPORTER": "console"}, '"name": "a stage"'),
        ({"OTEL_TRACES_EXPORTER": "console"}, '"service.name": "logitcask"'),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "ours"}, '"service.name": "ours"'),
        ({"OTEL_TRACES_EXPORTER": "pigeon"}, "asks for 'pigeon'; installed are"),
    ],
)
def test_variables_decide(variables, said):
    """In a process of its own, as the provider flushes itself at its end."""
    clean = {name: value for name, value in server_environment().items() if name not in ALL}
    done = subprocess.run(
        [sys.executable, "-c", CONFIGURE], capture_output=True, text=True, env={**clean, **variables}, check=False
    )
    assert said in done.stdout + done.stderr
    assert (done.returncode != 0) == ("pigeon" in said)


def test_missing_packages_are_told(monkeypatch):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(MissingExtraError, match=r"otel"):
        tracing.configure()
