"""A local folder as the home of a cask: one writer at a time holds its lock, and a rename publishes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import carrier_of, shard_path
from logitcask_schemas.cask.directory import (
    Listing,
    LocalDirectory,
    read_entry,
    read_listing,
    read_manifest,
    write_index,
    write_manifest,
)
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable, ShardDocuments, write_document_table
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import INDEX_NAME, MANIFEST_NAME, SHARDS_NAME, RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_publication import take_hints
from logitcask_schemas.cask.hint_width import stored_width
from logitcask_schemas.cask.opening import open_documents, require_shards
from logitcask_schemas.cask.publication import (
    Announce,
    prepare_folder,
    publish_entry,
    publish_shard,
    require_new,
    sweep,
)
from logitcask_schemas.cask.storage.files import FileOperations, clear_errors, link_or_copy, reads_explained
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.cask.storage.publication_log import PublicationLog
from logitcask_schemas.record.hint_spec import HintSpec


class LocalHome:
    """See `home.Home`."""

    compacts_while_publishing = True

    def __init__(self, path: Path, files: FileOperations, *, holder: str, lock_timeout_seconds: float) -> None:
        """Nothing is made yet.

        Args:
            path: The cask's folder.
            files: The file system.
            holder: A name that no other writer has.
            lock_timeout_seconds: How long to wait for another writer.
        """
        self._path = path
        self._files = files
        self._log = PublicationLog(holder)
        self._lock_timeout = lock_timeout_seconds
        self._has_index = False
        """Whether there was one when this home last looked or wrote."""

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._path)

    def prepare(self) -> None:
        """Make the folder."""
        prepare_folder(self._files, self._path)

    @contextmanager
    def exclusive(self) -> Iterator[list[str] | None]:
        """Hold the cask's lock."""
        log = self._log
        with writers_lock(self._path, holder=log.holder, timeout_seconds=self._lock_timeout, log=log):
            # Whoever removes shards by hand removes the index too, which the log does not tell.
            is_told = not self._has_index or (self._path / INDEX_NAME).exists()
            yield log.unseen if is_told else None

    def begin(self, make: Callable[[], CaskManifest]) -> CaskManifest:
        """The manifest in the folder."""
        if (self._path / MANIFEST_NAME).exists():
            return read_manifest(LocalDirectory(path=self._path))
        require_new(self._path)
        manifest = make()
        write_manifest(self._files, self._path, manifest)
        return manifest

    def sweep(self, published: Iterable[ShardEntry]) -> None:
        """Remove all that no entry names: whoever else could publish it does not hold the lock."""
        sweep(self._files, self._path, published)

    def read_listing(self) -> Listing:
        """Index and entries, from the folder."""
        listing = read_listing(LocalDirectory(path=self._path))
        self._has_index = bool(listing.indexed)
        return listing

    def read_entry(self, name: str) -> ShardEntry:
        """From the folder."""
        return read_entry(LocalDirectory(path=self._path), name)

    def require_shards(self, entries: Iterable[ShardEntry]) -> None:
        """Require the files in the folder."""
        require_shards(self._path, entries)

    def read_table(self) -> DocumentTable | None:
        """The table in the folder."""
        return DocumentTable.open(self._path)

    def table_version(self) -> tuple[int, ...] | None:
        """Of the file, which the next table replaces."""
        path = self._path / DOCUMENTS_NAME
        try:
            with reads_explained(path):
                status = path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def read_documents(self, entries: Iterable[ShardEntry], layout: RecordLayout) -> dict[str, ShardDocuments]:
        """From the shards' files, one after another."""
        return {entry.name: open_documents(self._path, entry, layout) for entry in entries}

    def hint_width(self, entries: Iterable[ShardEntry], spec: HintSpec) -> int | None:
        """Of the first shard that has hints."""
        return stored_width(self._path, entries, spec)

    def publish(
        self,
        carrier: Carrier,
        columns: ShardColumns,
        layout: RecordLayout,
        identity: str,
        hints: HintSpec | None,
        announce: Announce,
    ) -> ShardEntry:
        """Files, then entry; other writers are told."""
        entry = publish_shard(self._files, self._path, carrier, columns, layout, identity, hints, announce)
        self._log.note(entry.name)
        return entry

    def adopt(self, entry: ShardEntry, path: Path, hints: Path | None, *, link: bool) -> tuple[ShardEntry, bool]:
        """A second name for the file, or a copy of it."""
        target = shard_path(self._path, entry)
        # What has this name without an entry is the leftover of a writer that died.
        with clear_errors(self._path):
            self._files.unlink(target)
        linked = link_or_copy(self._files, path, self._path / SHARDS_NAME, target.name, link=link)
        if hints is None:
            entry = entry.model_copy(update={"hints": None})
        else:
            take_hints(self._files, hints, self._path, entry, link=link)
        publish_entry(self._files, self._path, entry, carrier_of(entry))
        self._log.note(entry.name)
        return entry, linked

    def compact(
        self, entries: Mapping[str, ShardEntry], documents: Mapping[str, ShardDocuments]
    ) -> DocumentTable | None:
        """Table and index anew; the table first, as it may list shards whose entries are loose."""
        write_document_table(self._files, self._path, documents)
        write_index(self._files, self._path, entries.values())
        self._has_index = True
        return DocumentTable.open(self._path)
