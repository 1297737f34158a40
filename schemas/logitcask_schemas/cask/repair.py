"""Taking the damaged parts out of a cask: what is sound stays or is rewritten, what is not is listed for capture.

Nothing is modified in place, and a damaged file keeps its bytes: it gets a second name under `quarantine/` before it
loses its own, so a reader that has it mapped goes on reading what it read. The order of steps makes a crash at any
instant harmless, after which a second repair ends in the same state:

1. quarantine/<time>-<random>/ receives the damaged files and the two lists, durably.
2. The sound documents of damaged shards are published as new shards. Until step 4 they may be stored twice.
3. documents.bin and index.json are replaced by ones without the damaged shards.
4. The entries of the damaged shards, then their files, lose their names.
"""

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from logitcask_schemas.cask.carriers import CARRIERS, carrier_of, shard_path
from logitcask_schemas.cask.document_table import ShardDocuments, write_document_table
from logitcask_schemas.cask.files import FileOperations, LocalFiles, clear_errors, link_or_copy, publish_file
from logitcask_schemas.cask.gather import Row, gather_rows
from logitcask_schemas.cask.index import write_entry, write_index
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, QUARANTINE_NAME, SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.lock import writers_lock
from logitcask_schemas.cask.opening import open_shard
from logitcask_schemas.cask.publication import publish_shard
from logitcask_schemas.cask.rebuilding import rebuilt_entry
from logitcask_schemas.cask.salvage import Salvage, salvage_shard
from logitcask_schemas.cask.survey import Survey, survey
from logitcask_schemas.cask.sweep import sweep
from logitcask_schemas.cask.verify import ShardReport, sha256_of, verify_shard
from logitcask_schemas.manifest import ShardEntry

REQUEUE_NAME: Final = "requeue.jsonl"
LOST_NAME: Final = "lost.jsonl"
_LOCK_TIMEOUT_SECONDS: Final = 600.0


@dataclass(slots=True, kw_only=True)
class RepairReport:
    """What a repair found and did."""

    problems: list[str] = field(default_factory=list)
    """One sentence each, as `verify` says them."""
    quarantine: Path | None = None
    """Folder with the damaged files and lists; None where nothing was damaged."""
    damaged_shards: list[str] = field(default_factory=list)
    new_shards: list[str] = field(default_factory=list)
    """Shards of the sound documents of the damaged ones; one that was restored whole keeps its name."""
    kept_documents: int = 0
    """Sound documents of damaged shards."""
    requeue: list[tuple[str, list[int]]] = field(default_factory=list)
    """Documents to capture again: id (hex) and token ids."""
    lost: list[str] = field(default_factory=list)
    """Ids (hex) of documents whose token ids are lost as well: they must come from their source."""
    unnamed: int = 0
    """Further documents, of which not even the id is known."""


@dataclass(slots=True, kw_only=True)
class _Diagnosis:
    taken: Survey
    sound: dict[str, ShardEntry]
    damaged: dict[str, ShardEntry]
    rewrite_entries: list[ShardEntry]
    """Sound shards whose entry file is missing or damaged."""
    problems: list[str]

    @property
    def gone(self) -> set[str]:
        """Shards that leave the cask, unless one of them comes back whole."""
        return {*self.damaged, *self.taken.damaged_entries, *self.taken.foreign_entries} - self.sound.keys()


def repair_cask(
    path: Path,
    *,
    files: FileOperations | None = None,
    lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS,
    progress: Callable[[int], None] | None = None,
) -> RepairReport:
    """Verify a whole cask and take out what is damaged; writers wait meanwhile, readers do not notice.

    Args:
        path: The cask's folder.
        files: The file system, for tests.
        lock_timeout_seconds: How long to wait for a writer.
        progress: Called with the bytes of every verified shard.

    Raises:
        CaskNotFoundError, CaskCorruptionError: The manifest is missing or damaged: restore it from a copy.
        CaskLockedError: A writer did not finish in time.
        CaskWriteError: Disk full or broken; run again when there is room.
    """
    files = files or LocalFiles()
    with writers_lock(path, holder=f"repair-{secrets.token_hex(8)}", timeout_seconds=lock_timeout_seconds):
        found = _diagnose(survey(path), progress or (lambda _: None))
        report = RepairReport(problems=found.problems, damaged_shards=sorted(found.damaged))
        strange = [name for name in found.taken.strangers if not name.startswith(TEMP_PREFIX)]
        if not found.problems and not strange:
            sweep(files, path, found.sound.values())
            return report
        salvaged = _salvage(found)
        _describe(report, salvaged, found)
        report.quarantine = _quarantine(files, found, strange, report)
        _replace(files, found, salvaged, strange, report)
    return report


def _diagnose(taken: Survey, progress: Callable[[int], None]) -> _Diagnosis:
    found = _Diagnosis(taken=taken, sound={}, damaged={}, rewrite_entries=[], problems=list(taken.problems))

    def sort(report: ShardReport) -> None:
        found.problems += report.problems
        (found.damaged if report.shard_problems else found.sound)[report.entry.name] = report.entry
        if report.entry_problems and not report.shard_problems:
            found.rewrite_entries.append(report.entry)
        progress(report.entry.bytes)

    for entry in taken.cask.entries:
        sort(verify_shard(taken.cask, entry, taken.table))
    for name in taken.damaged_entries:
        if (rebuilt := rebuilt_entry(taken.cask, name)) is not None:
            sort(verify_shard(taken.cask, rebuilt, taken.table))
    return found


def _salvage(found: _Diagnosis) -> dict[str, Salvage]:
    """Per damaged shard; a shard whose content lies under another shard's name is read there."""
    cask, table = found.taken.cask, found.taken.table
    contents: dict[str, Path] = {}
    for entry in found.damaged.values():
        if (path := shard_path(cask.path, entry)).is_file():
            contents[sha256_of(path)] = path
    salvaged = {}
    for name, entry in found.damaged.items():
        known = table.shard(name).ids if table is not None and name in table else None
        path = contents.get(entry.sha256, shard_path(cask.path, entry))
        salvaged[name] = salvage_shard(path, entry, cask, known)
    return salvaged


def _describe(report: RepairReport, salvaged: dict[str, Salvage], found: _Diagnosis) -> None:
    stored = _StoredDocuments(found)
    for one in salvaged.values():
        report.kept_documents += len(one.sound)
        report.unnamed += one.unnamed
        report.requeue += [
            (identity.hex(), ids.tolist()) for identity, ids in one.token_ids.items() if not stored.has(identity)
        ]
        report.lost += [identity.hex() for identity in one.lost if not stored.has(identity)]
    table = found.taken.table
    for name in found.gone - found.damaged.keys() - {*found.taken.foreign_entries}:
        if table is not None and name in table:
            report.lost += [identity.tobytes().hex() for identity in table.shard(name).ids]


class _StoredDocuments:
    """Which documents the sound shards hold: after a repair that was cut short, some are there already."""

    def __init__(self, found: _Diagnosis) -> None:
        self._table, self._sound = found.taken.table, found.sound
        cask = found.taken.cask
        self.loose = {
            name: open_shard(cask.path, entry, cask.layout).documents
            for name, entry in found.sound.items()
            if self._table is None or name not in self._table or entry in found.rewrite_entries
        }
        self._loose_ids = {identity.tobytes() for documents in self.loose.values() for identity in documents.ids}

    def has(self, identity: bytes) -> bool:
        if identity in self._loose_ids:
            return True
        return self._table is not None and any(name in self._sound for name in self._table.shards_with(identity))


def _quarantine(files: FileOperations, found: _Diagnosis, strange: list[str], report: RepairReport) -> Path:
    path = found.taken.cask.path
    folder = path / QUARANTINE_NAME / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    with clear_errors(path):
        files.make_directory(folder.parent)
        files.sync_directory(path)
        files.make_directory(folder)
        files.sync_directory(folder.parent)
    entry_files = {*found.gone, *(entry.name for entry in found.rewrite_entries)}
    damaged = [
        *(shard for name in found.gone for shard in _files_named(path, name)),
        *(path / SHARDS_NAME / (name + ENTRY_SUFFIX) for name in entry_files),
        *(path / SHARDS_NAME / name for name in strange),
        *found.taken.damaged_files,
    ]
    for file in sorted(set(damaged)):
        if file.is_file():
            link_or_copy(files, file, folder, file.name)
    requeue = [{"custom_id": identity, "input_ids": ids} for identity, ids in report.requeue]
    _write_lines(files, folder, REQUEUE_NAME, requeue)
    _write_lines(files, folder, LOST_NAME, [{"document_id": identity} for identity in report.lost])
    return folder


def _replace(
    files: FileOperations, found: _Diagnosis, salvaged: dict[str, Salvage], strange: list[str], report: RepairReport
) -> None:
    cask, stored = found.taken.cask, _StoredDocuments(found)
    digest, entries = cask.manifest.identity_digest(), dict(found.sound)
    documents = dict(stored.loose)
    if found.taken.table is not None:
        documents |= {name: found.taken.table.shard(name) for name in found.sound if name in found.taken.table}
    published: set[bytes] = set()
    for name, one in salvaged.items():
        fresh = {_identity(row): row for row in one.sound if not stored.has(_identity(row))}
        rows = [row for identity, row in fresh.items() if identity not in published]
        published |= fresh.keys()
        if rows:
            columns = gather_rows(rows, cask.layout)
            carrier = carrier_of(found.damaged[name])
            entry = publish_shard(files, cask.path, carrier, columns, cask.layout, digest)
            entries[entry.name] = entry
            lengths = np.diff(columns.offsets["token"]).astype(np.uint32)
            documents[entry.name] = ShardDocuments(ids=columns.document_ids, lengths=lengths)
            report.new_shards.append(entry.name)
    for entry in found.rewrite_entries:
        write_entry(files, cask.path, entry)
    write_document_table(files, cask.path, documents)
    write_index(files, cask.path, entries.values())
    gone = found.gone - entries.keys()
    shards = cask.path / SHARDS_NAME
    _remove(files, shards, [shards / (name + ENTRY_SUFFIX) for name in sorted(gone)])
    leftovers = [shard for name in sorted(gone) for shard in _files_named(cask.path, name)]
    # A shard that was renamed into place before an earlier repair died was a stranger; by now it has its entry.
    named = {shard_path(cask.path, entry).name for entry in entries.values()}
    named |= {name + ENTRY_SUFFIX for name in entries}
    strangers = [shards / name for name in strange if name not in named]
    _remove(files, shards, [*leftovers, *strangers])
    sweep(files, cask.path, entries.values())


def _identity(row: Row) -> bytes:
    columns, number = row
    return bytes(columns.document_ids[number])


def _files_named(path: Path, name: str) -> list[Path]:
    """A shard's file, whatever its carrier."""
    candidates = (path / SHARDS_NAME / (name + carrier.suffix) for carrier in CARRIERS.values())
    return [file for file in candidates if file.is_file()]


def _remove(files: FileOperations, directory: Path, paths: list[Path]) -> None:
    with clear_errors(directory):
        for path in paths:
            files.unlink(path)
        files.sync_directory(directory)


def _write_lines(files: FileOperations, folder: Path, name: str, lines: Iterable[dict[str, Any]]) -> None:
    def write(file: BinaryIO) -> str:
        for line in lines:
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        return name

    publish_file(files, folder, write)
