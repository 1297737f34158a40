"""Taking the damaged parts out of a cask: what is sound stays or is rewritten, what is not is listed for capture.

Nothing is modified in place, and a damaged file keeps its bytes: it gets a second name under `quarantine/` before it
loses its own, so a reader that has it mapped goes on reading what it read. First quarantine/<time>-<random>/ receives
the damaged files and the two lists, durably; then `replacement` changes the cask, step by step. After a crash at any
instant readers see sound records only, and a second repair ends in the same state.

What is no file, such as a folder under a shard's name, moves to the quarantine when its turn comes.
"""

import secrets
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import HINTS_SUFFIX
from logitcask_schemas.cask.integrity.diagnosis import Diagnosis, StoredDocuments, diagnose, files_named
from logitcask_schemas.cask.integrity.hint_check import with_hints
from logitcask_schemas.cask.integrity.replacement import (
    LOST_NAME,
    REQUEUE_NAME,
    Quarantine,
    Replacement,
    fold,
    identity_of,
)
from logitcask_schemas.cask.integrity.salvage import LostRecords, Salvage, nothing_left, salvage_shard
from logitcask_schemas.cask.integrity.verify import sha256_of, survey
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.cask.publication import sweep
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.files import FileOperations, LocalFiles
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.capture_spec import CaptureSpec, default_tail_max

_OPTIONS: Final = {"logprob_codec": "--codec", "pinned_ids": "--pin", "temperatures": "--temperature"}
"""Of `logitcask submit`, where they are not named after the field."""


def submit_command(cask: Path, requeue: Path) -> str | None:
    """A line for a shell; None for a cask that was imported, which no service can capture.

    The service's cask root is taken to be the folder that holds the cask. Documents that no longer fit the service's
    teacher are left out: cut short, they would be other documents.

    Args:
        cask: The repaired cask.
        requeue: The list of its documents to capture again.

    Raises:
        CaskNotFoundError, CaskCorruptionError: The cask does not open.
    """
    opened = Cask.open(cask)
    if opened.manifest.capture.imported:
        return None
    words = ["logitcask", "submit", str(requeue), "--cask", cask.resolve().name, "--overflow", "skip", "--wait"]
    spec = opened.manifest.capture
    usual = {**CaptureSpec().model_dump(mode="json"), "tail_max": default_tail_max(spec.mode, spec.tau)}
    for name, value in spec.canonical().items():
        if name == "hints" and spec.hints is not None:
            words += ["--hints", spec.hints.notation]
        elif value != usual.get(name):
            words += _option(_OPTIONS.get(name, "--" + name.replace("_", "-")), value)
    carriers = {entry.carrier for entry in opened.entries}
    if len(carriers) == 1 and carriers != {"arrow"}:
        words += ["--carrier", *carriers]
    return shlex.join(words)


def _option(option: str, value: object) -> list[str]:
    if value is True:
        return [option]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [word for item in values for word in (option, str(item))]


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
    stale_table: bool = False
    """Whether the table of documents still listed shards that were gone, or lacked some, as an earlier repair was cut
    short: its lists lie in another folder of the quarantine. Or the table was missing. It is made anew."""
    new_shards: list[str] = field(default_factory=list)
    """Shards of the sound documents of the damaged ones; one that was restored whole keeps its name."""
    without_hints: list[str] = field(default_factory=list)
    """Shards whose records are sound and whose hints were not; they have none now."""
    kept_documents: int = 0
    """Sound documents of damaged shards."""
    requeue: dict[str, LostRecords] = field(default_factory=dict)
    """Documents to capture again, by id (hex)."""
    lost: list[str] = field(default_factory=list)
    """Ids (hex) of documents whose token ids are lost as well: they must come from their source."""
    unnamed: int = 0
    """Further documents, of which not even the id is known; one per shard whose number of documents is lost as well."""


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
        diagnosis = diagnose(survey(LocalFolder(folder=path)), progress or (lambda _: None))
        report = RepairReport(
            problems=diagnosis.problems,
            damaged_shards=sorted({*diagnosis.damaged, *diagnosis.undescribed}),
            stale_table=diagnosis.table_is_stale,
            without_hints=sorted(diagnosis.without_hints),
        )
        strange = [name for name in diagnosis.survey.unlisted_files if not name.startswith(TEMP_PREFIX)]
        if diagnosis.problems or strange:
            salvaged = _salvage(diagnosis)
            _describe(report, salvaged, diagnosis)
            quarantine = _quarantine(files, diagnosis, strange, report)
            report.quarantine = quarantine.path
            replacement = Replacement(files, diagnosis, quarantine)
            report.new_shards = replacement.add_sound(salvaged)
            replacement.take_entries_away()
            replacement.take_files_away([*strange, *(name + HINTS_SUFFIX for name in diagnosis.without_hints)])
            replacement.write_table()
            sweep(files, path, replacement.entries.values())
        else:
            if not diagnosis.index_is_exact:  # an earlier repair was cut short, or a writer has not closed
                fold(files, diagnosis)
            sweep(files, path, diagnosis.sound.values())
    return report


def _salvage(diagnosis: Diagnosis) -> dict[str, Salvage]:
    """Per damaged shard; a shard whose content lies under another shard's name is read there."""
    cask = diagnosis.survey.cask
    contents: dict[str, Path] = {}
    sizes = {entry.bytes for entry in diagnosis.damaged.values()}
    for entry in diagnosis.damaged.values():
        path = shard_path(cask.path, entry)
        if path.is_file() and path.stat().st_size in sizes:
            # What cannot be read to its end is nobody's content; what the disk gives back is read piece by piece.
            with suppress(CaskCorruptionError):
                contents[sha256_of(path)] = path

    def salvage(entry: ShardEntry) -> Salvage:
        path = contents.get(entry.sha256, shard_path(cask.path, entry))
        documents = diagnosis.documents_of(entry.name)
        salvage = salvage_shard(path, entry, cask, None if documents is None else documents.ids)
        salvage.sound = with_hints(salvage.sound, cask, entry)
        return salvage

    salvaged = {name: salvage(entry) for name, entry in diagnosis.damaged.items()}
    for name in diagnosis.undescribed:
        documents = diagnosis.documents_of(name)
        salvaged[name] = nothing_left(None if documents is None else documents.ids, 1)
    return salvaged


def _describe(report: RepairReport, salvaged: dict[str, Salvage], diagnosis: Diagnosis) -> None:
    stored = StoredDocuments(diagnosis)
    kept = {identity_of(row) for salvage in salvaged.values() for row in salvage.sound}
    requeue: dict[bytes, LostRecords] = {}
    lost: dict[bytes, None] = {}
    for salvage in salvaged.values():
        report.kept_documents += len(salvage.sound)
        report.unnamed += salvage.unnamed
        requeue |= salvage.to_capture
        lost |= dict.fromkeys(salvage.lost)
    for identity, document in requeue.items():
        if identity not in kept and not stored.has(identity):
            report.requeue[identity.hex()] = document
    for identity in lost:
        if identity not in kept and identity not in requeue and not stored.has(identity):
            report.lost.append(identity.hex())


def _quarantine(files: FileOperations, diagnosis: Diagnosis, strange: list[str], report: RepairReport) -> Quarantine:
    cask = diagnosis.survey.cask.path
    quarantine = Quarantine.create(files, cask)
    entry_files = {*diagnosis.to_remove, *(entry.name for entry in diagnosis.rewrite_entries)}
    damaged = [
        *(shard for name in diagnosis.to_remove for shard in files_named(cask, name)),
        *(cask / SHARDS_NAME / (name + ENTRY_SUFFIX) for name in entry_files),
        *(cask / SHARDS_NAME / name for name in strange),
        *(file for name in diagnosis.without_hints if (file := cask / SHARDS_NAME / (name + HINTS_SUFFIX)).is_file()),
        *diagnosis.survey.damaged_files,
    ]
    quarantine.keep(sorted(set(damaged)))
    quarantine.write_lists(report.requeue, report.lost)
    return quarantine
