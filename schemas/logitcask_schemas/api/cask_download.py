"""Fetching a cask from a service: what is there already stays, every byte is checked, and the folder appears at once.

Files are fetched into a folder beside the target (`NAME.download`), which a broken download leaves there and the next
one goes on with: whole files are not fetched again, half ones from where they end. A file that was exchanged at the
service meanwhile has another ETag (its SHA-256), so it is fetched anew rather than put together of two. Files that the
service does not list any more, or another cask left there, are deleted: what appears is what was listed, and no more.
"""

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from logitcask_schemas.api.cask_objects import CaskFile, CaskFiles
from logitcask_schemas.api.exchange import (
    BUSY,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    TRIES,
    Answer,
    Flow,
    Next,
    Open,
    Pause,
    Request,
    ServiceError,
    ServiceUnreachableError,
    getting,
    require_success,
    seconds_to_retry,
)
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import (
    LocalDirectory,
    read_listing,
    read_manifest,
    require_identity,
    write_entry,
    write_index,
)
from logitcask_schemas.cask.format.layout import INDEX_NAME, LOCK_NAME, MANIFEST_NAME, SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.storage.files import LocalFiles, publish_path
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.errors import CaskError, CaskWriteError, LogitcaskError

PARTIAL: Final = ".partial"
_BLOCK: Final = 1 << 20
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadedCask:
    """A cask that lies in a folder now."""

    folder: Path
    shards: int
    bytes: int
    """Of all its files."""
    received_bytes: int
    """Of them, those that came with this download."""


def download(cask: str, folder: Path, on_bytes: Callable[[int, int], None] | None) -> Flow[DownloadedCask]:
    """Fetch a cask; see `ServiceClient.download`.

    Args:
        cask: Its name at the service.
        folder: Where it is to lie; must not exist, or hold all of this cask.
        on_bytes: hears of the bytes that are here, and of all.

    Raises:
        ServiceError: The service refuses, or what it sends is damaged twice.
        ServiceUnreachableError: Nobody answers `TRIES` times without a byte between.
        CaskError: The folder holds something else, or cannot be written; or what lies beside it, with the name of a
            download, is none.
    """
    listing = yield from getting(CaskFiles, f"/v1/casks/{cask}/manifest")
    entries = [ShardEntry.model_validate(entry) for entry in listing.shards]
    paths = _required_paths(listing, entries)
    total = sum(file.bytes for file in paths)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        _require_same(folder, listing, entries)
        return DownloadedCask(folder=folder, shards=len(entries), bytes=total, received_bytes=0)
    half = folder.with_name(f"{folder.name}.download")
    with _kept(half):
        (half / SHARDS_NAME).mkdir(parents=True, exist_ok=True)
        with writers_lock(half, holder=f"download-{os.getpid()}", timeout_seconds=1.0):
            _leave_listed(half, paths)
            present, received = 0, 0
            for file in paths:

                def told(count: int, before: int = present) -> None:
                    if on_bytes is not None:
                        on_bytes(before + count, total)

                received += yield from _fetch(f"/v1/casks/{cask}/files/{file.path}", file, half / file.path, told)
                present += file.bytes
            files = LocalFiles()
            require_identity(str(half), entries, read_manifest(LocalDirectory(path=half)))
            for entry in entries:
                write_entry(files, half, entry)
            write_index(files, half, entries)
            if folder.exists():
                folder.rmdir()  # empty
            publish_path(half, folder)
    return DownloadedCask(folder=folder, shards=len(entries), bytes=total, received_bytes=received)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a CaskWriteError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LogitcaskError):  # such as a connection that broke
            raise
        raise CaskWriteError(
            f"{folder}: the cask could not be kept there: {error.strerror or error}. See to it that there is room and "
            "that it can be written, then download again, which goes on where it was.",
            error.errno,
        ) from error


def _required_paths(listing: CaskFiles, entries: list[ShardEntry]) -> list[CaskFile]:
    """The files to fetch, by what the entries say; a service cannot name others, nor places outside the folder."""
    here = Path()
    expected = {str(shard_path(here, entry)): (entry.bytes, entry.sha256) for entry in entries}
    for entry in entries:
        if entry.hints is not None:
            expected[f"{SHARDS_NAME}/{entry.hints_name}"] = (entry.hints.bytes, entry.hints.sha256)
    named = {file.path: (file.bytes, file.sha256) for file in listing.files if file.path != MANIFEST_NAME}
    manifests = [file for file in listing.files if file.path == MANIFEST_NAME]
    if named != expected or len(manifests) != 1:
        raise ServiceError(0, "listing_damaged", f"the service's list of the files of cask {listing.name} is damaged")
    return [*(file for file in listing.files if file.path != MANIFEST_NAME), *manifests]


def _require_same(folder: Path, listing: CaskFiles, entries: list[ShardEntry]) -> None:
    """Raise CaskError unless the folder holds this cask, all of it."""
    try:
        directory = LocalDirectory(path=folder)
        identity = read_manifest(directory).identity_digest()
        present = {entry.name for entry in read_listing(directory).entries}
    except CaskError as error:
        raise CaskError(f"{folder}: exists, and is no cask that is whole ({error}). Name another folder") from error
    missing = [entry for entry in entries if entry.name not in present or entry.identity != identity]
    if missing:
        raise CaskError(
            f"{folder}: holds another cask, or lacks {len(missing)} of {len(entries)} shards that {listing.name!r} has "
            "at the service by now. Name another folder, then `logitcask cask merge` them"
        )


def _leave_listed(half: Path, paths: list[CaskFile]) -> None:
    """Delete what an older download left beside the files to fetch.

    Raises CaskError where something lies there that no download writes; nothing is deleted then.
    """
    kept = {name for file in paths for name in (file.path, file.path + PARTIAL)} | {LOCK_NAME, SHARDS_NAME}
    strays = [path for path in sorted(half.rglob("*")) if str(path.relative_to(half)) not in kept]
    for path in strays:
        is_ours = path.parent == half / SHARDS_NAME or path.name == INDEX_NAME or path.name.startswith(TEMP_PREFIX)
        if not is_ours or path.is_dir():
            raise CaskError(
                f"{path}: lies where {half.name.removesuffix('.download')!r} is to be put together, and no download "
                f"wrote it. Move it, or name another folder than {half.with_name(half.name.removesuffix('.download'))}"
            )
    for path in strays:
        path.unlink()
    for file in paths:  # the name of a shard is that of its content, a manifest's is that of any
        target = half / file.path
        if file.path == MANIFEST_NAME and target.exists():
            with target.open("rb") as content:
                is_other = _sha256(content) != file.sha256
            if is_other:
                target.unlink()


def _fetch(url: str, file: CaskFile, target: Path, told: Callable[[int], None]) -> Flow[int]:
    """Fetch one file unless it is there; bytes that were received. A damaged one is fetched a second time, whole."""
    if target.exists():  # checked when it got its name
        told(file.bytes)
        return 0
    partial, received = target.with_name(target.name + PARTIAL), 0
    for _ in range(2):
        with partial.open("ab+") as content:
            received += yield from _receive(url, file, content, told)
            if _sha256(content) == file.sha256:
                content.flush()
                os.fsync(content.fileno())
                publish_path(partial, target)
                return received
        partial.unlink()
    raise ServiceError(
        0,
        "download_damaged",
        f"{file.path} arrived damaged twice: its SHA-256 is not {file.sha256}. Where the cask itself is damaged, "
        "`logitcask cask verify` says so on the server",
    )


def _receive(url: str, file: CaskFile, content: BinaryIO, told: Callable[[int], None]) -> Flow[int]:
    """Append what is missing of a file, over broken connections; bytes that were received."""
    received, failures = 0, 0
    while (size := content.seek(0, os.SEEK_END)) < file.bytes:
        headers = {"Range": f"bytes={size}-", "If-Range": f'"{file.sha256}"'} if size else {}
        # Its own form, so that lengths and hashes are those of the file.
        request = Request(method="GET", path=url, headers={**headers, "Accept-Encoding": "identity"})
        wait = random.uniform(0.0, FIRST_PAUSE * 2**failures)
        try:
            answer = yield Open(request)
            assert isinstance(answer, Answer)
            if answer.status in BUSY and failures < TRIES - 1 and seconds_to_retry(answer) <= LONGEST_PAUSE:
                failures += 1
                yield Pause(wait + seconds_to_retry(answer))
                continue
            if answer.status == _RANGE_NOT_SATISFIABLE:
                content.truncate(0)
                failures += 1
                continue
            require_success(answer)
            if answer.status != _PARTIAL_CONTENT:
                content.truncate(0)
            while (block := (yield Next())) is not None:
                assert isinstance(block, bytes)
                content.write(block)
                received += len(block)
                failures = 0 if block else failures  # an empty block is no progress
                told(content.tell())
                if content.tell() > file.bytes:
                    return received  # the check finds it damaged
        except ServiceUnreachableError:
            failures += 1
            if failures == TRIES:
                raise
            yield Pause(wait)
        else:
            if content.tell() < file.bytes and (failures := failures + 1) == TRIES:
                return received
    return received


def _sha256(content: BinaryIO) -> str:
    content.seek(0)
    digest = hashlib.sha256()
    while block := content.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
