"""Taking the damaged parts out of a cask: what is sound stays or is rewritten, what is not is listed for capture.

Nothing is modified in place, and a damaged file keeps its bytes: it gets a second name under `quarantine/` before it
loses its own, so a reader that has it mapped goes on reading what it read. The order of steps makes a crash at any
instant harmless, after which a second repair ends in the same state:

1. quarantine/<time>-<random>/ receives the damaged files and the two lists, durably.
2. The sound documents of damaged shards are published as new shards. Until step 4 they may be stored twice.
3. documents.bin and index.json are replaced by ones without the damaged shards.
4. The entries of the damaged shards, then their files, lose their names.

What is no file, such as a folder under a shard's name, moves to the quarantine when its turn comes.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from logitcask_schemas.cask.carriers import CARRIERS, carrier_of, shard_path
from logitcask_schemas.cask.document_table import DOCUMENTS_NAME, ShardDocuments, write_document_table
from logitcask_schemas.cask.files import FileOperations, LocalFiles
from logitcask_schemas.cask.gather import Row, gather_rows
from logitcask_schemas.cask.index import write_entry, write_index
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, INDEX_NAME, SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.lock import writers_lock
from logitcask_schemas.cask.opening import open_shard
from logitcask_schemas.cask.publication import publish_entry, publish_shard_file
from logitcask_schemas.cask.quarantine import LOST_NAME, REQUEUE_NAME, Quarantine
from logitcask_schemas.cask.rebuilding import guessed_entries, rebuilt_entry
from logitcask_schemas.cask.salvage import Salvage, nothing_left, salvage_shard
from logitcask_schemas.cask.survey import Survey, survey
from logitcask_schemas.cask.sweep import sweep
from logitcask_schemas.cask.verify import ShardReport, sha256_of, verify_shard
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.manifest import ShardEntry

__all__ = ["LOST_NAME", "REQUEUE_NAME", "RepairReport", "repair_cask"]

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
    """Further documents, of which not even the id is known; one per shard whose number of documents is lost as well."""


@dataclass(slots=True, kw_only=True)
class _Diagnosis:
    taken: Survey
    sound: dict[str, ShardEntry]
    damaged: dict[str, ShardEntry]
    doubtful: dict[str, list[ShardEntry]]
    """Shards that are damaged together with their entries, and what these may have said."""
    rewrite_entries: list[ShardEntry]
    """Sound shards whose entry file is missing or damaged."""
    problems: list[str]

    @property
    def gone(self) -> set[str]:
        """Shards that leave the cask, unless one of them comes back whole."""
        return {*self.damaged, *self.doubtful, *self.taken.foreign_entries} - self.sound.keys()

    def known(self, name: str) -> ShardDocuments | None:
        """A shard's documents, where the table tells."""
        table = self.taken.table
        return table.shard(name) if table is not None and name in table else None


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
        report = RepairReport(problems=found.problems, damaged_shards=sorted({*found.damaged, *found.doubtful}))
        strange = [name for name in found.taken.strangers if not name.startswith(TEMP_PREFIX)]
        if not found.problems and not strange:
            sweep(files, path, found.sound.values())
            return report
        salvaged = _salvage(found)
        _describe(report, salvaged, found)
        quarantine = _quarantine(files, found, strange, report)
        report.quarantine = quarantine.path
        _replace(files, found, salvaged, strange, quarantine, report)
    return report


def _diagnose(taken: Survey, progress: Callable[[int], None]) -> _Diagnosis:
    found = _Diagnosis(
        taken=taken, sound={}, damaged={}, doubtful={}, rewrite_entries=[], problems=list(taken.problems)
    )

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
        if name not in found.sound:
            found.doubtful[name] = guessed_entries(taken.cask, name, found.known(name))
            if not found.doubtful[name]:
                found.problems.append(f"shard {name}: neither its file nor its entry tell what it held")
    return found


def _salvage(found: _Diagnosis) -> dict[str, Salvage]:
    """Per damaged shard; a shard whose content lies under another shard's name is read there."""
    cask = found.taken.cask
    contents: dict[str, Path] = {}
    broken: set[Path] = set()
    sizes = {entry.bytes for entry in found.damaged.values()}
    for entry in found.damaged.values():
        path = shard_path(cask.path, entry)
        if path.is_file() and path.stat().st_size in sizes:
            try:
                contents[sha256_of(path)] = path
            except CaskCorruptionError:
                broken.add(path)  # the disk; what it gives back is read piece by piece

    def salvage(entry: ShardEntry) -> Salvage:
        path, known = contents.get(entry.sha256, shard_path(cask.path, entry)), found.known(entry.name)
        return salvage_shard(path, entry, cask, None if known is None else known.ids, mapped=path not in broken)

    salvaged = {name: salvage(entry) for name, entry in found.damaged.items()}
    for name, guesses in found.doubtful.items():
        known = found.known(name)
        tried = [(salvage(guess), guess) for guess in guesses if known is None or guess.documents == len(known.ids)]
        if tried:
            # Of two that save as much, the first, which is the likelier one.
            salvaged[name], found.damaged[name] = max(tried, key=lambda one: (len(one[0].sound), len(one[0].token_ids)))
        else:
            salvaged[name] = nothing_left(None if known is None else known.ids, 1)
    return salvaged


def _describe(report: RepairReport, salvaged: dict[str, Salvage], found: _Diagnosis) -> None:
    stored = _StoredDocuments(found)
    kept = {_identity(row) for one in salvaged.values() for row in one.sound}
    requeue: dict[bytes, list[int]] = {}
    lost: dict[bytes, None] = {}
    for one in salvaged.values():
        report.kept_documents += len(one.sound)
        report.unnamed += one.unnamed
        requeue |= {identity: ids.tolist() for identity, ids in one.token_ids.items()}
        lost |= dict.fromkeys(one.lost)
    for identity, ids in requeue.items():
        if identity not in kept and not stored.has(identity):
            report.requeue.append((identity.hex(), ids))
    for identity in lost:
        if identity not in kept and identity not in requeue and not stored.has(identity):
            report.lost.append(identity.hex())


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


def _quarantine(files: FileOperations, found: _Diagnosis, strange: list[str], report: RepairReport) -> Quarantine:
    cask = found.taken.cask.path
    quarantine = Quarantine.create(files, cask)
    entry_files = {*found.gone, *(entry.name for entry in found.rewrite_entries)}
    damaged = [
        *(shard for name in found.gone for shard in _files_named(cask, name)),
        *(cask / SHARDS_NAME / (name + ENTRY_SUFFIX) for name in entry_files),
        *(cask / SHARDS_NAME / name for name in strange),
        *found.taken.damaged_files,
    ]
    quarantine.keep(sorted(set(damaged)))
    quarantine.write_lists(report.requeue, report.lost)
    return quarantine


def _replace(
    files: FileOperations,
    found: _Diagnosis,
    salvaged: dict[str, Salvage],
    strange: list[str],
    quarantine: Quarantine,
    report: RepairReport,
) -> None:
    cask, stored = found.taken.cask, _StoredDocuments(found)
    digest, entries = cask.manifest.identity_digest(), dict(found.sound)
    documents = {name: known for name in found.sound if (known := found.known(name)) is not None} | stored.loose
    published: set[bytes] = set()

    def entry_path(name: str) -> Path:
        return cask.path / SHARDS_NAME / (name + ENTRY_SUFFIX)

    def blocked(entry: ShardEntry) -> bool:
        """A folder has the name of its file, and must stay until the index knows the shard."""
        return entry_path(entry.name).is_dir()

    for name, one in salvaged.items():
        fresh = {_identity(row): row for row in one.sound if not stored.has(_identity(row))}
        rows = [row for identity, row in fresh.items() if identity not in published]
        published |= fresh.keys()
        if rows:
            columns = gather_rows(rows, cask.layout)
            carrier = carrier_of(found.damaged[name])
            entry = publish_shard_file(files, cask.path, carrier, columns, cask.layout, digest)
            if not blocked(entry):
                publish_entry(files, cask.path, entry, carrier)
            entries[entry.name] = entry
            lengths = np.diff(columns.offsets["token"]).astype(np.uint32)
            documents[entry.name] = ShardDocuments(ids=columns.document_ids, lengths=lengths)
            report.new_shards.append(entry.name)
    for entry in found.rewrite_entries:
        if not blocked(entry):
            write_entry(files, cask.path, entry)
    quarantine.take_away([path for path in (cask.path / DOCUMENTS_NAME, cask.path / INDEX_NAME) if path.is_dir()])
    write_document_table(files, cask.path, documents)
    write_index(files, cask.path, entries.values())
    for entry in filter(blocked, list(entries.values())):
        quarantine.take_away([entry_path(entry.name)])
        write_entry(files, cask.path, entry)
    gone = found.gone - entries.keys()
    shards = cask.path / SHARDS_NAME
    quarantine.take_away([entry_path(name) for name in sorted(gone)])
    leftovers = [shard for name in sorted(gone) for shard in _files_named(cask.path, name)]
    # A shard that was renamed into place before an earlier repair died was a stranger; by now it has its entry.
    named = {shard_path(cask.path, entry).name for entry in entries.values()}
    named |= {name + ENTRY_SUFFIX for name in entries}
    strangers = [shards / name for name in strange if name not in named]
    quarantine.take_away([*leftovers, *strangers])
    sweep(files, cask.path, entries.values())


def _identity(row: Row) -> bytes:
    columns, number = row
    return bytes(columns.document_ids[number])


def _files_named(path: Path, name: str) -> list[Path]:
    """A shard's file, whatever its carrier, or whatever else has its name."""
    candidates = (path / SHARDS_NAME / (name + carrier.suffix) for carrier in CARRIERS.values())
    return [file for file in candidates if file.exists() or file.is_symlink()]
