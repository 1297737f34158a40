"""Routes of extractions."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from logitcask_schemas.api.objects import (
    EventList,
    Extraction,
    ExtractionCheck,
    ExtractionList,
    Manifest,
    Status,
)
from logitcask_schemas.api.requests import ExtractionPlan, ExtractionRequest
from logitcask_schemas.api.uploads import Deleted
from logitcask_services.http import extraction_work as work
from logitcask_services.http.access import Caller, CallerKey
from logitcask_services.http.corpora import check_bytes
from logitcask_services.http.dependencies import (
    After,
    IdempotencyHeader,
    InFlightDep,
    Limit,
    ServiceDep,
    allowance_of,
    key_for,
    scope_of,
    unknown_after,
)
from logitcask_services.http.job_streams import (
    ERROR_RESPONSES,
    EVENT_RESPONSES,
    AfterEvent,
    EventLimit,
    JobKind,
    LastEventId,
    errors_of,
    events_of,
)
from logitcask_services.http.problems import Problem, documented
from logitcask_services.http.stored_files import JSON_LINES, local_file
from logitcask_services.jobs.housekeeper import delete_job

router = APIRouter(prefix="/v1/extractions", tags=["extractions"], responses=documented(401, 422))
CorpusBytes = Annotated[int, Query(ge=0, le=2**63 - 1, description="Size of the corpus that would be uploaded.")]


@router.post(
    "",
    status_code=202,
    responses=documented(404, 409, 413, 415, 507),
)
def create_extraction(
    body: ExtractionRequest,
    response: Response,
    service: ServiceDep,
    in_flight: InFlightDep,
    caller: CallerKey,
    idempotency_key: IdempotencyHeader = None,
) -> Extraction:
    """Start an extraction. It is validated, queued and run in the background."""
    scope = scope_of("extractions", caller.name)
    with in_flight.hold(scope, idempotency_key):
        work.check(service, body)
        row, created = service.extractions.create(
            body, key_for(scope, idempotency_key, body.canonical()), allowance_of(caller, service)
        )
    response.headers["Location"] = f"/v1/extractions/{row.id}"
    response.headers["Retry-After"] = "1"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return work.present(service, row)


@router.post("/check", responses=documented(404, 409, 413, 415, 507))
def check_extraction(
    body: ExtractionPlan, service: ServiceDep, _: Caller, corpus_bytes: CorpusBytes = 0
) -> ExtractionCheck:
    """Whether an extraction like this could be started, before its corpus is uploaded. Starts nothing."""
    check_bytes(corpus_bytes, service)
    return work.check_plan(service, body)


@router.get("", responses=documented(404))
def list_extractions(
    service: ServiceDep, _: Caller, status: Status | None = None, after: After = None, limit: Limit = 20
) -> ExtractionList:
    """List extractions, newest first."""
    with unknown_after():
        rows = service.extractions.page(status=status, after=after, limit=limit + 1)
    return ExtractionList(data=[work.present(service, row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/{extraction_id}", responses=documented(404))
def get_extraction(extraction_id: str, service: ServiceDep, _: Caller) -> Extraction:
    """Look an extraction up."""
    return work.present(service, service.extractions.get(extraction_id))


@router.delete("/{extraction_id}", responses=documented(404, 409))
def delete_extraction(extraction_id: str, service: ServiceDep, _: Caller) -> Deleted:
    """Forget an extraction that has ended, its log and lists. Its shards stay in the cask."""
    delete_job(service, extraction_id, "extraction")
    return Deleted(id=extraction_id, object="extraction")


@router.post("/{extraction_id}/cancel", status_code=202, responses=documented(404, 409))
def cancel_extraction(extraction_id: str, service: ServiceDep, _: Caller) -> Extraction:
    """Ask an extraction to end. Published shards stay; documents in flight are dropped."""
    return work.present(service, work.cancel(service, extraction_id))


@router.post("/{extraction_id}/resume", status_code=202, responses=documented(404, 409, 507))
def resume_extraction(extraction_id: str, service: ServiceDep, caller: CallerKey) -> Extraction:
    """Take a failed or paused extraction up again. What it has captured stays; documents that failed are tried anew."""
    return work.present(service, work.resume(service, extraction_id, allowance_of(caller, service)))


@router.get("/{extraction_id}/events", response_model=EventList, responses=EVENT_RESPONSES)
async def extraction_events(
    extraction_id: str,
    request: Request,
    service: ServiceDep,
    _: Caller,
    after: AfterEvent = 0,
    limit: EventLimit = 100,
    last_event_id: LastEventId = None,
) -> Response | EventList:
    """The log: a JSON page, or with `Accept: text/event-stream` a stream that follows the extraction to its end."""
    kind = JobKind(store=service.extractions, progress=partial(work.progress, service))
    return await events_of(request, service, kind, extraction_id, after=after, limit=limit, last_event_id=last_event_id)


@router.get("/{extraction_id}/errors", response_class=StreamingResponse, responses=ERROR_RESPONSES)
def extraction_errors(extraction_id: str, service: ServiceDep, _: Caller) -> StreamingResponse:
    """Bad lines and failed documents, one JSON object per line: custom_id, line, document, stage, code, message."""
    return errors_of(service, service.extractions.get(extraction_id))


@router.get("/{extraction_id}/documents", response_class=FileResponse, responses=documented(404, 416))
def extraction_documents(extraction_id: str, request: Request, service: ServiceDep, _: Caller) -> Response:
    """Which documents came from which lines, one JSON object per line: custom_id, line, piece, document, tokens."""
    row = service.extractions.get(extraction_id)
    path = service.folders.document_names(row.id)
    if not path.exists():
        raise Problem(
            404,
            "not_found",
            f"{row.id} has no list of documents: it is not validated yet, or was by a version that kept none",
        )
    return local_file(request, path, JSON_LINES)


@router.get("/{extraction_id}/manifest", responses=documented(404))
def extraction_manifest(extraction_id: str, service: ServiceDep, _: Caller) -> Manifest:
    """The shards the extraction has published so far, in corpus order."""
    return work.manifest(service, service.extractions.get(extraction_id))
