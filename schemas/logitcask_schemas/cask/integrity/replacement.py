"""What a repair changes in a cask, in the order in which readers see right records at every instant.

1. The sound documents of damaged shards are published as new shards. Until step 2 they may be stored twice.
2. The damaged shards' entries lose their names, then index.json is replaced by one without them. Entries first: a
   damaged entry file that the index does not repeat keeps the cask from opening.
3. The damaged shards' files lose their names.
4. documents.bin is replaced. Until then it says what the damaged shards held, also to a reader that knows them still
   and would otherwise ask their files.

A crash after step 3 leaves a table that lists shards that are gone, which readers and writers notice.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np

from logitcask_schemas.cask.carriers.registry import carrier_of, shard_path
from logitcask_schemas.cask.directory import write_entry, write_index
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, ShardDocuments, write_document_table
from logitcask_schemas.cask.format.columns import Row, gather_rows
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, QUARANTINE_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.integrity.diagnosis import Diagnosis, StoredDocuments, files_named
from logitcask_schemas.cask.integrity.salvage import LostRecords, Salvage
from logitcask_schemas.cask.publication import publish_entry, publish_shard_file
from logitcask_schemas.cask.storage.files import FileOperations, clear_errors, link_or_copy, publish_file

REQUEUE_NAME: Final = "requeue.jsonl"
LOST_NAME: Final = "lost.jsonl"


class Quarantine:
    """One repair's folder. Every method raises CaskWriteError where the file system refuses."""

    def __init__(self, files: FileOperations, path: Path) -> None:
        """Use `create`."""
        self.path = path
        self._files = files

    @classmethod
    def create(cls, files: FileOperations, cask: Path) -> Self:
        """Make quarantine/<time>-<random>, durably."""
        folder = cask / QUARANTINE_NAME / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        with clear_errors(cask):
            files.make_directory(folder.parent)
            files.sync_directory(cask)
            files.make_directory(folder)
            files.sync_directory(folder.parent)
        return cls(files, folder)

    def keep(self, paths: Iterable[Path]) -> None:
        """Give files a second name here; what is no file is left out."""
        for path in paths:
            if path.is_file():
                link_or_copy(self._files, path, self.path, self._free_name(path.name))

    def write_lists(self, requeue: Mapping[str, LostRecords], lost: Iterable[str]) -> None:
        """Write the corpus of documents to capture again, and the ids of those whose tokens are lost too."""
        self._write_lines(REQUEUE_NAME, (document.line(identity) for identity, document in requeue.items()))
        self._write_lines(LOST_NAME, ({"document_id": identity} for identity in lost))

    def take_away(self, paths: list[Path]) -> None:
        """Take these names, all of one folder, away: kept files lose theirs, anything else moves here."""
        if not paths:
            return
        with clear_errors(paths[0].parent):
            for path in paths:
                if path.is_file() or not (path.exists() or path.is_symlink()):
                    self._files.unlink(path)
                else:
                    self._files.rename(path, self.path / self._free_name(path.name))
            self._files.sync_directory(self.path)
            self._files.sync_directory(paths[0].parent)

    def _free_name(self, name: str) -> str:
        """This name, or one with a number before it where this folder has it already, or will."""
        names_in_use = {REQUEUE_NAME, LOST_NAME, *(file.name for file in self.path.iterdir())}
        return next(
            free
            for free in (name, *(f"{n}-{name}" for n in range(1, len(names_in_use) + 2)))
            if free not in names_in_use
        )

    def _write_lines(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        def write(file: BinaryIO) -> str:
            for line in lines:
                file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            return name

        publish_file(self._files, self.path, write)


class Replacement:
    """The steps of one repair; each once, in the order in which they stand here.

    All raise CaskWriteError where the file system refuses; a second repair then goes on.
    """

    def __init__(self, files: FileOperations, diagnosis: Diagnosis, quarantine: Quarantine) -> None:
        """The quarantine holds a second name of every file that will lose its own."""
        self._files, self._diagnosis, self._quarantine = files, diagnosis, quarantine
        self._path = diagnosis.survey.cask.path
        self._stored = StoredDocuments(diagnosis)
        self._documents = _documents_of_sound(diagnosis, self._stored)
        self.entries = dict(diagnosis.sound)
        """The shards of the cask as it will be, by name."""

    def add_sound(self, salvaged: Mapping[str, Salvage]) -> list[str]:
        """Publish what is sound of damaged shards and not stored elsewhere; returns the new shards' names."""
        cask, published, names = self._diagnosis.survey.cask, set[bytes](), []
        for name, salvage in salvaged.items():
            fresh = {identity_of(row): row for row in salvage.sound if not self._stored.has(identity_of(row))}
            rows = [row for identity, row in fresh.items() if identity not in published]
            published |= fresh.keys()
            if rows:
                columns, carrier = gather_rows(rows, cask.layout), carrier_of(self._diagnosis.damaged[name])
                identity = cask.manifest.identity_digest()
                hints = cask.manifest.capture.hints
                entry = publish_shard_file(self._files, self._path, carrier, columns, cask.layout, identity, hints)
                if not self._is_blocked(entry):
                    publish_entry(self._files, self._path, entry, carrier)
                self.entries[entry.name] = entry
                lengths = np.diff(columns.offsets["token"]).astype(np.uint32)
                self._documents[entry.name] = ShardDocuments(ids=columns.document_ids, lengths=lengths)
                names.append(entry.name)
        for entry in self._diagnosis.rewrite_entries:
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
        # A shard that was renamed into place before an earlier repair died had no entry; by now it has one.
        named = {shard_path(self._path, entry).name for entry in self.entries.values()}
        named |= {name + ENTRY_SUFFIX for name in self.entries}
        named |= {entry.hints_name for entry in self.entries.values() if entry.hints is not None}
        unlisted = [self._path / SHARDS_NAME / name for name in strange if name not in named]
        leftovers = [shard for name in self._gone() for shard in files_named(self._path, name)]
        self._quarantine.take_away([*leftovers, *unlisted])

    def write_table(self) -> None:
        """Make the table of documents anew."""
        self._make_room(DOCUMENTS_NAME)
        write_document_table(self._files, self._path, self._documents)

    def _gone(self) -> list[str]:
        return sorted(self._diagnosis.to_remove - self.entries.keys())

    def _entry_path(self, name: str) -> Path:
        return self._path / SHARDS_NAME / (name + ENTRY_SUFFIX)

    def _is_blocked(self, entry: ShardEntry) -> bool:
        """A folder has the name of its file, and must stay until the index knows the shard."""
        return self._entry_path(entry.name).is_dir()

    def _make_room(self, name: str) -> None:
        if (self._path / name).is_dir():
            self._quarantine.take_away([self._path / name])


def fold(files: FileOperations, diagnosis: Diagnosis) -> None:
    """Make table and index anew in a cask in which nothing is damaged; raises CaskWriteError."""
    path = diagnosis.survey.cask.path
    write_document_table(files, path, _documents_of_sound(diagnosis, StoredDocuments(diagnosis)))
    write_index(files, path, diagnosis.sound.values())


def identity_of(row: Row) -> bytes:
    """A document's id, 32 bytes."""
    columns, number = row
    return bytes(columns.document_ids[number])


def _documents_of_sound(diagnosis: Diagnosis, stored: StoredDocuments) -> dict[str, ShardDocuments]:
    listed = {name: documents for name in diagnosis.sound if (documents := diagnosis.documents_of(name)) is not None}
    return listed | stored.loose
