"""Files as answers, whole or a range of bytes: on this machine, or of a cask in an object store, read in blocks.

Those of a store go through the service, rather than by a signed address: callers then need no way to the store, their
keys and their limits hold, and the ETag stays the SHA-256 of the file, which a store does not know.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import StoreError
from logitcask_services.http.problems import Problem

MEDIA_TYPE: Final = "application/octet-stream"
JSON_LINES: Final = "application/jsonl"
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([1-9][0-9]{0,17}))")
BLOCK_BYTES: Final = 8 << 20
"""Of a file in memory at a time, for each caller."""


def local_file(request: Request, file: Path, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer with a file of this machine, or with the part that the request's `Range` asks for.

    Raises Problem 416 where the range begins behind the end of the file.
    """
    status = file.stat()
    answer = FileResponse(file, media_type=media_type, headers=headers, stat_result=status)
    byte_range, if_range = request.headers.get("range"), request.headers.get("if-range")
    is_of_file = if_range in (None, answer.headers["etag"], answer.headers["last-modified"])
    if byte_range is not None and (not is_of_file or span_of(byte_range, status.st_size) is None):
        # All of the file: Starlette would refuse what it cannot understand, in an answer of its own.
        request.scope["headers"] = [header for header in request.scope["headers"] if header[0] != b"range"]
    return answer


def span_of(byte_range: str, size: int) -> tuple[int, int] | None:
    """First byte of a range, and the one past its last.

    None where it cannot be understood: then all of the file is sent (RFC 9110, 14.2).

    Raises Problem 416 where the range begins behind the end of the file.
    """
    matched = _RANGE.fullmatch(byte_range)
    if matched is None:
        return None
    first, last, suffix = matched.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size
    if last is not None and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Problem(
            416,
            "range_not_satisfiable",
            f"the file has {size} bytes, {byte_range} begins behind its end",
            param="Range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return int(first), size if last is None else min(int(last) + 1, size)


def stored_file(
    store: RemoteStore, name: str, size: int, span: tuple[int, int] | None, headers: Mapping[str, str]
) -> Response:
    """The answer with a file, or with a part of it.

    Args:
        store: Of the cask.
        name: The object's.
        size: Its bytes, as they were published.
        span: First byte, and the one past the last; None for all.
        headers: Of the answer, too.

    Raises:
        CaskNotFoundError: The store has lost it.
        StoreError: The store does not answer, or has fewer bytes. Later than at the first block, the connection ends.
    """
    start, stop = span or (0, size)
    sent = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
    if span is not None:
        sent["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    first = _block(store, name, start, stop)  # before anything is sent: what is wrong can still be told

    def blocks() -> Iterator[bytes]:
        yield first
        for at in range(start + BLOCK_BYTES, stop, BLOCK_BYTES):
            yield _block(store, name, at, stop)

    return StreamingResponse(blocks(), 200 if span is None else 206, headers=sent, media_type=MEDIA_TYPE)


def _block(store: RemoteStore, name: str, start: int, stop: int) -> bytes:
    """At most `BLOCK_BYTES` of an object from `start` on, up to `stop`."""
    stop = min(start + BLOCK_BYTES, stop)
    (content,) = store.read_ranges([(name, start, stop)])
    if len(content) != stop - start:
        raise StoreError(
            f"{store.url}/{name}: has fewer bytes than were published: {len(content)} came of those from {start} to "
            f"{stop}. `logitcask cask verify {store.url}` says more"
        )
    return content
