"""One job: how far it is, what it came to, and the figures of the cask that it writes."""

from itertools import pairwise
from typing import Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from logitcask_schemas.api.objects import Event, Extraction
from logitcask_schemas.errors import CaskError
from logitcask_services.http import extraction_work, generation_work
from logitcask_services.http.pages.controls import GENERATION, ControlPages
from logitcask_services.http.pages.overview import live_figures, overview_of
from logitcask_services.http.pages.viewer.figures import CaskFigures, ShardBytes, cask_figures
from logitcask_services.http.pages.viewer.rendering import Pages
from logitcask_services.service import Service

SHOWN_FAILURES: Final = 20
SHOWN_EVENTS: Final = 50
PAGE_EVENTS: Final = 1000
MAX_STEPS: Final = 40
"""Of the curve of throughput."""


class Pace(BaseModel):
    """Tokens per second between two chunks that were put into the cask."""

    seconds: float
    """Since the job began to run."""
    tokens_done: int
    tokens_per_second: float


class ShownFailure(BaseModel):
    """A line or document that did not make it."""

    line: int
    custom_id: str | None
    code: str
    message: str


class JobFigures(BaseModel):
    """An extraction, as /v1 has it, with what the plots of its page show."""

    extraction: Extraction
    pace: list[Pace]
    cask: CaskFigures | None
    """Of the cask, whoever wrote into it; `shards` are this job's own. None before there is one, or when it is gone."""
    cask_problem: str | None = None
    """Why there are none although the job has put something into it."""


def job_figures(service: Service, job_id: str) -> JobFigures:
    """Figures of an extraction, also while its cask is being written, or gone. Raises NotFoundError."""
    row = service.extractions.get(job_id)
    job = extraction_work.present(service, row)
    own = extraction_work.manifest(service, row).shards
    figures, problem = None, None
    if own:
        shards = [
            ShardBytes(
                name=shard.name,
                tokens=shard.tokens,
                bytes=shard.bytes,
                bytes_per_token=shard.bytes / max(shard.tokens, 1),
            )
            for shard in own
        ]
        try:
            figures = cask_figures(service.folders.casks.open(job.cask)).model_copy(update={"shards": shards})
        except CaskError as error:
            problem = str(error)
    return JobFigures(extraction=job, pace=_pace(service, job_id), cask=figures, cask_problem=problem)


def _pace(service: Service, job_id: str) -> list[Pace]:
    """From the log, which has the time at which each chunk was published.

    Chunks come in bunches: those that follow within a part of the whole time are one step.
    """
    row = service.extractions.get(job_id)
    moments: list[tuple[float, int]] = []
    after = 0
    while events := service.log.events(row, after=after, limit=PAGE_EVENTS):
        after = events[-1].seq
        for event in events:
            if event.type == "status" and event.data.get("status") == "in_progress":
                moments.append((event.created_at, moments[-1][1] if moments else 0))
            elif event.type == "chunk":
                moments.append((event.created_at, int(event.data["tokens_done"])))
    if not moments:
        return []
    begin = moments[0][0]
    shortest = (moments[-1][0] - begin) / MAX_STEPS
    steps = moments[:1]
    for moment in moments[1:]:
        if moment[0] - steps[-1][0] >= shortest or moment is moments[-1]:
            steps.append(moment)
    return [
        Pace(seconds=end - begin, tokens_done=done, tokens_per_second=(done - before) / (end - start))
        for (start, before), (end, done) in pairwise(steps)
        if end > start and done > before
    ]


class JobPages:
    """The page of an extraction or a generation."""

    def __init__(self, pages: Pages, service: Service, controls: ControlPages) -> None:
        self._pages = pages
        self._service = service
        self._controls = controls

    def page(self, request: Request) -> Response:
        """HTML."""
        job_id: str = request.path_params["job_id"]
        if job_id.startswith(GENERATION):
            return self._generation(request, job_id)
        figures = job_figures(self._service, job_id)
        row = self._service.extractions.get(job_id)
        failures = next(iter(self._service.log.failures(row)), [])[:SHOWN_FAILURES]
        return self._pages.show(
            request,
            "job.html",
            figures=figures,
            job=figures.extraction,
            job_id=row.id,
            controls=self._controls.of_job(request, row),
            refused="",
            failures=[ShownFailure.model_validate(failure) for failure in failures],
            live=live_figures(overview_of(self._service)),
        )

    def _generation(self, request: Request, job_id: str) -> Response:
        row = self._service.generations.get(job_id)
        events = [
            Event(id=e.seq, created_at=int(e.created_at), level=e.level, type=e.type, message=e.message, data=e.data)
            for e in self._service.log.events(row, after=0, limit=SHOWN_EVENTS)
        ]
        return self._pages.show(
            request,
            "generation.html",
            job=generation_work.present(self._service, row),
            job_id=row.id,
            controls=self._controls.of_job(request, row),
            refused="",
            events=events,
            live=live_figures(overview_of(self._service)),
        )

    def data(self, request: Request) -> JobFigures:
        """JSON."""
        return job_figures(self._service, request.path_params["job_id"])
