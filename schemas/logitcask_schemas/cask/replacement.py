"""What a repair changes in a cask, in the order in which readers see right records at every instant.

1. The sound documents of damaged shards are published as new shards. Until step 2 they may be stored twice.
2. The damaged shards' entries lose their names, then index.json is replaced by one without them. Entries first: a
   damaged entry file that the index does not repeat keeps the cask from opening.
3. The damaged shards' files lose their names.
4. documents.bin is replaced. Until then it says what the damaged shards held, also to a reader that knows them still
   and would otherwise ask their files.

A crash after step 3 leaves a table that lists shards that are gone, which readers and writers notice.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from logitcask_schemas.cask.carriers import carrier_of, shard_path
from logitcask_schemas.cask.diagnosis import Diagnosis, StoredDocuments, files_named
from logitcask_schemas.cask.document_table import DOCUMENTS_NAME, ShardDocuments, write_document_table
from logitcask_schemas.cask.files import FileOperations
from logitcask_schemas.cask.gather import Row, gather_rows
from logitcask_schemas.cask.index import write_entry, write_index
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, INDEX_NAME, SHARDS_NAME
from logitcask_schemas.cask.publication import publish_entry, publish_shard_file
from logitcask_schemas.cask.quarantine import Quarantine
from logitcask_schemas.cask.salvage import Salvage
from logitcask_schemas.manifest import ShardEntry


class Replacement:
    """The steps of one repair; each once, in the order in which they stand here.

    All raise CaskWriteError where the file system refuses; a second repair then goes on.
    """

    def __init__(self, files: FileOperations, found: Diagnosis, quarantine: Quarantine) -> None:
        """The quarantine holds a second name of every file that will lose its own."""
        self._files, self._found, self._quarantine = files, found, quarantine
        self._path = found.taken.cask.path
        self._stored = StoredDocuments(found)
        self._documents = _documents_of_sound(found, self._stored)
        self.entries = dict(found.sound)
        """The shards of the cask as it will be, by name."""

    def add_sound(self, salvaged: Mapping[str, Salvage]) -> list[str]:
        """Publish what is sound of damaged shards and not stored elsewhere; returns the new shards' names."""
        cask, published, names = self._found.taken.cask, set[bytes](), []
        for name, one in salvaged.items():
            fresh = {identity_of(row): row for row in one.sound if not self._stored.has(identity_of(row))}
            rows = [row for identity, row in fresh.items() if identity not in published]
            published |= fresh.keys()
            if rows:
                columns, carrier = gather_rows(rows, cask.layout), carrier_of(self._found.damaged[name])
                identity = cask.manifest.identity_digest()
                entry = publish_shard_file(self._files, self._path, carrier, columns, cask.layout, identity)
                if not self._is_blocked(entry):
                    publish_entry(self._files, self._path, entry, carrier)
                self.entries[entry.name] = entry
                lengths = np.diff(columns.offsets["token"]).astype(np.uint32)
                self._documents[entry.name] = ShardDocuments(ids=columns.document_ids, lengths=lengths)
                names.append(entry.name)
        for entry in self._found.rewrite_entries:
            if not self._is_blocked(entry):
                write_entry(self._files, self._path, entry)
        return names

    def take_entries_away(self) -> None:
        """From here on the damaged shards are no part of the cask."""
        self._quarantine.take_away([self._entry_path(name) for name in self._gone()])
        self._make_room(INDEX_NAME)
        write_index(self._files, self._path, self.entries.values())
        for entry in filter(self._is_blocked, list(self.entries.values())):
            self._quarantine.take_away([self._entry_path(entry.name)])
            write_entry(self._files, self._path, entry)

    def take_files_away(self, strange: Iterable[str]) -> None:
        """Take away the damaged shards' files, and those among the shards that are not the cask's."""
        # A shard that was renamed into place before an earlier repair died was a stranger; by now it has its entry.
        named = {shard_path(self._path, entry).name for entry in self.entries.values()}
        named |= {name + ENTRY_SUFFIX for name in self.entries}
        strangers = [self._path / SHARDS_NAME / name for name in strange if name not in named]
        leftovers = [shard for name in self._gone() for shard in files_named(self._path, name)]
        self._quarantine.take_away([*leftovers, *strangers])

    def write_table(self) -> None:
        """Make the table of documents anew."""
        self._make_room(DOCUMENTS_NAME)
        write_document_table(self._files, self._path, self._documents)

    def _gone(self) -> list[str]:
        return sorted(self._found.gone - self.entries.keys())

    def _entry_path(self, name: str) -> Path:
        return self._path / SHARDS_NAME / (name + ENTRY_SUFFIX)

    def _is_blocked(self, entry: ShardEntry) -> bool:
        """A folder has the name of its file, and must stay until the index knows the shard."""
        return self._entry_path(entry.name).is_dir()

    def _make_room(self, name: str) -> None:
        if (self._path / name).is_dir():
            self._quarantine.take_away([self._path / name])


def fold(files: FileOperations, found: Diagnosis) -> None:
    """Make table and index anew in a cask in which nothing is damaged; raises CaskWriteError."""
    path = found.taken.cask.path
    write_document_table(files, path, _documents_of_sound(found, StoredDocuments(found)))
    write_index(files, path, found.sound.values())


def identity_of(row: Row) -> bytes:
    """A document's id, 32 bytes."""
    columns, number = row
    return bytes(columns.document_ids[number])


def _documents_of_sound(found: Diagnosis, stored: StoredDocuments) -> dict[str, ShardDocuments]:
    listed = {name: known for name in found.sound if (known := found.known(name)) is not None}
    return listed | stored.loose
