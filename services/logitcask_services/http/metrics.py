"""Prometheus metrics: requests as they pass, everything else read from the service when it is asked for."""

import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
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
from logitcask_services.engines.process.fleet import EngineState
from logitcask_services.http.problems import CLIENT_GONE
from logitcask_services.jobs.teacher import TeacherState
from logitcask_services.service import Service

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods with a label of their own; a client can make up as many others as it likes."""


UNNAMED = {500: "internal_error", CLIENT_GONE: "client_gone"}
"""Codes of answers that are no problem documents of a route."""


class ServiceMetrics:
    """A registry of this service's own, so that several services in one process do not meet."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_ServiceCollector(service))
        for measure in service.measures.all:
            self._registry.register(measure)
        self.upload_bytes = Counter(
            "logitcask_upload_bytes", "Bytes of request bodies that were read", ["route"], registry=self._registry
        )
        self.refusals = Counter(
            "logitcask_refusals", "Requests that were answered with a problem", ["code"], registry=self._registry
        )
        self.connections = Gauge("logitcask_connections", "Open connections of clients", registry=self._registry)
        self.let_go = Counter(
            "logitcask_connections_let_go",
            "Connections ended by the service: silent for too long, or silent while others needed the place",
            ["reason"],
            registry=self._registry,
        )
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
        """All metrics of jobs, teacher and disk, and those that the engine keeps of itself."""
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
        yield from self._now()
        ready = float(service.teacher.state == "ready")
        yield GaugeMetricFamily("logitcask_teacher_ready", "1 while the teacher is loaded", value=ready)
        step = service.teacher.in_memory.step_silence or 0.0
        yield GaugeMetricFamily("logitcask_engine_step_seconds", "Age of the engine's step under way", value=step)
        free = GaugeMetricFamily("logitcask_disk_free_bytes", "Free bytes", labels=["folder"])
        for folder in service.folders.casks.disks:
            free.add_metric(["cask_root"], files.free_bytes(folder))
        free.add_metric(["data_dir"], files.free_bytes(service.folders.state))
        yield free
        yield from service.teacher.in_memory.metrics()

    def _now(self) -> Iterator[Metric]:
        """How fast it goes, how much is ahead, how the engine is."""
        service = self._service
        running = service.progress.running
        pace = None if running is None else service.progress.pace(running)
        rate = 0.0 if pace is None or pace.tokens_per_second is None else pace.tokens_per_second
        yield GaugeMetricFamily("logitcask_tokens_per_second", "Of the running job, over the last minute", value=rate)
        ahead = GaugeMetricFamily(
            "logitcask_queue_tokens", "Tokens of extractions still to be captured, by state", labels=["state"]
        )
        for where, tokens in service.extractions.tokens_ahead().items():
            ahead.add_metric([where], tokens)
        yield ahead
        held = float(service.signals.queue_paused)
        yield GaugeMetricFamily("logitcask_queue_paused", "1 while the whole queue is paused", value=held)
        states = GaugeMetricFamily("logitcask_teacher_state", "1 for the teacher's state", labels=["state"])
        for state in get_args(TeacherState):
            states.add_metric([state], float(service.teacher.state == state))
        yield states
        engine = self._engine()
        engines = GaugeMetricFamily("logitcask_engine_state", "1 for what the engine is at", labels=["state"])
        for what in get_args(EngineState):
            engines.add_metric([what], float(engine == what))
        yield engines
        many = service.teacher.in_memory.engine_states or [engine]
        counts = GaugeMetricFamily("logitcask_engines", "Engines that capture, by what they are at", labels=["state"])
        for what in get_args(EngineState):
            counts.add_metric([what], many.count(what))
        yield counts

    def _engine(self) -> EngineState:
        teacher = self._service.teacher
        if "working" in teacher.in_memory.engine_states:
            return "working"
        if teacher.in_memory.is_loading:
            return "loading"
        if teacher.state != "ready":
            return "absent"
        return "working" if self._service.heartbeat.is_expected else "idle"

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
        status, uncounted = 500, 0
        start = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        def route_of() -> str:
            route: str = getattr(scope.get("route"), "path", "unmatched")
            return route

        async def measured() -> Message:
            nonlocal uncounted
            message = await receive()
            uncounted += len(message.get("body", b""))
            if uncounted and "route" in scope:
                self._metrics.upload_bytes.labels(route_of()).inc(uncounted)
                uncounted = 0
            return message

        try:
            await self._app(scope, measured, watched)
        finally:
            route = route_of()
            if uncounted:
                self._metrics.upload_bytes.labels(route).inc(uncounted)
            if status >= HTTPStatus.BAD_REQUEST:
                self._metrics.refusals.labels(scope.get("problem", UNNAMED.get(status, "unforeseen"))).inc()
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - start)
