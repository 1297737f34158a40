"""Where an export goes: a local folder or a folder of an object store, each with its own way to publish.

The order is the same in both: for every shard its file and its entry, then the table of documents and the index, at the
end the manifest. So nobody takes an unfinished copy for the cask: without a manifest it is none. Whatever stops an
export, what has an entry is complete, and the next run goes on after it. An export into a cask that an earlier one
finished adds shards as a writer does; the manifest is there then.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import (
    LocalDirectory,
    StoreDirectory,
    entry_file,
    read_listing,
    read_manifest,
    require_identity,
    write_index,
    write_manifest,
)
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, ShardDocuments, write_document_table
from logitcask_schemas.cask.format.layout import INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import (
    CaskManifest,
    entry_bytes,
    index_bytes,
    manifest_bytes,
    parse_manifest,
    require_same_ranks,
)
from logitcask_schemas.cask.format.shard_entry import HintsFile, ShardEntry
from logitcask_schemas.cask.hint_file import hints_path
from logitcask_schemas.cask.publication import prepare_folder, publish_entry, sweep
from logitcask_schemas.cask.storage.files import FileOperations, LocalFiles, publish_file, size_of, writes_explained
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.store_publication import StorePublication
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError

WriteShard = Callable[[BinaryIO], ShardEntry]
"""Writes a shard to an open file and describes it."""
WriteHints = Callable[[BinaryIO, ShardEntry], HintsFile]
"""Writes the hints of the shard of this entry to an open file and describes it."""


class ExportTarget(Protocol):
    """A cask being made; use as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def prepare(self, manifest: CaskManifest) -> dict[str, ShardEntry]:
        """Require what is already there to be of the same teacher and spec.

        Returns:
            The entries that are there, by name, of shards whose file is there with its full size.
        """
        ...

    def publish(self, carrier: Carrier, write: WriteShard, hints: WriteHints | None = None) -> ShardEntry:
        """Make one shard, the file of its hints where it has them, then its entry, durable."""
        ...

    def finish(self, entries: Sequence[ShardEntry], documents: Mapping[str, ShardDocuments]) -> None:
        """Write the table of documents and the index, over all shards by name, then the manifest."""
        ...


class LocalTarget:
    """A folder; other writers wait until the export is done."""

    def __init__(self, path: Path, *, files: FileOperations | None = None, lock_timeout_seconds: float = 60.0) -> None:
        self.path = path
        self._files = files or LocalFiles()
        self._timeout = lock_timeout_seconds
        self._held = ExitStack()
        self._manifest_due: CaskManifest | None = None

    def __enter__(self) -> Self:
        prepare_folder(self._files, self.path)
        self._held.enter_context(writers_lock(self.path, holder=uuid.uuid4().hex, timeout_seconds=self._timeout))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def prepare(self, manifest: CaskManifest) -> dict[str, ShardEntry]:
        """The shards that the folder has already."""
        directory = LocalDirectory(path=self.path)
        if (self.path / MANIFEST_NAME).exists():
            stored = read_manifest(directory)
            stored.require_same(manifest.teacher, manifest.capture, where=str(self.path))
            require_same_ranks(stored, manifest, where=str(self.path))
        else:
            self._manifest_due = manifest
        entries = {entry.name: entry for entry in read_listing(directory).entries}
        require_identity(str(self.path), entries.values(), manifest, exported_into=True)
        sweep(self._files, self.path, entries.values())
        return {name: entry for name, entry in entries.items() if _is_whole(self.path, entry)}

    def publish(self, carrier: Carrier, write: WriteShard, hints: WriteHints | None = None) -> ShardEntry:
        """The shard and its entry, durable in the folder."""
        entries, described = list[ShardEntry](), list[HintsFile]()

        def named(file: BinaryIO) -> str:
            entries.append(write(file))
            return entries[0].name + carrier.suffix

        def named_hints(file: BinaryIO) -> str:
            if hints is not None:
                described.append(hints(file, entries[0]))
            return entries[0].hints_name

        publish_file(self._files, self.path / SHARDS_NAME, named)
        if hints is not None:
            publish_file(self._files, self.path / SHARDS_NAME, named_hints)
        entry = entries[0].model_copy(update={"hints": described[0] if described else None})
        publish_entry(self._files, self.path, entry, carrier)
        return entry

    def finish(self, entries: Sequence[ShardEntry], documents: Mapping[str, ShardDocuments]) -> None:
        """Write the table of documents, the index and the manifest into the folder."""
        write_document_table(self._files, self.path, documents)
        write_index(self._files, self.path, entries)
        if self._manifest_due is not None:
            write_manifest(self._files, self.path, self._manifest_due)


class RemoteTarget:
    """A folder of an object store. No lock: others may export or publish there at the same time."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._staging: tempfile.TemporaryDirectory[str] | None = None
        self._manifest: CaskManifest | None = None
        self._manifest_due: CaskManifest | None = None
        self._broken = frozenset[str]()
        """Names of shards that have an entry, and whose objects are missing or of another size."""

    def __enter__(self) -> Self:
        self._staging = tempfile.TemporaryDirectory(prefix="logitcask-export-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staging is not None:
            self._staging.cleanup()

    def prepare(self, manifest: CaskManifest) -> dict[str, ShardEntry]:
        """The shards that the store has already."""
        self._manifest, directory = manifest, StoreDirectory(store=self._store)
        try:
            stored = read_manifest(directory)
            stored.require_same(manifest.teacher, manifest.capture, where=self._store.url)
            require_same_ranks(stored, manifest, where=self._store.url)
        except CaskNotFoundError:
            self._manifest_due = manifest
        entries, sizes = read_listing(directory).entries, self._store.sizes(SHARDS_NAME)
        require_identity(self._store.url, entries, manifest, exported_into=True)

        def is_whole(entry: ShardEntry) -> bool:
            hints_size = None if entry.hints is None else entry.hints.bytes
            return sizes.get(shard_path(Path(), entry).name) == entry.bytes and (
                hints_size is None or sizes.get(entry.hints_name) == hints_size
            )

        whole = {entry.name: entry for entry in entries if is_whole(entry)}
        self._broken = frozenset(entry.name for entry in entries if entry.name not in whole)
        return whole

    def publish(self, carrier: Carrier, write: WriteShard, hints: WriteHints | None = None) -> ShardEntry:
        """The shard and its entry, in the store; the shard is made on the local disk first."""
        assert self._staging is not None, "use the target as a context manager"
        assert self._manifest is not None, "call prepare first"
        staged, beside = Path(self._staging.name) / "shard", Path(self._staging.name) / "hints"
        try:
            advice = "Free some space, or set TMPDIR"
            with writes_explained(f"{staged}: could not make the shard there", advice), staged.open("wb") as file:
                entry = write(file)
            described = None
            if hints is not None:
                with writes_explained(f"{beside}: could not make the hints there", advice), beside.open("wb") as file:
                    described = hints(file, entry)
            entry = entry.model_copy(update={"hints": described})
            if self._store.puts_under_conditions and entry.name not in self._broken:
                publication = StorePublication(store=self._store, manifest=self._manifest)
                return publication.publish(entry, staged, None if described is None else beside)
            self._store.upload(staged, f"{SHARDS_NAME}/{entry.name}{carrier.suffix}")
            if described is not None:
                self._store.upload(beside, f"{SHARDS_NAME}/{entry.hints_name}")
        finally:
            staged.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
        self._store.write(entry_file(entry.name), entry_bytes(entry))
        return entry

    def finish(self, entries: Sequence[ShardEntry], documents: Mapping[str, ShardDocuments]) -> None:
        """Write the table of documents, the index and the manifest into the store."""
        assert self._staging is not None, "use the target as a context manager"
        staged = Path(self._staging.name)
        write_document_table(LocalFiles(), staged, documents)
        self._store.upload(staged / DOCUMENTS_NAME, DOCUMENTS_NAME)
        self._store.write(INDEX_NAME, index_bytes(entries))
        if self._manifest_due is not None:
            due, where = self._manifest_due, f"{self._store.url}/{MANIFEST_NAME}"
            there = parse_manifest(self._store.create(MANIFEST_NAME, manifest_bytes(due)), where=where)
            # Somebody may have made a cask there meanwhile.
            there.require_same(due.teacher, due.capture, where=self._store.url)
            require_same_ranks(there, due, where=self._store.url)


def _is_whole(cask: Path, entry: ShardEntry) -> bool:
    try:
        hints_are_whole = entry.hints is None or size_of(hints_path(cask, entry)) == entry.hints.bytes
        return hints_are_whole and size_of(shard_path(cask, entry)) == entry.bytes
    except (FileNotFoundError, CaskCorruptionError):
        return False
