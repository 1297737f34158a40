"""Routes of uploads in parts, in the shape of OpenAI's: begin, send parts in any order, complete; go on later."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.api.uploads import CompletionRequest, Upload, UploadPart, UploadRequest
from logitcask_services.http.access import Caller
from logitcask_services.http.corpora import check_bytes, copy, keep_upload
from logitcask_services.http.dependencies import (
    IdempotencyHeader,
    InFlight,
    InFlightDep,
    ServiceDep,
    key_for,
    scope_of,
)
from logitcask_services.http.digests import declared_sha256, require_digests
from logitcask_services.http.files import file_of, require_purpose
from logitcask_services.http.forms import FileForm, is_form
from logitcask_services.http.problems import Problem, documented, storage_unavailable
from logitcask_services.http.upload_places import UploadPlaceDep
from logitcask_services.jobs.database.tables import PartRow, UploadRow
from logitcask_services.service import Service

PATH = "/v1/uploads"
router = APIRouter(prefix=PATH, tags=["uploads"], responses=documented(401, 422))
FLOOR_CHECKS = 64
"""Blocks between two looks at the free space."""
PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post("", responses=documented(409, 413, 415, 507))
def create_upload(
    body: UploadRequest,
    response: Response,
    service: ServiceDep,
    in_flight: InFlightDep,
    caller: Caller,
    idempotency_key: IdempotencyHeader = None,
) -> Upload:
    """Begin an upload in parts. It can be gone on with until `expires_at`, whatever dies meanwhile."""
    require_purpose(body.purpose)
    check_bytes(body.bytes, service)
    scope = scope_of("uploads", caller)
    with in_flight.hold(scope, idempotency_key):
        key = key_for(scope, idempotency_key, body.model_dump_json().encode())
        row, created = service.uploads.create(body, service.settings.upload_expiry_seconds, key)
    response.headers["Location"] = f"{PATH}/{row.id}"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return _present(service, row)


@router.get("/{upload_id}", responses=documented(404))
def get_upload(upload_id: str, service: ServiceDep, _: Caller) -> Upload:
    """Look an upload up: its parts are those that need not be sent again."""
    return _present(service, service.uploads.get(upload_id))


@router.post("/{upload_id}/parts", openapi_extra=PART_BODY, responses=documented(400, 404, 409, 413, 415, 507))
async def add_part(
    upload_id: str, request: Request, service: ServiceDep, _: Caller, _place: UploadPlaceDep
) -> UploadPart:
    """Send a part: as the file `data` of a form, or as the body itself. It is durable when this is answered."""
    row = await run_in_threadpool(service.uploads.require_pending, upload_id)
    form = FileForm(request, "data") if is_form(request) else None
    declared = [] if form is not None else declared_sha256(request.headers)
    try:
        with await run_in_threadpool(service.parts.receive, row.id) as part:
            await copy(_bounded(request.stream() if form is None else form.blocks(), row), part, service)
            if part.bytes == 0:
                raise Problem(400, "empty_body", "the part is empty; send at least one byte")
            require_digests(declared, part.sha256())
            await run_in_threadpool(part.finish)
            try:
                added = await run_in_threadpool(service.uploads.add_part, row.id, part.id, part.bytes, part.sha256())
            except BaseException:
                service.parts.drop_part(row.id, part.id)
                raise
    except OSError as error:
        # The folder goes with an upload that is completed or cancelled meanwhile: no fault of the disk's.
        await run_in_threadpool(service.uploads.require_pending, upload_id)
        raise storage_unavailable(error) from error
    return _part_of(added, row)


@router.post("/{upload_id}/complete", responses=documented(400, 404, 409, 413, 415, 507))
def complete_upload(
    upload_id: str, body: CompletionRequest, service: ServiceDep, in_flight: InFlightDep, _: Caller
) -> Upload:
    """Join the parts, in the order that is given, into a corpus. Asked again, it answers the same."""
    with _alone(in_flight, upload_id):
        row, parts = service.uploads.ordered(upload_id, body.part_ids)
        if parts:
            try:
                _join(service, row, parts, body)
            except OSError as error:
                raise storage_unavailable(error) from error
            service.parts.drop(row.id)
    return _present(service, service.uploads.get(upload_id))


@router.post("/{upload_id}/cancel", responses=documented(404, 409))
def cancel_upload(upload_id: str, service: ServiceDep, in_flight: InFlightDep, _: Caller) -> Upload:
    """Give an upload up; its parts are deleted."""
    with _alone(in_flight, upload_id):
        row = service.uploads.end(upload_id, "cancelled")
        service.parts.drop(row.id)
    return _present(service, row)


def _join(service: Service, row: UploadRow, parts: list[PartRow], body: CompletionRequest) -> None:
    md5 = hashlib.md5(usedforsecurity=False)
    with service.storage.receive() as upload:
        for number, block in enumerate(service.parts.blocks(row.id, [part.id for part in parts])):
            if number % FLOOR_CHECKS == 0:
                check_bytes(0, service)
            upload.write(block)
            if body.md5 is not None:
                md5.update(block)
        _require_equal("md5", body.md5, md5.hexdigest())
        _require_equal("sha256", body.sha256, upload.sha256())
        keep_upload(service, upload, lambda stored: service.uploads.complete(row.id, stored))


def _require_equal(name: str, declared: str | None, digest: str) -> None:
    if declared is not None and declared != digest:
        raise Problem(
            400,
            "digest_mismatch",
            f"the parts together have the {name} {digest}, {declared} was declared; are they in order? Nothing is "
            "lost: send what is wrong again, and complete the upload with its new part",
            param=name,
        )


async def _bounded(blocks: AsyncIterator[bytes], row: UploadRow) -> AsyncIterator[bytes]:
    """Raises Problem 413 where a part has more bytes than the whole file."""
    received = 0
    async for block in blocks:
        received += len(block)
        if received > row.bytes:
            raise Problem(413, "body_too_large", f"the part has more than the {row.bytes} bytes of {row.id}")
        yield block


@contextmanager
def _alone(in_flight: InFlight, upload_id: str) -> Iterator[None]:
    """One request at a time ends an upload. Raises Problem 409."""
    try:
        with in_flight.hold("end of upload", upload_id):
            yield
    except Problem as problem:
        if problem.code != "request_in_flight":
            raise
        raise Problem(
            409,
            "upload_busy",
            f"{upload_id} is being completed or cancelled; wait for that",
            headers={"Retry-After": "1"},
        ) from problem


def _present(service: Service, row: UploadRow) -> Upload:
    corpus = service.corpora.lookup(row.corpus_id) if row.corpus_id is not None else None
    return Upload(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at),
        expires_at=int(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        file=file_of(corpus) if corpus is not None else None,
        parts=[_part_of(part, row) for part in service.uploads.parts(row)],
    )


def _part_of(part: PartRow, row: UploadRow) -> UploadPart:
    return UploadPart(
        id=part.id, created_at=int(part.created_at), upload_id=row.id, bytes=part.bytes, sha256=part.sha256
    )
