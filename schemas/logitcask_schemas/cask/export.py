"""Copying a cask into another carrier or another place, shard by shard, every document proved on the way.

The copy is the same cask: the manifest, the names of the shards and the numbers of the documents stay, so exporting to
Zarr and importing to Arrow gives back the very same files.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final

from logitcask_schemas.cask.carrier import Carrier
from logitcask_schemas.cask.carriers import carrier_named
from logitcask_schemas.cask.export_targets import ExportTarget, LocalTarget, RemoteTarget
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.remote_cask import RemoteCask
from logitcask_schemas.cask.remote_store import RemoteStore, is_url
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.shard_writing import write_shard
from logitcask_schemas.errors import CaskCorruptionError, CaskError
from logitcask_schemas.manifest import ShardEntry
from logitcask_schemas.records import document_id

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
        cask = RemoteCask.open_url(place, cache=cache or Path(temporary))
        largest = max((entry.bytes for entry in cask.entries), default=1)
        # Each shard is needed once: keep the one being copied and the one before it.
        yield RemoteCask(cask.path, cask.manifest, cask.entries, cask.cache.limited(2 * largest))


def target_of(place: str) -> ExportTarget:
    """The target that a folder or URL names."""
    return RemoteTarget(RemoteStore(place)) if is_url(place) else LocalTarget(Path(place))


def export_cask(source: Cask, target: ExportTarget, carrier_name: str) -> Iterator[ExportStep]:
    """Bring every shard of a cask into a target that holds nothing else, or a part of the same cask.

    Args:
        source: An open cask.
        target: Not the source's own place.
        carrier_name: File format of the shards there.

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
    carrier = carrier_named(carrier_name)
    if isinstance(target, LocalTarget) and target.path.resolve() == source.path.resolve():
        raise CaskError(f"{target.path}: source and destination are the same cask")
    with target:
        there = target.prepare(source.manifest)
        _require_part_of(source, there, carrier)
        done = []
        for number, entry in enumerate(source.entries):
            present = there.get(entry.name)
            written = present or _copy(source, number, target, carrier)
            done.append(written)
            yield ExportStep(source=entry, target=written, skipped=present is not None)
        names = (entry.name for entry in source.entries)
        target.finish(done, dict(zip(names, source.shard_documents(), strict=True)))


def _require_part_of(source: Cask, there: dict[str, ShardEntry], carrier: Carrier) -> None:
    if strange := sorted(there.keys() - {entry.name for entry in source.entries}):
        raise CaskError(
            f"the destination holds {len(strange)} shards that {source.path} does not, such as {strange[0]}. "
            "Name an empty folder, or merge the casks."
        )
    for entry in there.values():
        if entry.carrier != carrier.name:
            raise CaskError(
                f"the destination holds shard {entry.name} as {entry.carrier}, asked for {carrier.name}. "
                "Name an empty folder, or keep to one carrier."
            )


def _copy(source: Cask, number: int, target: ExportTarget, carrier: Carrier) -> ShardEntry:
    entry, shard = source.entries[number], source.shard(number)
    _prove(shard)

    def convert(file: BinaryIO) -> ShardEntry:
        return write_shard(carrier, shard.columns, shard.layout, entry.identity, file, name=entry.name)

    def repeat(file: BinaryIO) -> ShardEntry:
        _copy_bytes(shard, file)
        return entry

    return target.publish(carrier, repeat if entry.carrier == carrier.name else convert)


def _prove(shard: Shard) -> None:
    """Every document's checksum, and its id against its tokens: damage must not get new checksums on the way."""
    for row in range(shard.num_documents):
        shard.verify(row)
        stored, found = shard.document_ids[row].tobytes(), document_id(shard.read(row).token_ids_L)
        if stored != found:
            raise CaskCorruptionError(
                f"{shard.path}: document {row} is stored as {stored.hex()}, its tokens give {found.hex()}. "
                "Run `logitcask cask verify`."
            )


def _copy_bytes(shard: Shard, file: BinaryIO) -> None:
    digest = hashlib.sha256()
    with shard.path.open("rb") as original:
        while block := original.read(_BLOCK):
            digest.update(block)
            file.write(block)
    if (found := digest.hexdigest()) != shard.entry.sha256:
        raise CaskCorruptionError(
            f"{shard.path}: SHA-256 should be {shard.entry.sha256}, it is {found}. Run `logitcask cask verify`."
        )
