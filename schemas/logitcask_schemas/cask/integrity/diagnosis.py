"""What is sound and what is damaged in a cask, as a repair needs to know it before it changes anything.

A sound shard whose entry file is damaged, and which no index repeats, proves itself: its name is the hash of its
content in Arrow form, and its content gives its file. Where such a shard is damaged as well, its documents are lost.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, ShardDocuments
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import HINTS_SUFFIX
from logitcask_schemas.cask.integrity.hint_check import rebuilt_hints
from logitcask_schemas.cask.integrity.verify import ShardReport, Survey, note_other_widths, verify_shard
from logitcask_schemas.cask.opening import open_columns, open_documents
from logitcask_schemas.cask.publication import write_shard
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.files import read_around_damage, read_whole, size_of
from logitcask_schemas.errors import CaskError, CaskReadError

_EDGE_BYTES: Final = 32
"""The first ones and the last ones, neither of which are all zero in any carrier."""


@dataclass(slots=True, kw_only=True)
class Diagnosis:
    """Every shard of a cask, sorted."""

    survey: Survey
    sound: dict[str, ShardEntry]
    damaged: dict[str, ShardEntry]
    undescribed: set[str]
    """Names of shards that are damaged together with their entries."""
    rewrite_entries: list[ShardEntry]
    """Sound shards whose entry file is missing or damaged."""
    problems: list[str]
    without_hints: list[str]
    """Names of sound shards whose hints are not: they stay without them."""

    @property
    def to_remove(self) -> set[str]:
        """Shards the repair removes, except those it can restore whole."""
        return {*self.damaged, *self.undescribed, *self.survey.foreign_entries} - self.sound.keys()

    @property
    def table_is_stale(self) -> bool:
        """Whether the table lists shards that are gone, or lacks one of the index.

        A repair that was cut short leaves it so; one that is missing was never made anew. A damaged one is a problem.
        """
        if self.survey.cask.path / DOCUMENTS_NAME in self.survey.damaged_files:
            return False
        listed = set() if self.survey.table is None else {*self.survey.table.shard_names()}
        return not self.survey.indexed <= listed <= self.sound.keys() | self.to_remove

    @property
    def index_is_exact(self) -> bool:
        """Whether index and table list exactly the sound shards."""
        table = self.survey.table
        return (
            self.survey.indexed == self.sound.keys() and table is not None and table.covers_exactly(sorted(self.sound))
        )

    def documents_of(self, name: str) -> ShardDocuments | None:
        """A shard's documents, where the table tells."""
        table = self.survey.table
        return table.shard(name) if table is not None and name in table else None


def diagnose(survey: Survey, progress: Callable[[int], None]) -> Diagnosis:
    """Verify every shard of a cask.

    Args:
        survey: Of the cask's folder.
        progress: Called with the bytes of every verified shard.

    Raises:
        CaskReadError: The operating system refuses to read what may be sound.
    """
    diagnosis = Diagnosis(
        survey=survey,
        sound={},
        damaged={},
        undescribed=set(),
        rewrite_entries=[],
        problems=list(survey.problems),
        without_hints=[],
    )

    reports = list[ShardReport]()

    def verified(entry: ShardEntry) -> ShardReport:
        report = verify_shard(survey.cask, entry, survey.table)
        progress(entry.bytes)
        return report

    def sort(report: ShardReport) -> None:
        diagnosis.problems += report.problems
        entry = report.entry
        if report.hint_problems:
            entry = entry.model_copy(update={"hints": None})
            diagnosis.without_hints.append(entry.name)
        (diagnosis.damaged if report.shard_problems else diagnosis.sound)[entry.name] = entry
        if (report.entry_problems or report.hint_problems) and not report.shard_problems:
            diagnosis.rewrite_entries.append(entry)

    reports += [verified(entry) for entry in survey.cask.entries]
    for name in survey.damaged_entries:
        if (rebuilt := rebuilt_entry(survey.cask, name)) is not None:
            reports.append(verified(rebuilt))
        else:
            diagnosis.undescribed.add(name)
            diagnosis.problems.append(
                f"shard {name}: its entry is damaged, and no file of it is sound: its documents are lost"
            )
    note_other_widths(reports)
    for report in reports:
        sort(report)
    return diagnosis


def rebuilt_entry(cask: Cask, name: str) -> ShardEntry | None:
    """What the entry of a shard must have said; None where the shard does not prove itself, to the last bit.

    Raises:
        CaskReadError: The operating system refuses, which says nothing about the shard.
    """
    identity = cask.manifest.identity_digest()
    for carrier, path in _files_of(cask, name):
        try:
            digest = hashlib.sha256()
            content = read_whole(path, _max_bytes(path), digest.update).data
            columns = open_columns(path, carrier, cask.layout, identity, content)
            described = write_shard(carrier, columns, cask.layout, identity, io.BytesIO())
        except CaskReadError:
            raise
        except (CaskError, FileNotFoundError):
            continue
        # Another version of Arrow may frame the same columns in another way; the name then proves the file by itself.
        sha256 = digest.hexdigest()
        proved = carrier.name == ArrowCarrier.name and sha256.startswith(name)
        if proved or (described.name, described.sha256) == (name, sha256):
            proved_entry = described.model_copy(update={"name": name, "sha256": sha256, "bytes": len(content)})
            return rebuilt_hints(cask, proved_entry)
    return None


def _files_of(cask: Cask, name: str) -> list[tuple[Carrier, Path]]:
    """The files that have a shard's name, whatever their carrier."""
    files = [(carrier, cask.path / SHARDS_NAME / (name + carrier.suffix)) for carrier in CARRIERS.values()]
    return [(carrier, path) for carrier, path in files if path.is_file()]


def _max_bytes(path: Path) -> int:
    """Bytes to read of a file that may be a shard: all, or none where it is full of holes, whatever their size.

    Raises:
        FileNotFoundError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    size = size_of(path)
    ends = [read_around_damage(path, _EDGE_BYTES, start=start) for start in (0, max(size - _EDGE_BYTES, 0))]
    return size if any(end.any() for end in ends) else 0


class StoredDocuments:
    """Which documents the sound shards hold: after a repair that was cut short, some are there already."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        """Open the sound shards that the table does not know."""
        self._table, self._sound = diagnosis.survey.table, diagnosis.sound
        cask = diagnosis.survey.cask
        self.loose = {
            name: open_documents(cask.path, entry, cask.layout)
            for name, entry in diagnosis.sound.items()
            if self._table is None or name not in self._table or entry in diagnosis.rewrite_entries
        }
        """Of the sound shards that the table does not know, or says something else of."""
        self._loose_ids = {identity.tobytes() for documents in self.loose.values() for identity in documents.ids}

    def has(self, identity: bytes) -> bool:
        """Whether a sound shard holds the document of this 32-byte id."""
        if identity in self._loose_ids:
            return True
        return self._table is not None and any(name in self._sound for name in self._table.shards_with(identity))


def files_named(path: Path, name: str) -> list[Path]:
    """A shard's file, whatever its carrier, and that of its hints, or whatever else has its name."""
    suffixes = (*(carrier.suffix for carrier in CARRIERS.values()), HINTS_SUFFIX)
    candidates = (path / SHARDS_NAME / (name + suffix) for suffix in suffixes)
    return [file for file in candidates if file.exists() or file.is_symlink()]
