"""What is sound, damaged and doubtful in a cask, as a repair needs to know it before it changes anything."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, ShardDocuments
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.format.manifest import ShardEntry
from logitcask_schemas.cask.integrity.rebuilding import guessed_entries, rebuilt_entry
from logitcask_schemas.cask.integrity.verify import ShardReport, Survey, verify_shard
from logitcask_schemas.cask.opening import open_documents


@dataclass(slots=True, kw_only=True)
class Diagnosis:
    """Every shard of a cask, sorted."""

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

    @property
    def stale_table(self) -> bool:
        """Whether the table lists shards that are gone, or lacks one of the index.

        A repair that was cut short leaves it so; one that is missing was never made anew. A damaged one is a problem.
        """
        if self.taken.cask.path / DOCUMENTS_NAME in self.taken.damaged_files:
            return False
        listed = set() if self.taken.table is None else {*self.taken.table.shard_names()}
        return not self.taken.indexed <= listed <= self.sound.keys() | self.gone

    @property
    def folded(self) -> bool:
        """Whether index and table list exactly the sound shards."""
        table = self.taken.table
        return (
            self.taken.indexed == self.sound.keys() and table is not None and table.covers_exactly(sorted(self.sound))
        )

    def known(self, name: str) -> ShardDocuments | None:
        """A shard's documents, where the table tells."""
        table = self.taken.table
        return table.shard(name) if table is not None and name in table else None


def diagnose(taken: Survey, progress: Callable[[int], None]) -> Diagnosis:
    """Verify every shard of a cask.

    Args:
        taken: The cask's folder.
        progress: Called with the bytes of every verified shard.

    Raises:
        CaskReadError: The operating system refuses to read what may be sound.
    """
    found = Diagnosis(taken=taken, sound={}, damaged={}, doubtful={}, rewrite_entries=[], problems=list(taken.problems))

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


class StoredDocuments:
    """Which documents the sound shards hold: after a repair that was cut short, some are there already."""

    def __init__(self, found: Diagnosis) -> None:
        """Open the sound shards that the table does not know."""
        self._table, self._sound = found.taken.table, found.sound
        cask = found.taken.cask
        self.loose = {
            name: open_documents(cask.path, entry, cask.layout)
            for name, entry in found.sound.items()
            if self._table is None or name not in self._table or entry in found.rewrite_entries
        }
        """Of the sound shards that the table does not know, or says something else of."""
        self._loose_ids = {identity.tobytes() for documents in self.loose.values() for identity in documents.ids}

    def has(self, identity: bytes) -> bool:
        """Whether a sound shard holds the document of this 32-byte id."""
        if identity in self._loose_ids:
            return True
        return self._table is not None and any(name in self._sound for name in self._table.shards_with(identity))


def files_named(path: Path, name: str) -> list[Path]:
    """A shard's file, whatever its carrier, or whatever else has its name."""
    candidates = (path / SHARDS_NAME / (name + carrier.suffix) for carrier in CARRIERS.values())
    return [file for file in candidates if file.exists() or file.is_symlink()]
