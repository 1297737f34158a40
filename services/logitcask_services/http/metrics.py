"""Prometheus metrics: requests as they pass, everything else read from the service when it is asked for."""

import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitcask_schemas.api.objects import STATUSES
from logitcask_schemas.cask.storage import files
from logitcask_services.service import Service

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods with a label of their own; a client can make up as many others as it likes."""


class ServiceMetrics:
    """A registry of this service's own, so that several services in one process do not meet."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_ServiceCollector(service))
        self.requests = Counter(
            "logitcask_http_requests", "Answered requests", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "logitcask_http_request_seconds",
            "Time until a request's answer was complete",
            ["method", "route"],
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """All metrics of jobs, teacher and disk."""
        service = self._service
        totals = service.extractions.totals()
        for name, description, value in (
            ("logitcask_tokens_captured", "Tokens of documents captured and committed", totals.tokens_captured),
            ("logitcask_documents_captured", "Documents captured and committed", totals.captured_documents),
            ("logitcask_documents_failed", "Documents the teacher failed on", totals.failed_documents),
            ("logitcask_cask_bytes_written", "Bytes of published shards", totals.bytes_written),
            (
                "logitcask_teacher_deaths",
                "Deaths of the teacher since the service started",
                service.teacher.deaths,
            ),
            (
                "logitcask_teacher_loads",
                "Loads of the teacher since the service started, for another role or after a death",
                service.teacher.loads,
            ),
            (
                "logitcask_engine_restarts",
                "Loads of the engine after a death or a failed load",
                service.teacher.restarts,
            ),
            ("logitcask_generated_tokens", "Tokens the teacher has written", service.generations.generated_tokens()),
        ):
            yield CounterMetricFamily(name, description, value=value)
        yield from self._scoring()
        for name, description, jobs in (
            ("logitcask_extractions", "Extractions by status", service.extractions.count_by_status()),
            ("logitcask_generations", "Generations by status", service.generations.count_by_status()),
        ):
            by_status = GaugeMetricFamily(name, description, labels=["status"])
            for status in STATUSES:
                by_status.add_metric([status], jobs.get(status, 0))
            yield by_status
        ready = float(service.teacher.state == "ready")
        yield GaugeMetricFamily("logitcask_teacher_ready", "1 while the teacher is loaded", value=ready)
        step = service.teacher.step_silence or 0.0
        yield GaugeMetricFamily("logitcask_engine_step_seconds", "Age of the engine's step under way", value=step)
        free = GaugeMetricFamily("logitcask_disk_free_bytes", "Free bytes", labels=["folder"])
        free.add_metric(["cask_root"], files.free_bytes(service.folders.cask_root))
        free.add_metric(["data_dir"], files.free_bytes(service.folders.state))
        yield free

    def _scoring(self) -> Iterator[Metric]:
        scoring = self._service.scoring
        for name, description, value in (
            ("logitcask_scoring_waiting_tokens", "Tokens that wait to be scored now", scoring.waiting_tokens),
            ("logitcask_scoring_waiting_sequences", "Sequences that wait to be scored now", scoring.waiting_sequences),
        ):
            yield GaugeMetricFamily(name, description, value=value)
        counts = scoring.counts
        yield CounterMetricFamily("logitcask_scoring_sequences", "Sequences scored now", value=counts.sequences)
        yield CounterMetricFamily("logitcask_scoring_tokens", "Tokens of sequences scored now", value=counts.tokens)
        refusals = CounterMetricFamily("logitcask_scoring_refusals", "Requests not answered, by code", labels=["code"])
        for code, times in sorted(counts.refusals.items()):
            refusals.add_metric([code], times)
        yield refusals


class RequestMetrics:
    """Counts and times requests by route template, never by raw path."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        start = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - start)
