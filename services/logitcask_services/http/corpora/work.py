"""Receiving a corpus: the body goes to the disk as it comes, one block in memory, hashing and writing off the loop."""

import asyncio
import errno
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from logitcask_services import files
from logitcask_services.corpora.storage import CorpusUpload, StoredCorpus
from logitcask_services.http.problems import Problem, storage_problem
from logitcask_services.service import Service

BLOCK_BYTES = 1 << 20
MEDIA_TYPES = frozenset(
    {
        "application/jsonl",
        "application/x-jsonl",
        "application/jsonlines",
        "application/x-ndjson",
        "application/ndjson",
        "application/octet-stream",
        "text/plain",
    }
)


def check_headers(request: Request, service: Service) -> None:
    """Refuse what the headers already show to be wrong. Raises Problem 413, 415, 507."""
    media_type = request.headers.get("content-type", "application/jsonl").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise Problem(
            415,
            "unsupported_media_type",
            f"the body is {media_type!r}; expected JSON lines: send it as it is with `Content-Type: application/jsonl`",
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
    _check_size(int(length) if length.isdecimal() else 0, service)
    _check_room(int(length) if length.isdecimal() else 0, service)


async def receive(request: Request, service: Service) -> StoredCorpus:
    """Stream the body to the disk. Raises Problem 400 (empty), 413, 507; ClientDisconnect; nothing is left behind."""
    upload = await run_in_threadpool(service.storage.receive)
    with upload:
        try:
            await _copy(request.stream(), upload, service)
            if upload.bytes == 0:
                raise Problem(400, "empty_body", "the corpus is empty; send one JSON object per line")
            return await run_in_threadpool(upload.finish)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise storage_problem(f"the disk filled up after {upload.bytes} bytes of the corpus") from error


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
