"""A folder of an object store as the home of a cask: no lock, many writers at once, a conditional put publishes.

A writer learns what others have published when it is made, and not at every publication: that costs as much as there
are shards. So whoever gives work to several writers gives each its own documents; see docs/format.md, section 8.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import Listing, StoreDirectory, read_entry, read_listing, read_manifest
from logitcask_schemas.cask.documents import DocumentTable, ShardDocuments
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import MANIFEST_NAME, SHARDS_NAME, RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest, manifest_bytes, parse_manifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import hints_path, width_in_head
from logitcask_schemas.cask.publication import Announce, publish_shard_file, require_no_shards, require_only_cask
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.store_compaction import compact_store
from logitcask_schemas.cask.store_documents import read_documents, read_table
from logitcask_schemas.cask.store_publication import STAGING, StagingFiles, StorePublication
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError
from logitcask_schemas.record.hint_spec import HintSpec

_HEAD_BYTES: Final = 1 << 16
"""Of a file of hints: its schema lies in them."""


class StoreHome:
    """See `home.Home`."""

    compacts_while_publishing = False

    def __init__(self, store: SharedStore, *, single_writer: bool) -> None:
        """Nothing is contacted yet.

        Args:
            store: The cask's folder.
            single_writer: Whether somebody has made sure that nobody else writes there, so that a store without
                conditional puts will do.
        """
        self._store = store
        self._single_writer = single_writer
        self._lock = threading.Lock()
        self._manifest: CaskManifest | None = None

    @property
    def place(self) -> str:
        """The URL."""
        return self._store.url

    def prepare(self) -> None:
        """Nothing is to be made in a store."""
        if not self._single_writer and not self._store.puts_under_conditions:
            raise self._refusal("cannot be asked to put an object only where there is none")

    @contextmanager
    def exclusive(self) -> Iterator[list[str] | None]:
        """Keep out this process's other threads; other writers are never in the way."""
        with self._lock:
            yield []

    def begin(self, make: Callable[[], CaskManifest]) -> CaskManifest:
        """The manifest in the store; of several writers that make it at once, the first one's."""
        stored = self._manifest_there()
        if stored is None:
            content = self._store.create(MANIFEST_NAME, manifest_bytes(make()))
            stored = parse_manifest(content, where=f"{self.place}/{MANIFEST_NAME}")
        if not self._single_writer and not self._store.honours_conditions(MANIFEST_NAME):
            raise self._refusal("puts an object although there is one and it was asked not to (`If-None-Match`)")
        self._manifest = stored
        return stored

    def _manifest_there(self) -> CaskManifest | None:
        directory = StoreDirectory(store=self._store)
        with suppress(CaskNotFoundError):
            return read_manifest(directory)
        names = self._store.children()
        files = directory.file_names()
        # What lies there may be the work of somebody who has just made the cask.
        with suppress(CaskNotFoundError):
            return read_manifest(directory)
        require_only_cask(self.place, names)
        require_no_shards(self.place, files, names)
        return None

    def _refusal(self, why: str) -> CaskError:
        return CaskError(
            f"{self.place}: this store {why}, so two writers could destroy each other's work. Publish into S3 or a "
            "store that has conditional puts, or say that there is a single writer (single_writer=True, in commands "
            "--single-writer) and see to it"
        )

    def sweep(self, published: Iterable[ShardEntry]) -> None:
        """Remove nothing: what no entry names may belong to somebody who is about to publish it."""

    def read_listing(self) -> Listing:
        """Index and entries, from the store."""
        return read_listing(StoreDirectory(store=self._store))

    def read_entry(self, name: str) -> ShardEntry:
        """From the store."""
        return read_entry(StoreDirectory(store=self._store), name)

    def require_shards(self, entries: Iterable[ShardEntry]) -> None:
        """Require nothing: an entry is made after its objects, and `verify` proves them."""

    def read_table(self) -> DocumentTable | None:
        """The table in the store, fetched."""
        return read_table(self._store)

    def table_version(self) -> tuple[int, ...] | None:
        """None: whoever else makes a table is not followed."""
        return None

    def read_documents(self, entries: Iterable[ShardEntry], layout: RecordLayout) -> dict[str, ShardDocuments]:
        """From parts of the shards, many at a time."""
        return read_documents(self._store, entries, layout)

    def hint_width(self, entries: Iterable[ShardEntry], spec: HintSpec) -> int | None:
        """Of the first shard that has hints, from the start of its file."""
        for entry in entries:
            if entry.hints is not None:
                name = f"{SHARDS_NAME}/{entry.hints_name}"
                with suppress(CaskNotFoundError, CaskCorruptionError):  # left to `verify`, as in a folder
                    (head,) = self._store.read_ranges([(name, 0, min(_HEAD_BYTES, entry.hints.bytes))])
                    return width_in_head(f"{self.place}/{name}", head)
        return None

    def publish(
        self,
        carrier: Carrier,
        columns: ShardColumns,
        layout: RecordLayout,
        identity: str,
        hints: HintSpec | None,
        announce: Announce,
    ) -> ShardEntry:
        """Files in a temporary folder, then objects, then the entry."""
        with TemporaryDirectory(prefix=STAGING) as temporary:
            staged = Path(temporary)
            (staged / SHARDS_NAME).mkdir()
            entry = publish_shard_file(StagingFiles(), staged, carrier, columns, layout, identity, hints)
            beside = None if entry.hints is None else hints_path(staged, entry)
            return self._publication.publish(entry, shard_path(staged, entry), beside, announce)

    def adopt(self, entry: ShardEntry, path: Path, hints: Path | None, *, link: bool) -> tuple[ShardEntry, bool]:
        """Objects of the files; nothing is shared."""
        if hints is None:
            entry = entry.model_copy(update={"hints": None})
        return self._publication.publish(entry, path, hints), False

    @property
    def _publication(self) -> StorePublication:
        assert self._manifest is not None, "call begin first"
        return StorePublication(store=self._store, manifest=self._manifest)

    def compact(
        self, entries: Mapping[str, ShardEntry], documents: Mapping[str, ShardDocuments]
    ) -> DocumentTable | None:
        """Index and table anew, from what the store lists now."""
        return compact_store(self._store, documents)
