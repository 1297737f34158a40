"""Receiving a corpus: the body goes to the disk as it comes, one block in memory, hashing and writing off the loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.api.objects import Corpus, CorpusList
from logitcask_schemas.cask.storage import files
from logitcask_services.corpora.uploads import CorpusUpload, StoredCorpus
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import (
    After,
    IdempotencyHeader,
    InFlightDep,
    Limit,
    ServiceDep,
    scope_of,
    unknown_after,
)
from logitcask_services.http.problems import Problem, documented, storage_problem, storage_unavailable
from logitcask_services.jobs.database.tables import CorpusRow
from logitcask_services.jobs.extraction import IdempotencyKey
from logitcask_services.service import Service


def corpus_of(row: CorpusRow, *, deduplicated: bool = False) -> Corpus:
    """A corpus as callers see it."""
    return Corpus(
        id=row.id,
        name=row.name,
        bytes=row.bytes,
        lines=row.lines,
        sha256=row.sha256,
        created_at=int(row.created_at),
        deduplicated=deduplicated,
    )


BLOCK_BYTES = 1 << 20
FORM = "application/x-www-form-urlencoded"
"""What curl says of every body unless it is told otherwise."""
MEDIA_TYPES = frozenset(
    {
        "application/jsonl",
        "application/x-jsonl",
        "application/jsonlines",
        "application/x-ndjson",
        "application/ndjson",
        "application/octet-stream",
        "text/plain",
        FORM,
    }
)


def check_headers(request: Request, service: Service) -> None:
    """Refuse what the headers already show to be wrong. Raises Problem 413, 415, 507."""
    media_type = _media_type(request)
    if media_type not in MEDIA_TYPES:
        raise Problem(
            415,
            "unsupported_media_type",
            f"the body is {media_type!r}; expected JSON lines: send them as they are, with `Content-Type: "
            "application/jsonl` (curl: `--data-binary @file`)",
            param="Content-Type",
        )
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Problem(
            415,
            "unsupported_encoding",
            f"the body is {encoding!r}-encoded; send it uncompressed",
            param="Content-Encoding",
        )
    length = request.headers.get("content-length", "0")
    check_bytes(int(length[:20]) if length.isdecimal() else 0, service)


def check_bytes(coming: int, service: Service) -> None:
    """Refuse a corpus of a size that is too large, or does not fit the disk. Raises Problem 413, 507."""
    _check_size(coming, service)
    _check_space(coming, service)


async def receive(request: Request, service: Service) -> StoredCorpus:
    """Stream the body to the disk. Nothing is left behind where it raises.

    Raises:
        Problem: 400 (empty), 413, 503 (the folder cannot be used), 507 (the disk is full).
        ClientDisconnect: The client went away.
    """
    try:
        with await run_in_threadpool(service.storage.receive) as upload:
            await _copy(request.stream(), upload, service)
            if upload.bytes == 0:
                raise Problem(400, "empty_body", "the corpus is empty; send one JSON object per line")
            if _media_type(request) == FORM and await run_in_threadpool(upload.lost_its_lines):
                raise Problem(
                    400,
                    "lines_lost",
                    "the corpus is one line that holds several JSON objects: `curl -d @file` takes the line ends out "
                    "of a file. Send it with `curl --data-binary @file`",
                )
            return await run_in_threadpool(upload.finish)
    except OSError as error:
        raise storage_unavailable(error) from error


def with_content(service: Service, sha256: str) -> list[CorpusRow]:
    """The corpus with this digest, if its content is complete on the disk; else none."""
    row = service.corpora.with_content(sha256)
    return [row] if row is not None and service.storage.holds(sha256, row.bytes) else []


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "application/jsonl").partition(";")[0].strip().lower()


async def _copy(body: AsyncIterator[bytes], upload: CorpusUpload, service: Service) -> None:
    """One block is written and hashed in a thread while the next one is received."""
    writing: asyncio.Future[None] | None = None
    block = bytearray()
    received = 0
    try:
        async for part in body:
            block += part
            received += len(part)
            _check_size(received, service)
            if len(block) >= BLOCK_BYTES:
                if writing is not None:
                    await writing
                _check_space(0, service)
                writing = asyncio.ensure_future(run_in_threadpool(upload.write, block))
                block = bytearray()
    finally:
        if writing is not None:
            await writing
    await run_in_threadpool(upload.write, block)


def _check_size(size: int, service: Service) -> None:
    if size > (limit := service.settings.max_body_bytes):
        raise Problem(413, "body_too_large", f"the corpus is larger than {limit} bytes; send it in parts")


def _check_space(coming: int, service: Service) -> None:
    free, floor = files.free_bytes(service.folders.corpora), service.settings.disk_floor_bytes
    if free - coming < floor:
        raise storage_problem(f"{free} bytes are free; a corpus of {coming} bytes would go below the floor of {floor}")


router = APIRouter(prefix="/v1/corpora", tags=["corpora"], responses=documented(401, 422))
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON lines, each an object with `text`, `messages`, `prompt` and `completion`, or `input_ids`.",
        "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Label = Annotated[
    str | None,
    Query(
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$",
        description="A label for people, without control characters.",
    ),
]
Digest = Annotated[
    str | None,
    Query(pattern=r"^[0-9a-f]{64}$", description="Only the corpus with this content (SHA-256 in hex), if it is there."),
]


@router.post(
    "",
    status_code=201,
    response_model=Corpus,
    openapi_extra=BODY,
    responses=documented(
        400,
        409,
        413,
        415,
        422,
        507,
        others={200: {"model": Corpus, "description": "The same content was there already"}},
    ),
)
async def upload_corpus(
    request: Request,
    response: Response,
    service: ServiceDep,
    in_flight: InFlightDep,
    caller: Caller,
    name: Label = None,
    idempotency_key: IdempotencyHeader = None,
) -> Corpus:
    """Upload a corpus. The body is streamed; the same content is stored once."""
    scope = scope_of("corpora", caller)
    check_headers(request, service)
    with in_flight.hold(scope, idempotency_key):
        stored = await receive(request, service)
        key = IdempotencyKey(scope=scope, key=idempotency_key, fingerprint=stored.sha256) if idempotency_key else None
        row, created = await run_in_threadpool(service.corpora.add, stored, name, key)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/corpora/{row.id}"
    return corpus_of(row, deduplicated=not created)


@router.get("", responses=documented(404))
def list_corpora(
    service: ServiceDep, _: Caller, sha256: Digest = None, after: After = None, limit: Limit = 20
) -> CorpusList:
    """List corpora, newest first; or look one up by its content, to see whether it needs to be sent."""
    if sha256 is not None:
        return CorpusList(data=[corpus_of(row) for row in with_content(service, sha256)], has_more=False)
    with unknown_after():
        rows = service.corpora.page(after=after, limit=limit + 1)
    return CorpusList(data=[corpus_of(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/{corpus_id}", responses=documented(404))
def get_corpus(corpus_id: str, service: ServiceDep, _: Caller) -> Corpus:
    """Look a corpus up."""
    return corpus_of(service.corpora.get(corpus_id))
