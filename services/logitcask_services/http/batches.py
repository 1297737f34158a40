"""Batches in the shape of OpenAI's API: extractions and generations, begun and seen as its clients do."""

from typing import Any

from fastapi import APIRouter, Response

from logitcask_schemas.api.batches import (
    Batch,
    BatchCounts,
    BatchError,
    BatchErrors,
    BatchList,
    BatchRequest,
    BatchStatus,
)
from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.api.objects import FINAL
from logitcask_services.http import extraction_work, generation_work
from logitcask_services.http.access import Caller, CallerKey
from logitcask_services.http.batch_outputs import file_id
from logitcask_services.http.batch_requests import job_request
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
from logitcask_services.http.problems import documented
from logitcask_services.jobs.database.tables import ExtractionRow, GenerationRow, JobRow
from logitcask_services.jobs.extraction import NotFoundError
from logitcask_services.service import Service

PATH = "/v1/batches"
PREFIX = "batch_"
router = APIRouter(prefix=PATH, tags=["batches"], responses=documented(401, 422))


@router.post("", status_code=200, responses=documented(404, 409, 413, 415, 507))
def create_batch(
    body: BatchRequest,
    response: Response,
    service: ServiceDep,
    in_flight: InFlightDep,
    caller: CallerKey,
    idempotency_key: IdempotencyHeader = None,
) -> Batch:
    """Begin a batch: a generation where the teacher is to write, an extraction where its distributions are wanted."""
    scope = scope_of("batches", caller.name)
    with in_flight.hold(scope, idempotency_key):
        request = job_request(service, service.corpora.get(body.input_file_id), body)
        key = key_for(scope, idempotency_key, body.canonical())
        row: JobRow
        allowance = allowance_of(caller, service)
        if isinstance(request, GenerationRequest):
            row, created = service.generations.create(generation_work.resolve(service, request), key, allowance)
        else:
            extraction_work.check(service, request)
            row, created = service.extractions.create(request, key, allowance)
    response.headers["Location"] = f"{PATH}/{PREFIX}{row.id}"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return _present(row)


@router.get("", responses=documented(404))
def list_batches(service: ServiceDep, _: Caller, after: After = None, limit: Limit = 20) -> BatchList:
    """List all extractions and generations as batches, newest first."""
    with unknown_after():
        older = _job_id(after) if after is not None else None
        rows = service.jobs.page(status=None, after=older, limit=limit + 1)
    data = [_present(row) for row in rows[:limit]]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )


@router.get("/{batch_id}", responses=documented(404))
def get_batch(batch_id: str, service: ServiceDep, _: Caller) -> Batch:
    """Look a batch up."""
    return _present(_row(service, batch_id))


@router.post("/{batch_id}/cancel", responses=documented(404, 409))
def cancel_batch(batch_id: str, service: ServiceDep, _: Caller) -> Batch:
    """Ask a batch to end."""
    row = _row(service, batch_id)
    if isinstance(row, GenerationRow):
        return _present(generation_work.cancel(service, row.id))
    return _present(extraction_work.cancel(service, row.id))


def _job_id(batch_id: str) -> str:
    if not batch_id.startswith(PREFIX):
        raise NotFoundError("batch", batch_id)
    return batch_id.removeprefix(PREFIX)


def _row(service: Service, batch_id: str) -> JobRow:
    try:
        return service.jobs.get(_job_id(batch_id))
    except NotFoundError as error:
        raise NotFoundError("batch", batch_id) from error


def _present(row: JobRow) -> Batch:
    ended, is_done = row.status in FINAL, row.status == "completed"
    counts = _counts(row)
    errors = BatchErrors(data=[BatchError(**row.error)]) if row.error else None
    times: dict[str, Any] = {
        f"{status}_at": int(at)
        for status, at in row.timestamps.items()
        if f"{status}_at" in Batch.model_fields and status != "created"
    }
    return Batch(
        id=f"{PREFIX}{row.id}",
        endpoint="/v1/chat/completions" if isinstance(row, GenerationRow) else "/v1/extractions",
        input_file_id=row.corpus_id,
        status=_status(row),
        output_file_id=file_id(row, "output") if is_done else None,
        error_file_id=file_id(row, "errors") if ended and counts.failed else None,
        errors=errors,
        created_at=int(min(row.timestamps.values())),
        **times,
        request_counts=counts,
        metadata=dict(row.request.metadata) or None,
    )


def _status(row: JobRow) -> BatchStatus:
    """OpenAI's clients know no queue: what waits for its turn is being validated, or goes on."""
    match row.status:
        case "queued" | "pausing" | "paused":
            return "in_progress" if "in_progress" in row.timestamps else "validating"
        case "validating" | "in_progress" | "finalizing" | "completed" | "failed" | "cancelling" | "cancelled":
            return row.status


def _counts(row: JobRow) -> BatchCounts:
    if isinstance(row, ExtractionRow):
        return BatchCounts(
            total=row.documents + row.bad_lines + row.skipped_lines,
            completed=row.captured_documents + row.present_documents,
            failed=row.failed_documents + row.bad_lines + row.skipped_lines,
        )
    assert isinstance(row, GenerationRow)  # there are two kinds
    rows = row.rows or {}
    kept, dropped = rows.get("kept", 0), sum(rows.get("dropped", {}).values())
    return BatchCounts(total=max(row.lines, kept + dropped), completed=kept, failed=dropped)
