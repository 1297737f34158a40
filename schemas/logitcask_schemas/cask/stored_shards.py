"""What a cask holds, as a writer of it knows: entries in the index and beside it, documents in the table and beyond."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.directory import require_identity
from logitcask_schemas.cask.documents import DocumentIndex, DocumentTable, ShardDocuments
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.home import Home

_MIN_LOOSE: Final = 64
_LOOSE_FRACTION: Final = 8


class StoredShards:
    """The shards of a cask and their documents; all but `has` and `num_documents` inside `Home.exclusive`."""

    def __init__(self, home: Home, manifest: CaskManifest) -> None:
        """Nothing is known before `refresh`.

        Args:
            home: Where the cask lies.
            manifest: Of the cask.
        """
        self._home = home
        self._manifest = manifest
        self._layout = RecordLayout.of(manifest)
        self._indexed: dict[str, ShardEntry] = {}
        self._loose: dict[str, ShardEntry] = {}
        self._table: DocumentTable | None = None
        self._table_version: tuple[int, ...] | None = None
        """Of the table that was read last."""
        self._beyond_table: dict[str, ShardDocuments] = {}
        self._beyond_index = DocumentIndex()

    @property
    def entries(self) -> Iterable[ShardEntry]:
        """Of all shards, once each."""
        return (self._indexed | self._loose).values()

    @property
    def num_documents(self) -> int:
        """Of all shards that are known."""
        return (self._table.num_documents if self._table else 0) + len(self._beyond_index)

    def has(self, document_id: bytes) -> bool:
        """Whether a document is stored, by its 32-byte id."""
        table = self._table
        return self._beyond_index.find(document_id) is not None or (
            table is not None and table.find(document_id) is not None
        )

    def holding(self, document_ids: Iterable[bytes]) -> list[tuple[ShardEntry, set[bytes]]]:
        """Shards that hold one of these documents, by name, each with the ids of all its documents."""
        wanted, ids = set(document_ids), dict[str, NDArray[np.uint8]]()
        for name, documents in self._beyond_table.items():
            if any(identity.tobytes() in wanted for identity in documents.ids):
                ids[name] = documents.ids
        if (table := self._table) is not None:
            for name in {name for identity in wanted for name in table.shards_with(identity)}:
                ids[name] = table.shard(name).ids
        entries = self._indexed | self._loose
        return [(entries[name], {identity.tobytes() for identity in ids[name]}) for name in sorted(ids)]

    def refresh(self) -> None:
        """Read the entries that others published since.

        Raises:
            CaskCorruptionError, CaskNotFoundError: Index, table, an entry or a shard is missing, damaged or foreign.
        """
        listing = self._home.read_listing()
        entries = listing.indexed | listing.loose
        require_identity(self._home.place, entries.values(), self._manifest)
        self._home.require_shards(entries.values())
        # Names come from content: what is known of a shard holds as long as the cask has it.
        known = {name: documents for name, documents in self._beyond_table.items() if name in entries}
        if not entries.keys() >= self._indexed.keys() | self._loose.keys() or self._table is None:
            # The first time, or after a repair took shards away: nothing is known of what is stored now.
            self._table, self._beyond_table, self._beyond_index = self._fitting_table(entries), {}, DocumentIndex()
        missing = [
            entry
            for name, entry in entries.items()
            if name not in self._beyond_table and (self._table is None or name not in self._table)
        ]
        read = self._home.read_documents((entry for entry in missing if entry.name not in known), self._layout)
        for entry in missing:
            documents = known.get(entry.name) or read[entry.name]
            self._add_documents(
                entry.name, ShardDocuments(ids=documents.ids, lengths=documents.lengths.astype(np.uint32))
            )
        self._indexed, self._loose = listing.indexed, listing.loose

    def take(self, names: Iterable[str]) -> None:
        """Read the entries of shards that others published since; nothing else has happened to the cask.

        What it takes depends on how many these are, not on the shards of the cask; now and then, when somebody has
        folded them into the table, on the table.

        Args:
            names: Of the shards.

        Raises:
            CaskCorruptionError, CaskNotFoundError: The table, an entry or a shard is missing, damaged or foreign.
        """
        entries = [self._home.read_entry(name) for name in names if name not in self._loose]
        require_identity(self._home.place, entries, self._manifest)
        read = self._home.read_documents(entries, self._layout)
        for entry in entries:
            documents = read[entry.name]
            self.note(entry, ShardDocuments(ids=documents.ids, lengths=documents.lengths.astype(np.uint32)))
        if self._home.table_version() != self._table_version:
            self._follow_table()

    def _follow_table(self) -> None:
        """Let go of what another writer has folded into the table."""
        known = self._indexed | self._loose
        table = self._fitting_table(known)
        if table is None:  # somebody deleted it, as anybody may; the one that is mapped says the same
            return
        if any(name not in table for name in self._indexed):  # somebody took shards away and folded the rest
            self.refresh()
            return
        # The table before what it replaces, as in `compact`.
        self._table = table
        beyond = {name: documents for name, documents in self._beyond_table.items() if name not in table}
        self._beyond_table, self._beyond_index = {}, DocumentIndex()
        for name, documents in beyond.items():
            self._add_documents(name, documents)
        self._loose = {name: entry for name, entry in self._loose.items() if name not in table}
        self._indexed = {name: entry for name, entry in known.items() if name not in self._loose}

    def _fitting_table(self, entries: Mapping[str, ShardEntry]) -> DocumentTable | None:
        """The table that is there, unless it lists shards that were removed: their documents are gone."""
        self._table_version = self._home.table_version()
        table = self._home.read_table()
        return table if table is not None and all(name in entries for name in table.shard_names()) else None

    def note(self, entry: ShardEntry, documents: ShardDocuments) -> None:
        """Know of a shard that was published just now."""
        self._loose[entry.name] = entry
        self._add_documents(entry.name, documents)

    def _add_documents(self, name: str, documents: ShardDocuments) -> None:
        self._beyond_table[name] = documents
        self._beyond_index.add(documents.ids, np.zeros(len(documents.lengths), dtype=np.int64))

    def compact_when_due(self) -> None:
        """Before a publication, not after: a disk too full for the index must not make a published shard look lost."""
        if not self._home.compacts_while_publishing:
            return
        if len(self._loose) > max(_MIN_LOOSE, len(self._indexed) // _LOOSE_FRACTION):
            self.compact()

    def compact(self) -> None:
        """Fold all entries into index and table, where some are not in them; errors as `Home`."""
        if not (self._loose or self._beyond_table):
            return
        documents = dict(self._beyond_table)
        if self._table is not None:
            documents |= {name: self._table.shard(name) for name in self._table.shard_names()}
        merged = self._indexed | self._loose
        table = self._home.compact(merged, documents)
        self._table_version = self._home.table_version()
        self._indexed, self._loose = merged, {}
        # The table before what it replaces: a thread that asks `has` meanwhile must not miss a document.
        self._table = table
        self._beyond_table, self._beyond_index = {}, DocumentIndex()
