"""Writing a cask: documents in, one durable shard out."""

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import carrier_named
from logitcask_schemas.cask.directory import require_identity
from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.columns import ShardColumns, assemble, gather_rows
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.manifest import FORMAT_VERSION, CaskManifest, version_for
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import open_hints
from logitcask_schemas.cask.hint_width import require_hints_as_asked, require_stored_width
from logitcask_schemas.cask.home import Home
from logitcask_schemas.cask.local_home import LocalHome
from logitcask_schemas.cask.publication import Announce
from logitcask_schemas.cask.storage.files import FileOperations, LocalFiles
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.store_home import StoreHome
from logitcask_schemas.cask.stored_shards import StoredShards
from logitcask_schemas.errors import CaskError
from logitcask_schemas.local_paths import new_folder
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import Accept, TeacherIdentity
from logitcask_schemas.record.many_documents import check_documents
from logitcask_schemas.record.records import DocumentRecords
from logitcask_schemas.terminal import installed_version

LOCK_TIMEOUT_SECONDS: Final = 600.0


class CaskWriter:
    """Publishes shards into one cask. Several writers, threads or processes, may publish into the same cask at once.

    `publish` costs the same however many shards there are, also beside other writers. In a folder, they tell each other
    what they publish (`storage.publication_log`), and index and table of documents are rewritten when an eighth of the
    entries is not in them yet: a constant number per publication; in an object store when the writer is closed. Which
    documents are stored is looked up in the mapped table, so memory grows only with what is not in it yet.

    In an object store writers do not wait for each other. The same documents in the same order are one shard. One that
    two writers publish at the same time in different shards is stored twice: give each writer its own documents.
    """

    def __init__(self, path: Path | str, manifest: CaskManifest, home: Home, *, carrier: Carrier | None = None) -> None:
        """Use `create`, which also prepares the place."""
        self.path = path
        """Folder or URL of the cask."""
        self.manifest = manifest
        self._home = home
        self._layout = RecordLayout.of(manifest)
        self._identity = manifest.identity_digest()
        self._carrier = carrier or ArrowCarrier()
        self._stored = StoredShards(home, manifest)
        self._hint_width: int | None = None
        """Of the stored hints, where a publication has looked."""
        self._certain = False
        """Whether this writer knows all that it has published: not after an error that may have come too late."""

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        teacher: TeacherIdentity,
        capture: CaptureSpec,
        carrier: str = ArrowCarrier.name,
        files: FileOperations | None = None,
        lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
        accept: Collection[Accept] = (),
        version: Literal[1, 2, 3] = FORMAT_VERSION,
        rank_table: RankTable | None = None,
        single_writer: bool = False,
        store_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create a cask, or open an existing one of the same teacher and capture spec.

        Leftovers of writers that died are swept, in a folder.

        Args:
            path: The cask's directory, made with its parents where absent; or its URL in an object store
                ("s3://bucket/folder"; needs the extra `remote`).
            teacher: Who the records come from.
            capture: What was kept of each distribution.
            carrier: File format of the shards that this writer adds: "arrow", "zarr", "parquet" or "packed".
            files: The file system, for tests.
            lock_timeout_seconds: How long to wait for another writer, here and in `publish`; nobody waits in a store.
            accept: What may differ from an existing cask's teacher, because a person said so.
            version: Of a cask that is created: 2 for documents with records of some positions, or under a context. It
                is 3 at least where spec or rank table ask for that.
            rank_table: Of a cask that is created, for shards of carrier `packed`.
            single_writer: Of a URL: nobody else writes there at the same time, which the caller has made sure of. So a
                store will do that cannot put an object only where there is none.
            store_options: Of a URL: see `RemoteStore`.

        Raises:
            IdentityMismatchError: The cask holds records of another teacher or spec; names the fields.
            CaskError: The place holds something else than a cask, there is no such carrier, or the store has no
                conditional puts.
            CaskWriteError: The file system refuses.
            OptionError: It is a URL as a path keeps it, with one slash of two.
            StoreError: The store does not answer, or refuses.
            CaskCorruptionError, CaskNotFoundError: The existing cask is damaged.
        """
        stores_as = carrier_named(carrier)
        home: Home
        if is_url(path):
            home = StoreHome(SharedStore(str(path), store_options), single_writer=single_writer)
            path = home.place
        else:
            path, holder = new_folder(path), uuid.uuid4().hex
            home = LocalHome(path, files or LocalFiles(), holder=holder, lock_timeout_seconds=lock_timeout_seconds)
        home.prepare()
        with home.exclusive():
            manifest = home.begin(
                lambda: CaskManifest(
                    version=max(version, version_for(capture, rank_table)),
                    teacher=teacher,
                    capture=capture,
                    rank_table=rank_table,
                    created_by=f"logitcask {installed_version()}",
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
            manifest.require_same(teacher, capture, where=str(path), accept=accept)
            writer = cls(path, manifest, home, carrier=stores_as)
            writer._stored.refresh()
            home.sweep(writer._stored.entries)
            writer._certain = True
        return writer

    @property
    def num_documents(self) -> int:
        """Documents in the cask, as far as this writer has seen."""
        return self._stored.num_documents

    def has(self, document_id: bytes) -> bool:
        """Whether a document is stored, by its 32-byte id.

        Other writers' documents count from this writer's last `publish` on; in an object store from its last `refresh`.
        """
        return self._stored.has(document_id)

    def shards_with(self, document_ids: Iterable[bytes]) -> list[tuple[ShardEntry, set[bytes]]]:
        """Shards that hold one of these documents (32-byte ids), by name, each with all its documents' ids.

        Raises:
            CaskCorruptionError, CaskNotFoundError, StoreError, CaskLockedError: As `refresh`.
        """
        with self._refreshed():
            return self._stored.holding(document_ids)

    def refresh(self) -> None:
        """Learn what other writers have published. In a folder, `publish` does so by itself.

        Raises:
            CaskCorruptionError, CaskNotFoundError: Something of the cask is missing or damaged.
            StoreError, CaskLockedError: As `publish`.
        """
        self._certain = False
        with self._refreshed():
            pass

    def publish(
        self,
        documents: Sequence[DocumentRecords],
        *,
        on_duplicate: Literal["skip", "error"] = "skip",
        announce: Announce = lambda name: None,
    ) -> ShardEntry | None:
        """Store documents as one shard, durably; when this returns, they survive a crash.

        Args:
            documents: In the order in which the shard shall hold them; the same documents in the same order always
                give the same file.
            on_duplicate: What to do about a document that the cask already has: leave it out, or raise.
            announce: Hears the shard's name just before it becomes part of the cask; see `publication.Announce`.

        Returns:
            The published shard's entry, or None when every document was already stored. In an object store it may be
            another writer's, of the same documents at the same time: `announce` has heard nothing then.

        Raises:
            InvalidRecordError: A document breaks the format or the capture spec, or its hints are of another width than
                the cask's; nothing was written.
            CaskError: A duplicate, with on_duplicate="error"; or a document that is not recorded whole, in a cask of
                version 1.
            CaskWriteError: Disk full or broken; the cask is unchanged.
            CaskLockedError: Another writer did not finish in time.
            StoreError: The store does not answer, or refuses. Whether the shard is published may then be open; the
                next call finds out, and publishing the same documents again is safe.
        """
        ids = self._checked_ids(documents)
        with self._refreshed():
            self._stored.compact_when_due()
            fresh: dict[bytes, DocumentRecords] = {}
            for identity, document in zip(ids, documents, strict=True):
                if identity not in fresh and not self.has(identity):
                    fresh[identity] = document
                elif on_duplicate == "error":
                    raise CaskError(f"{self.path}: document {identity.hex()[:16]} is already stored or given twice")
            if not fresh:
                return None
            return self._store(assemble(list(fresh.values()), list(fresh), self._layout), announce)

    def publish_columns(self, columns: ShardColumns) -> ShardEntry | None:
        """Store documents that come from another shard of the same identity and capture spec, as they are stored there.

        Args:
            columns: Proved documents (see `Shard.verify`) in this cask's layout; those that it has are left out.

        Returns, Raises:
            As `publish`.
        """
        if columns.lists.recorded is not None or columns.lists.contexts is not None:
            self.manifest.require_extents(str(self.path), "a shard has")
        with self._refreshed():
            self._stored.compact_when_due()
            fresh: dict[bytes, int] = {}
            for row, identity in enumerate(columns.document_ids):
                if not self.has(identity.tobytes()):
                    fresh.setdefault(identity.tobytes(), row)
            if not fresh:
                return None
            whole = len(fresh) == len(columns.document_ids)
            rows = [(columns, row) for row in fresh.values()]
            return self._store(columns if whole else gather_rows(rows, self._layout))

    def adopt(
        self,
        entry: ShardEntry,
        path: Path,
        documents: ShardDocuments,
        *,
        link: bool = True,
        hints: Path | None = None,
    ) -> bool | None:
        """Make a whole shard of another cask of the same identity part of this one, under its own name.

        Args:
            entry: The shard's.
            path: Its file, which is the caller's to have proved.
            documents: What it holds.
            link: Share the file where the file system can, instead of copying it.
            hints: The file of hints beside it, the caller's to have proved as well; None where it has none, or stays
                without them.

        Returns:
            Whether the file is shared; None where one of the documents is already stored here, and nothing was done.

        Raises:
            CaskCorruptionError: The shard is another identity's, or its file of hints is no such file.
            InvalidRecordError: Its hints are of another width than this cask's; nothing was done.
            CaskWriteError, CaskLockedError: As `publish`.
        """
        require_identity(str(self.path), [entry], self.manifest)
        if entry.recorded_documents or entry.context_documents:
            self.manifest.require_extents(str(self.path), f"shard {entry.name} has")
        with self._refreshed():
            self._stored.compact_when_due()
            if any(self.has(identity.tobytes()) for identity in documents.ids):
                return None
            spec = self.manifest.capture.hints
            if hints is not None and spec is not None:
                self._require_width(open_hints(hints.parent.parent, entry, spec).columns.rows.width, spec)
            entry, linked = self._home.adopt(entry, path, hints, link=link)
            self._stored.note(
                entry, ShardDocuments(ids=documents.ids.copy(), lengths=documents.lengths.astype(np.uint32))
            )
        return linked

    def close(self) -> None:
        """Fold all entries into the index and the table of documents, so that opening reads two files.

        The writer stays usable. In an object store this is the only time: a long run with many writers may let one of
        them close now and then.
        """
        with self._refreshed():
            self._stored.compact()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    @contextmanager
    def _refreshed(self) -> Iterator[None]:
        """Hold the lock, knowing every shard that is published."""
        with self._home.exclusive() as published:
            certain, self._certain = self._certain, False
            if certain and published is not None:
                self._stored.take(published)
            else:
                self._stored.refresh()
                self._hint_width = None  # a repair may have taken away what it was read from
            yield
            self._certain = True

    def _checked_ids(self, documents: Sequence[DocumentRecords]) -> list[bytes]:
        ids = [document.id for document in documents]
        names = [f"document {identity.hex()[:16]}" for identity in ids]
        check_documents(
            documents,
            self.manifest.teacher.vocab_size,
            where=names,
            head_holds_next=self._layout.head_holds_next,
        )
        for document, where in zip(documents, names, strict=True):
            if not document.extent.is_whole:
                self.manifest.require_extents(str(self.path), f"{where} has")
            require_hints_as_asked(self.manifest.capture.hints, document, where)
        return ids

    def _require_width(self, width: int, spec: HintSpec) -> None:
        """Raise InvalidRecordError unless a new shard's hints are as wide as the cask's; call with the lock held."""
        if self._hint_width is None:
            self._hint_width = self._home.hint_width(self._stored.entries, spec)
        require_stored_width(str(self.path), width, self._hint_width)

    def _store(self, columns: ShardColumns, announce: Announce = lambda name: None) -> ShardEntry:
        """Publish a shard of documents that are not stored yet; call with the lock held."""
        hints = self.manifest.capture.hints
        if hints is not None and columns.hints is not None:
            self._require_width(columns.hints.rows.width, hints)
        entry = self._home.publish(self._carrier, columns, self._layout, self._identity, hints, announce)
        lengths = np.diff(columns.offsets["token"]).astype(np.uint32)
        self._stored.note(entry, ShardDocuments(ids=columns.document_ids, lengths=lengths))
        return entry
