"""What a cask's folder holds, taken stock of without believing it: the first step of verify and repair."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from logitcask_schemas.cask.carriers import CARRIERS, shard_path
from logitcask_schemas.cask.document_table import DOCUMENTS_NAME, DocumentTable
from logitcask_schemas.cask.index import entry_names, read_entry, read_index, read_manifest
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, INDEX_NAME, SHARDS_NAME
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.errors import CaskError, CaskNotFoundError, CaskReadError
from logitcask_schemas.manifest import ShardEntry


@dataclass(kw_only=True)
class Survey:
    """A cask with as many of its entries as can be read; what is wrong outside the shards is in `problems`."""

    cask: Cask
    """Of all entries that can be read and are the cask's; opens although other parts are damaged."""
    table: DocumentTable | None
    """None where there is none, or a damaged one."""
    indexed: frozenset[str] = frozenset()
    """Names of the cask's shards that the index repeats; none where it is damaged."""
    problems: list[str] = field(default_factory=list)
    """One sentence each."""
    damaged_files: list[Path] = field(default_factory=list)
    """Index or table where they are damaged; the next compaction replaces them."""
    damaged_entries: list[str] = field(default_factory=list)
    """Names of shards whose entry file cannot be read and that no index knows."""
    foreign_entries: list[str] = field(default_factory=list)
    """Names of shards whose entry is another cask's."""
    strangers: list[str] = field(default_factory=list)
    """Names in the folder of shards that belong to no entry: unfinished publications, or not the cask's at all."""


def survey(path: Path) -> Survey:
    """Take stock of a cask's folder; opens no shard.

    Raises:
        CaskNotFoundError, CaskCorruptionError: There is no manifest or no folder of shards, or the manifest is damaged:
            without it nothing can be said of the rest.
        CaskReadError: The operating system refuses to read what may be sound.
    """
    manifest, problems, damaged_files = read_manifest(path), list[str](), list[Path]()
    names = entry_names(path)
    try:
        entries = read_index(path)
    except CaskReadError:
        raise
    except CaskError as error:
        problems.append(str(error))
        damaged_files.append(path / INDEX_NAME)
        entries = {}
    indexed, damaged_entries, foreign = {*entries}, [], []
    for name in names:
        if name not in entries:
            try:
                entries[name] = read_entry(path, name)
            except CaskReadError:
                raise
            except CaskNotFoundError:
                continue  # taken away since the listing: only a repair does that, of what is not the cask's any more
            except CaskError as error:
                problems.append(str(error))
                damaged_entries.append(name)
    identity = manifest.identity_digest()
    for name, entry in list(entries.items()):
        if entry.identity != identity:
            problems.append(f"shard {name}: foreign: its entry's identity is {entry.identity}, this cask's {identity}")
            foreign.append(name)
            del entries[name]
    table = None
    try:
        table = DocumentTable.open(path, doubted=True)
        if table is not None:
            table.verify()
    except CaskReadError:
        raise
    except CaskError as error:
        problems.append(str(error))
        damaged_files.append(path / DOCUMENTS_NAME)
        table = None
    return Survey(
        cask=Cask(path, manifest, sorted(entries.values(), key=lambda entry: entry.name)),
        table=table,
        indexed=frozenset(indexed.difference(foreign)),
        problems=problems,
        damaged_files=damaged_files,
        damaged_entries=damaged_entries,
        foreign_entries=foreign,
        strangers=files_of_no_shard(path, entries.values(), {*names} - entries.keys()),
    )


def files_of_no_shard(path: Path, entries: Iterable[ShardEntry], damaged: Iterable[str]) -> list[str]:
    """Names in the folder of shards that belong to no shard; see `names_of_no_shard`."""
    return names_of_no_shard((file.name for file in (path / SHARDS_NAME).iterdir()), entries, damaged)


def names_of_no_shard(names: Iterable[str], entries: Iterable[ShardEntry], damaged: Iterable[str]) -> list[str]:
    """Which of these names belong to no shard, sorted.

    Args:
        names: What lies among the shards.
        entries: All shards whose entry can be read.
        damaged: Names of shards whose entry cannot be read: then any carrier's file may be the shard's.
    """
    suffixes = [carrier.suffix for carrier in CARRIERS.values()]
    belonging = {f"{name}{suffix}" for name in damaged for suffix in (*suffixes, ENTRY_SUFFIX)}
    for entry in entries:
        belonging |= {shard_path(Path(), entry).name, entry.name + ENTRY_SUFFIX}
    return sorted({*names} - belonging)
