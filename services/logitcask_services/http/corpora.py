"""Receiving a corpus: the body goes to the disk as it comes, one block in memory, hashing and writing off the loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

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
from logitcask_services.http.digests import declared_sha256, require_digests
from logitcask_services.http.problems import Problem, documented, storage_problem, storage_unavailable
from logitcask_services.http.upload_places import UploadPlaceDep
from logitcask_services.jobs.database.tables import CorpusRow
from logitcask_services.jobs.extraction import IdempotencyKey
from logitcask_services.service import Service


def corpus_of(row: CorpusRow, *, deduplicated: bool = False, received: str | None = None) -> Corpus:
    """A corpus as callers see it."""
    return Corpus(
        id=row.id,
        name=row.name,
        bytes=row.bytes,
        lines=row.lines,
        sha256=row.sha256,
        created_at=int(row.created_at),
        deduplicated=deduplicated,
        received_sha256=received,
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
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
        "application/vnd.apache.parquet",
        "application/x-parquet",
    }
)
ENCODINGS = {"identity": None, "gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
T = TypeVar("T")


def check_headers(request: Request, service: Service) -> None:
    """Refuse what the headers already show to be wrong. Raises Problem 413, 415, 507."""
    media_type = _media_type(request)
    if media_type not in MEDIA_TYPES:
        raise Problem(
            415,
            "unsupported_media_type",
            f"the body is {media_type!r}; expected JSON lines, as they are or packed with gzip or zstd, or Parquet: "
            "send them with `Content-Type: application/jsonl` (curl: `--data-binary @file`)",
            param="Content-Type",
        )
    if (encoding := _encoding(request)) not in ENCODINGS:
        raise Problem(
            415,
            "unsupported_encoding",
            f"the body is {encoding!r}-encoded; expected gzip, zstd, or no encoding",
            param="Content-Encoding",
            headers={"Accept-Encoding": "gzip, zstd"},
        )
    length = request.headers.get("content-length", "0")
    check_bytes(int(length[:20]) if length.isdecimal() else 0, service)


def check_bytes(coming: int, service: Service) -> None:
    """Refuse a corpus of a size that is too large, or does not fit the disk. Raises Problem 413, 507."""
    _check_size(coming, service)
    _check_space(coming, service)


async def receive(
    request: Request,
    service: Service,
    keep: Callable[[StoredCorpus], T],
    body: AsyncIterator[bytes] | None = None,
) -> tuple[T, str]:
    """Stream a corpus to the disk, and make lines of it. Nothing is left behind where it raises.

    Args:
        request: Who sends it.
        service: Whose disk.
        keep: Tells the database of it, in a thread.
        body: The file in a form; None: all that the request sends.

    Returns:
        What `keep` does, and the SHA-256 (in hex) of what came.

    Raises:
        Problem: 400 (empty, another digest than was declared), 413, 503 (the folder cannot be used), 507 (disk full).
        PackedError: It cannot be unpacked.
        ClientDisconnect: The client went away.
    """
    declared = declared_sha256(request.headers) if body is None else []
    try:
        with await run_in_threadpool(service.storage.receive) as upload:
            await copy(request.stream() if body is None else body, upload, service)
            if upload.bytes == 0:
                raise Problem(400, "empty_body", "the corpus is empty; send one JSON object per line")
            if _media_type(request) == FORM and await run_in_threadpool(upload.lost_its_lines):
                raise Problem(
                    400,
                    "lines_lost",
                    "the corpus is one line that holds several JSON objects: `curl -d @file` takes the line ends out "
                    "of a file. Send it with `curl --data-binary @file`",
                )
            if body is None:
                require_digests(declared, upload.sha256())
                _require_encoding(request, upload)
            await run_in_threadpool(upload.unpack)
            return await run_in_threadpool(keep_upload, service, upload, keep), upload.sha256()
    except OSError as error:
        raise storage_unavailable(error) from error


def keep_upload(service: Service, upload: CorpusUpload, keep: Callable[[StoredCorpus], T]) -> T:
    """Publish an upload and tell the database, so that nobody deletes the content in between. Blocks."""
    upload.unpack()
    with service.storage.publishing:
        return keep(upload.finish())


def _require_encoding(request: Request, upload: CorpusUpload) -> None:
    """Raise Problem 400 where the body is not encoded as its head says."""
    expected = ENCODINGS[_encoding(request)]
    if expected is not None and upload.packing != expected:
        raise Problem(
            400,
            "wrong_encoding",
            f"Content-Encoding says {expected}, and the body is not; leave the header out, or encode it",
            param="Content-Encoding",
        )


def _encoding(request: Request) -> str:
    return ", ".join(request.headers.getlist("content-encoding") or ["identity"]).strip().lower()


def with_content(service: Service, sha256: str) -> list[CorpusRow]:
    """The corpus with this digest, if its content is complete on the disk; else none."""
    row = service.corpora.with_content(sha256)
    return [row] if row is not None and service.storage.holds(sha256, row.bytes) else []


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "application/jsonl").partition(";")[0].strip().lower()


def content_path(service: Service, row: CorpusRow, param: str = "corpus_id") -> Path:
    """Where the content of a corpus lies. Raises Problem 404, which names the parameter, where it is gone."""
    if not service.storage.holds(row.sha256, row.bytes):
        raise Problem(404, "content_gone", f"the content of {row.id} is not there; upload it again", param=param)
    return service.storage.path(row.sha256)


class Sink(Protocol):
    """Takes blocks, in a thread."""

    def write(self, block: bytes | bytearray) -> None:
        """Append a block. Raises OSError where the disk is full."""
        ...


async def copy(body: AsyncIterator[bytes], upload: Sink, service: Service) -> None:
    """One block is written and hashed in a thread while the next one is received. Raises Problem 413, 507, OSError."""
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
        "description": "JSON lines, each an object with `text`, `messages`, `prompt` and `completion`, or `input_ids`; "
        "as they are or packed with gzip or zstd; or Parquet with such columns.",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in (
                "application/jsonl",
                "application/gzip",
                "application/zstd",
                "application/vnd.apache.parquet",
            )
        },
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
    _: UploadPlaceDep,
    name: Label = None,
    idempotency_key: IdempotencyHeader = None,
) -> Corpus:
    """Upload a corpus. The body is streamed; the same content is stored once."""
    scope = scope_of("corpora", caller)
    check_headers(request, service)
    with in_flight.hold(scope, idempotency_key):

        def keep(stored: StoredCorpus) -> tuple[CorpusRow, bool]:
            fingerprint = stored.sha256
            key = IdempotencyKey(scope=scope, key=idempotency_key, fingerprint=fingerprint) if idempotency_key else None
            return service.corpora.add(stored, name, key)

        (row, created), received = await receive(request, service, keep)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/corpora/{row.id}"
    return corpus_of(row, deduplicated=not created, received=received)


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
