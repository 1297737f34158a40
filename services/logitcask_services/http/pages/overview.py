"""The first page: jobs as they go, the teacher, corpora. The same figures as a stream of server-sent events."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from logitcask_schemas.api.generation import Generation
from logitcask_schemas.api.objects import Corpus, Extraction
from logitcask_schemas.api.service_objects import NotReady
from logitcask_services.http import extraction_work, generation_work
from logitcask_services.http.corpora import corpus_of
from logitcask_services.http.pages.controls import ControlPages
from logitcask_services.http.pages.viewer.rendering import NOTHING, JsonAnswer, Pages, bytes_text, figure_text
from logitcask_services.http.problems import Problem
from logitcask_services.service import Service

if TYPE_CHECKING:
    from logitcask_services.http.job_streams import StreamPlaces

SHOWN: Final = 20
POLL_SECONDS: Final = 0.25
STEP_SECONDS: Final = 1.0
"""Figures that move are told at most so often."""


class TeacherNow(BaseModel):
    """The teacher as it stands."""

    state: str
    reason: str
    model: str | None
    max_model_len: int | None


class Overview(BaseModel):
    """What the first page shows; jobs and corpora are the newest, objects as under /v1."""

    teacher: TeacherNow
    not_ready: list[NotReady]
    queue_paused: bool
    """Whether no job is worked on."""
    extractions: list[Extraction]
    generations: list[Generation]
    corpora: list[Corpus]


class LiveFigures(BaseModel):
    """Texts by the name of their place on the page."""

    shape: str
    """Of what is listed, and whether the queue is paused; another one means that this part of the page is old."""
    fields: dict[str, str]
    progress: dict[str, float]
    """Share that is done, by job."""


def overview_of(service: Service) -> Overview:
    """Everything at once."""
    facts = service.teacher.facts
    return Overview(
        teacher=TeacherNow(
            state=service.teacher.state,
            reason=service.teacher.reason,
            model=None if facts is None else facts.model,
            max_model_len=None if facts is None else facts.max_model_len,
        ),
        not_ready=[NotReady(**reason) for reason in service.not_ready()],
        queue_paused=service.signals.queue_paused,
        extractions=[
            extraction_work.present(service, row)
            for row in service.extractions.page(status=None, after=None, limit=SHOWN)
        ],
        generations=[
            generation_work.present(service, row)
            for row in service.generations.page(status=None, after=None, limit=SHOWN)
        ],
        corpora=[corpus_of(row) for row in service.corpora.page(after=None, limit=SHOWN)],
    )


def live_figures(now: Overview) -> LiveFigures:
    """The texts of all figures that change."""
    fields = {"teacher.status": now.teacher.state, "teacher.reason": _reasons(now)}
    progress: dict[str, float] = {}
    for job in now.extractions:
        usage = job.usage
        fields |= {
            f"{job.id}.status": job.status,
            f"{job.id}.tokens": f"{usage.tokens_done:,} of {usage.tokens_total:,}",
            f"{job.id}.rate": figure_text(job.throughput_tps, 0),
            f"{job.id}.left": duration_text(job.eta_seconds),
            f"{job.id}.bytes": bytes_text(usage.bytes_written),
            f"{job.id}.failed": f"{job.request_counts.failed:,}",
            f"{job.id}.note": _note(job),
        }
        progress[job.id] = usage.tokens_done / usage.tokens_total if usage.tokens_total else 0.0
    for generation in now.generations:
        total = sum(stage.requests_total for stage in generation.stages)
        done = sum(stage.requests_done for stage in generation.stages)
        fields |= {
            f"{generation.id}.status": generation.status,
            f"{generation.id}.requests": f"{done:,} of {total:,}",
            f"{generation.id}.tokens": f"{generation.generated_tokens:,}",
            f"{generation.id}.rate": figure_text(generation.throughput_tps, 0),
            f"{generation.id}.left": duration_text(generation.eta_seconds),
            f"{generation.id}.note": _note(generation),
        }
        progress[generation.id] = done / total if total else 0.0
    listed = [*(job.id for job in now.extractions), *(job.id for job in now.generations), *(c.id for c in now.corpora)]
    listed.append(f"paused {now.queue_paused}")  # its button is another one then
    shape = hashlib.sha256(" ".join(listed).encode()).hexdigest()[:16]
    return LiveFigures(shape=shape, fields=fields, progress=progress)


def duration_text(seconds: float | None) -> str:
    """A time that is left, for people; a dash for none."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _reasons(now: Overview) -> str:
    reasons = dict.fromkeys(reason.message for reason in now.not_ready)
    return "; ".join(reasons) if reasons else "new work would be done now"


def _note(job: Extraction | Generation) -> str:
    """What holds a job up, or why it failed."""
    reason = job.error or job.waiting
    return "" if reason is None else reason.message


class OverviewPages:
    """The first page, its figures as JSON, and as a stream."""

    def __init__(self, pages: Pages, service: Service, controls: ControlPages) -> None:
        self._pages = pages
        self._service = service
        self._controls = controls
        # All streams share a look at the database; for one event loop.
        self._looking = asyncio.Lock()
        self._looked_at = -STEP_SECONDS
        self._content = ""

    def page(self, request: Request) -> Response:
        """HTML."""
        now = overview_of(self._service)
        return self._pages.show(
            request,
            "overview.html",
            now=now,
            live=live_figures(now),
            controls=self._controls.of_queue(request),
            is_paused=now.queue_paused,
            refused="",
        )

    def data(self, request: Request) -> Overview:
        """JSON."""
        return overview_of(self._service)

    async def events(self, request: Request) -> Response:
        """Server-sent events `figures`, each a `LiveFigures`, whenever one of them changes."""
        places: StreamPlaces = request.app.state.streams
        try:
            places.require_place()
        except Problem as problem:
            return JsonAnswer(
                problem.body(request.url.path), status_code=problem.status, media_type="application/problem+json"
            )
        return StreamingResponse(places.hold(self._follow()), media_type="text/event-stream")

    async def _latest(self) -> str:
        """The figures as JSON, STEP_SECONDS old at most."""
        async with self._looking:
            if time.monotonic() - self._looked_at >= STEP_SECONDS:
                figures = live_figures(await run_in_threadpool(overview_of, self._service))
                self._content, self._looked_at = json.dumps(figures.model_dump(mode="json")), time.monotonic()
            return self._content

    async def _follow(self) -> AsyncIterator[bytes]:
        yield b"retry: 2000\n\n"
        service, last, said = self._service, "", time.monotonic()
        while not service.signals.stopping.is_set():
            if (content := await self._latest()) != last:
                last, said = content, time.monotonic()
                yield f"event: figures\ndata: {content}\n\n".encode()
            elif time.monotonic() - said >= service.settings.keepalive_seconds:
                said = time.monotonic()
                yield b": still here\n\n"
            waited = 0.0
            while waited < STEP_SECONDS and not service.signals.stopping.is_set():
                await asyncio.sleep(POLL_SECONDS)
                waited += POLL_SECONDS
