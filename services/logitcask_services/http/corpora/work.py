"""Receiving a corpus: the body goes to the disk as it comes, one block in memory, hashing and writing off the loop."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from logitcask_services import files
from logitcask_services.corpora.storage import CorpusUpload, StoredCorpus
from logitcask_services.http.problems import Problem, storage_problem, storage_unavailable
from logitcask_services.jobs.tables import CorpusRow
from logitcask_services.service import Service

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
    _check_room(coming, service)


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
                _check_room(0, service)
                writing = asyncio.ensure_future(run_in_threadpool(upload.write, block))
                block = bytearray()
    finally:
        if writing is not None:
            await writing
    await run_in_threadpool(upload.write, block)


def _check_size(size: int, service: Service) -> None:
    if size > (limit := service.settings.max_body_bytes):
        raise Problem(413, "body_too_large", f"the corpus is larger than {limit} bytes; send it in parts")


def _check_room(coming: int, service: Service) -> None:
    free, floor = files.free_bytes(service.folders.corpora), service.settings.disk_floor_bytes
    if free - coming < floor:
        raise storage_problem(f"{free} bytes are free; a corpus of {coming} bytes would go below the floor of {floor}")
