"""Copying a cask into another carrier or another place, shard by shard, every document proved on the way.

The copy is the same cask: the manifest, the names of the shards and the numbers of the documents stay, so exporting to
Zarr and importing to Arrow gives back the very same files.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import carrier_named, carrier_of
from logitcask_schemas.cask.directory import StoreDirectory
from logitcask_schemas.cask.documents import DOCUMENTS_NAME
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_publication import copy_hints
from logitcask_schemas.cask.location import CachedStore
from logitcask_schemas.cask.publication import prepare_folder, write_shard
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import LocalFiles, publish_file
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.cask.storage.object_store import RemoteStore, is_url
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.transfer.targets import ExportTarget, LocalTarget, RemoteTarget
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError
from logitcask_schemas.local_paths import new_folder

_LOCK_TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep:
    """One object of the store, now a local file."""

    name: str
    bytes: int
    skipped: bool
    """Whether an earlier run had brought it."""


def copy_as_is(
    url: str,
    target: Path,
    *,
    options: Mapping[str, Any] | None = None,
    planned: Callable[[int], None] | None = None,
) -> Iterator[CopyStep]:
    """Copy every object of a cask into a local folder.

    Args:
        url: The cask's folder in the store.
        target: A new folder, or one in which an earlier copy of the same cask did not finish.
        options: See `RemoteStore`.
        planned: Called once with the bytes of all shards and entries.

    Yields:
        One step per object, when it is durable.

    Raises:
        CaskNotFoundError: There is no manifest at the URL.
        CaskError: The folder is a cask already or holds something else, or the store does not answer.
        CaskWriteError: The local disk is full or broken; run again when it is not.
        CaskLockedError: Somebody else is writing there.
    """
    store = RemoteStore(url, options)
    StoreDirectory(store=store).read_manifest()
    prepare_folder(LocalFiles(), target)
    with writers_lock(target, holder=uuid.uuid4().hex, timeout_seconds=_LOCK_TIMEOUT_SECONDS):
        if (target / MANIFEST_NAME).exists():
            raise CaskError(f"{target}: is a cask already; name a new folder for the copy of {store.url}")
        sizes = {name: size for name, size in store.sizes(SHARDS_NAME).items() if not name.startswith(".")}
        if planned is not None:
            planned(sum(sizes.values()))
        # Shards before entries, as when they were published.
        for name in sorted(sizes, key=lambda name: (name.endswith(ENTRY_SUFFIX), name)):
            path = target / SHARDS_NAME / name
            skipped = path.exists() and path.stat().st_size == sizes[name]
            if not skipped:
                _bring(store, f"{SHARDS_NAME}/{name}", path)
            yield CopyStep(name=f"{SHARDS_NAME}/{name}", bytes=sizes[name], skipped=skipped)
        for name in (DOCUMENTS_NAME, INDEX_NAME):
            # Both may be missing; a repair makes them anew.
            with suppress(CaskNotFoundError):
                _bring(store, name, target / name)
                yield CopyStep(name=name, bytes=(target / name).stat().st_size, skipped=False)
        _bring(store, MANIFEST_NAME, target / MANIFEST_NAME)
        yield CopyStep(name=MANIFEST_NAME, bytes=(target / MANIFEST_NAME).stat().st_size, skipped=False)


def _bring(store: RemoteStore, name: str, path: Path) -> None:
    """One object, durable under its name."""

    def fetch(file: BinaryIO) -> str:
        # Into the open file by its name, which fsspec wants; it is the same file.
        store.download(name, Path(file.name))
        return path.name

    publish_file(LocalFiles(), path.parent, fetch)


_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStep:
    """One shard of the source, now in the target."""

    source: ShardEntry
    target: ShardEntry
    skipped: bool
    """Whether an earlier run had brought it."""


@contextmanager
def open_source(place: str, *, cache: Path | None = None) -> Iterator[Cask]:
    """Open a local cask, or one in an object store, of which one shard at a time is fetched.

    Args:
        place: Folder or URL.
        cache: Folder for fetched shards; None: a temporary one.
    """
    if not is_url(place):
        yield Cask.open(Path(place))
        return
    with TemporaryDirectory(prefix="logitcask-import-") as temporary:
        cask = Cask.open(place, cache=cache or Path(temporary))
        assert isinstance(cask.location, CachedStore)
        largest = max((entry.bytes for entry in cask.entries), default=1)
        # Each shard is needed once: keep the one being copied and the one before it.
        yield Cask(cask.location.limited(2 * largest), cask.manifest, cask.entries)


def absolute_place(place: Path | str) -> str:
    """A folder or URL as equal ones are written alike."""
    return str(place).rstrip("/") if is_url(place) else str(Path(place).resolve())


def target_of(place: str) -> ExportTarget:
    """The target that a folder or URL names. Raises OptionError where it is a URL as a path keeps it."""
    return RemoteTarget(SharedStore(place)) if is_url(place) else LocalTarget(new_folder(place))


def export_cask(source: Cask, target: ExportTarget, carrier_name: str | None) -> Iterator[ExportStep]:
    """Bring every shard of a cask into a target that holds nothing else, or a part of the same cask.

    Args:
        source: An open cask.
        target: Not the source's own place.
        carrier_name: File format of the shards there; None: each shard keeps its own, and its bytes.

    Yields:
        One step per shard, after it is durable. Stopping early leaves a folder that is no cask yet (or the cask that
        was there, with some new shards); running again goes on.

    Raises:
        CaskError: The target holds shards that the source does not, or in another carrier.
        IdentityMismatchError: The target is a cask of another teacher or spec.
        CaskCorruptionError, CaskNotFoundError: A shard of the source is damaged or missing; those before it are done
            and not copied again by the next run.
        CaskWriteError: The target's disk refuses.
        CaskLockedError: Another writer is at work in the target.
    """
    carrier = None if carrier_name is None else carrier_named(carrier_name)
    require_another_place(source, target)
    with target:
        there = target.prepare(source.manifest)
        _require_part_of(source, there, carrier)
        done = []
        for number, entry in enumerate(source.entries):
            present = there.get(entry.name)
            written = present or _copy(source, number, target, carrier or carrier_of(entry))
            done.append(written)
            yield ExportStep(source=entry, target=written, skipped=present is not None)
        names = (entry.name for entry in source.entries)
        target.finish(done, dict(zip(names, source.shard_documents(), strict=True)))


def require_another_place(source: Cask, target: ExportTarget) -> None:
    """Raise CaskError where a target is the source's own folder."""
    if isinstance(target, LocalTarget) and target.path.resolve() == source.path.resolve():
        raise CaskError(f"{target.path}: source and destination are the same cask")


def _require_part_of(source: Cask, there: dict[str, ShardEntry], carrier: Carrier | None) -> None:
    if strange := sorted(there.keys() - {entry.name for entry in source.entries}):
        raise CaskError(
            f"the destination holds {len(strange)} shards that {source.path} does not, such as {strange[0]}. "
            "Name an empty folder, or merge the casks."
        )
    for entry in there.values():
        if carrier is not None and entry.carrier != carrier.name:
            raise CaskError(
                f"the destination holds shard {entry.name} as {entry.carrier}, asked for {carrier.name}. "
                "Name an empty folder, or keep to one carrier."
            )


def _copy(source: Cask, number: int, target: ExportTarget, carrier: Carrier) -> ShardEntry:
    entry, shard = source.entries[number], source.shard(number)
    prove(shard)

    def convert(file: BinaryIO) -> ShardEntry:
        return write_shard(carrier, shard.columns, shard.layout, entry.identity, file, name=entry.name)

    def repeat(file: BinaryIO) -> ShardEntry:
        _copy_bytes(shard, file)
        return entry

    write = repeat if entry.carrier == carrier.name else convert
    if entry.hints is None or source.manifest.capture.hints is None:
        return target.publish(carrier, write)
    with source.location.held_hints(entry) as path:
        return target.publish(carrier, write, lambda file, _: copy_hints(path, entry, file))


def prove(shard: Shard) -> None:
    """Every document's checksum, and its id against its tokens: damage must not get new checksums on the way."""
    for row in range(shard.num_documents):
        shard.verify(row)
        stored, computed = shard.document_ids[row].tobytes(), shard.read(row).id
        if stored != computed:
            raise CaskCorruptionError(
                f"{shard.path}: document {row} is stored as {stored.hex()}, its tokens give {computed.hex()}. "
                "Run `logitcask cask verify`."
            )


def _copy_bytes(shard: Shard, file: BinaryIO) -> None:
    digest = hashlib.sha256()
    with shard.path.open("rb") as original:
        while block := original.read(_BLOCK):
            digest.update(block)
            file.write(block)
    if (computed := digest.hexdigest()) != shard.entry.sha256:
        raise CaskCorruptionError(
            f"{shard.path}: SHA-256 should be {shard.entry.sha256}, it is {computed}. Run `logitcask cask verify`."
        )
