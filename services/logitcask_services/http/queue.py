"""Routes of the queue: what waits, priorities, places, and pauses of jobs and of all of them."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter

from logitcask_schemas.api.generation import Generation
from logitcask_schemas.api.objects import Extraction
from logitcask_schemas.api.requests import JobChange, QueueMove
from logitcask_schemas.api.service_objects import Queue, QueueEntry
from logitcask_services.http import extraction_work, generation_work
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import Limit, ServiceDep
from logitcask_services.http.problems import Problem, documented
from logitcask_services.jobs.database.jobs import JobStore
from logitcask_services.jobs.database.queue import NotWaitingError
from logitcask_services.jobs.database.tables import JobRow
from logitcask_services.service import Service

router = APIRouter(prefix="/v1", tags=["queue"], responses=documented(401, 422))
R = TypeVar("R", bound=JobRow)
CHANGES = documented(400, 404, 409, 413, 415)


@router.get("/queue")
def show_queue(service: ServiceDep, _: Caller, limit: Limit = 100) -> Queue:
    """The jobs that wait or are held, in the order in which they will be worked on."""
    return _queue(service, limit)


@router.post("/pause")
def pause_queue(service: ServiceDep, _: Caller) -> Queue:
    """Work on no job until `/v1/resume`, also over restarts. The running job is queued again; what it published stays.

    Requests are accepted, corpora prepared and sequences scored as before.
    """
    hold_queue(service, paused=True)
    return _queue(service)


@router.post("/resume")
def resume_queue(service: ServiceDep, _: Caller) -> Queue:
    """Work on jobs again."""
    hold_queue(service, paused=False)
    return _queue(service)


@router.patch("/extractions/{extraction_id}", responses=CHANGES)
def change_extraction(extraction_id: str, body: JobChange, service: ServiceDep, _: Caller) -> Extraction:
    """Change the priority of an extraction that waits."""
    return _extraction(service, extraction_id, lambda: service.queue.set_priority(extraction_id, body.priority))


@router.post("/extractions/{extraction_id}/move", responses=CHANGES)
def move_extraction(extraction_id: str, body: QueueMove, service: ServiceDep, _: Caller) -> Extraction:
    """Put an extraction that waits before another job, whose priority it takes over, or to the front."""
    return _extraction(service, extraction_id, lambda: service.queue.move_before(extraction_id, body.before))


@router.post("/extractions/{extraction_id}/pause", status_code=202, responses=documented(404, 409))
def pause_extraction(extraction_id: str, service: ServiceDep, _: Caller) -> Extraction:
    """Hold an extraction until it is resumed. Published shards stay; documents in flight are dropped."""
    return extraction_work.present(service, pause_job(service, service.extractions, extraction_id))


@router.patch("/generations/{generation_id}", responses=CHANGES)
def change_generation(generation_id: str, body: JobChange, service: ServiceDep, _: Caller) -> Generation:
    """Change the priority of a generation that waits."""
    return _generation(service, generation_id, lambda: service.queue.set_priority(generation_id, body.priority))


@router.post("/generations/{generation_id}/move", responses=CHANGES)
def move_generation(generation_id: str, body: QueueMove, service: ServiceDep, _: Caller) -> Generation:
    """Put a generation that waits before another job, whose priority it takes over, or to the front."""
    return _generation(service, generation_id, lambda: service.queue.move_before(generation_id, body.before))


@router.post("/generations/{generation_id}/pause", status_code=202, responses=documented(404, 409))
def pause_generation(generation_id: str, service: ServiceDep, _: Caller) -> Generation:
    """Hold a generation until it is resumed. What the teacher has answered stays."""
    return generation_work.present(service, pause_job(service, service.generations, generation_id))


def _queue(service: Service, limit: int = 100) -> Queue:
    rows = service.queue.waiting(limit + 1)
    paused_at = service.queue.paused_at()
    return Queue(
        paused=paused_at is not None,
        paused_at=None if paused_at is None else int(paused_at),
        running=service.progress.running,
        data=[
            QueueEntry.model_validate({"id": row.id, "kind": row.kind, "status": row.status, "priority": row.priority})
            for row in rows[:limit]
        ],
        has_more=len(rows) > limit,
    )


def hold_queue(service: Service, *, paused: bool) -> None:
    """Pause the whole queue, or open it."""
    with service.pausing:
        (service.queue.pause if paused else service.queue.resume)()
        service.signals.pause_queue(paused=paused)


def pause_job(service: Service, store: JobStore[R], job_id: str) -> R:
    """Hold a job. Raises NotFoundError, IllegalTransitionError."""
    with service.pausing:
        row = store.pause(job_id)
        if row.status == "pausing":
            service.signals.pause(row.id)
    return row


def _extraction(service: Service, extraction_id: str, change: Callable[[], JobRow]) -> Extraction:
    service.extractions.get(extraction_id)  # a generation of this id is none
    _changed(change)
    return extraction_work.present(service, service.extractions.get(extraction_id))


def _generation(service: Service, generation_id: str, change: Callable[[], JobRow]) -> Generation:
    service.generations.get(generation_id)
    _changed(change)
    return generation_work.present(service, service.generations.get(generation_id))


def _changed(change: Callable[[], JobRow]) -> None:
    try:
        change()
    except NotWaitingError as error:
        raise Problem(409, "not_waiting", str(error), extra={"current_status": error.current}) from error
