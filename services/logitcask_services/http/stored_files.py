"""Files of a cask in an object store as answers: read in blocks while they are sent, whole or a range of bytes.

Through the service, rather than by a signed address of the store: callers then need no way to the store, their keys
and their limits hold, and the ETag stays the SHA-256 of the file, which a store does not know.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from fastapi import Response
from fastapi.responses import StreamingResponse

from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import StoreError

MEDIA_TYPE: Final = "application/octet-stream"
BLOCK_BYTES: Final = 8 << 20
"""Of a file in memory at a time, for each caller."""


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
