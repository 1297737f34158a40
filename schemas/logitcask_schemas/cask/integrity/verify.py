"""Proving a cask: every byte against its shard's SHA-256, every document against the format's rules."""

import hashlib
import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.registry import CARRIERS, shard_path
from logitcask_schemas.cask.directory import LocalDirectory, entry_file, entry_names, read_entry, read_manifest
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME
from logitcask_schemas.cask.format.manifest import parse_index
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import HINTS_SUFFIX
from logitcask_schemas.cask.integrity.hint_check import hint_problems
from logitcask_schemas.cask.integrity.whole_shard import is_sound
from logitcask_schemas.cask.location import Location
from logitcask_schemas.cask.opening import read_shard
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import open_regular, unreadable
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    CaskNotFoundError,
    CaskReadError,
    InvalidRecordError,
)


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
    unlisted_files: list[str] = field(default_factory=list)
    """Names among the shards that belong to no entry."""


def survey(location: Location) -> Survey:
    """List a cask and read what can be read of its small files; opens no shard. Damage is noted, not raised.

    Raises:
        CaskNotFoundError, CaskCorruptionError: There is no manifest or no folder of shards, or the manifest is damaged:
            without it nothing can be said of the rest.
        CaskReadError: The operating system refuses to read what may be sound.
        CaskError: A store does not answer.
    """
    directory = location.directory
    manifest, problems, damaged_files = read_manifest(directory), dict[str, str](), list[Path]()
    listing = location.read_listing(lambda name, error: problems.update({name: str(error)}))
    if INDEX_NAME in problems:
        damaged_files.append(location.folder / INDEX_NAME)
    entries, foreign = listing.indexed | listing.loose, []
    identity = manifest.identity_digest()
    for name, entry in list(entries.items()):
        if entry.identity != identity:
            problems[name] = f"shard {name}: foreign: its entry's identity is {entry.identity}, this cask's {identity}"
            foreign.append(name)
            del entries[name]
    damaged_entries = [name for name in entry_names(listing.file_names) if entry_file(name) in problems]
    table = None
    try:
        table = location.read_table(doubted=True)
        if table is not None:
            table.verify()
    except CaskCorruptionError as error:
        problems[DOCUMENTS_NAME] = str(error)
        damaged_files.append(location.folder / DOCUMENTS_NAME)
        table = None
    return Survey(
        cask=Cask(location, manifest, sorted(entries.values(), key=lambda entry: entry.name)),
        table=table,
        indexed=frozenset(listing.indexed.keys() - {*foreign}),
        problems=list(problems.values()),
        damaged_files=damaged_files,
        damaged_entries=damaged_entries,
        foreign_entries=foreign,
        unlisted_files=unlisted_files(listing.file_names, entries.values(), damaged_entries),
    )


def unlisted_files(names: Iterable[str], entries: Iterable[ShardEntry], damaged: Iterable[str]) -> list[str]:
    """Which of these files belong to no shard, sorted: unfinished publications, or not the cask's at all.

    Args:
        names: What lies among the shards.
        entries: All shards whose entry can be read.
        damaged: Names of shards whose entry cannot be read: then any carrier's file may be the shard's.
    """
    suffixes = [carrier.suffix for carrier in CARRIERS.values()]
    belonging = {f"{name}{suffix}" for name in damaged for suffix in (*suffixes, ENTRY_SUFFIX, HINTS_SUFFIX)}
    for entry in entries:
        belonging |= {shard_path(Path(), entry).name, entry.name + ENTRY_SUFFIX}
        if entry.hints is not None:
            belonging.add(entry.hints_name)
    return sorted({*names} - belonging)


MAX_BYTES_AT_ONCE: Final = 1 << 30
"""Of shards that are verified at the same time, each of which is read into memory; a larger one is verified alone."""
_AT_ONCE: Final = 2
_BLOCK: Final = 1 << 20


@dataclass(slots=True, kw_only=True)
class ShardReport:
    """What `verify` found about one shard."""

    entry: ShardEntry
    shard_problems: list[str] = field(default_factory=list)
    """One sentence each; empty for a sound shard."""
    entry_problems: list[str] = field(default_factory=list)
    """About what is written of the shard elsewhere; the shard itself may be sound."""
    hint_problems: list[str] = field(default_factory=list)
    """About the file of hints beside it; the records may be sound."""
    hint_width: int | None = None
    """Numbers of one of the teacher's vectors; None where there are no sound hints."""
    lost_documents: list[str] = field(default_factory=list)
    """Ids (hex) of documents that cannot be trusted, as far as they can be named."""
    unnamed_documents: int = 0
    """Further documents, which neither shard nor table of documents names any more."""
    removed: bool = False
    """Whether it was taken out of the cask in the meantime, as a repair does: no problem, and nothing to verify."""

    @property
    def problems(self) -> list[str]:
        """All of them."""
        return [*self.entry_problems, *self.shard_problems, *self.hint_problems]


Prove: TypeAlias = Callable[[Cask, ShardEntry, DocumentTable | None], ShardReport]
"""Verifies one shard, as `verify_shard` does."""


def verify_shards(
    cask: Cask,
    *,
    table: DocumentTable | None = None,
    fraction: float = 1.0,
    max_seconds: float | None = None,
    seed: int | None = None,
    prove: Prove | None = None,
) -> Iterator[ShardReport]:
    """Verify shard after shard, two at a time where they fit into `MAX_BYTES_AT_ONCE`.

    A shard is proved whole or not at all, since only its SHA-256 covers every bit. Part of a cask is therefore a random
    choice of shards; chosen anew each time, repeated parts cover the whole in the long run.

    Args:
        cask: Open, or from `survey`, which opens a damaged one.
        table: Its table of documents, to name documents that cannot be read any more.
        fraction: Stop as soon as shards of this part of the cask's bytes have been visited (at least one shard).
        max_seconds: Stop before the first shard that would start after this time; None for no limit.
        seed: Visit shards in this random order; None for the order of the cask.
        prove: What verifies one shard, called from two threads; None: `verify_shard`.

    Yields:
        One report per visited shard, in the order in which they are visited.
    """
    order = list(cask.entries)
    if seed is not None:
        random.Random(seed).shuffle(order)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    visited, target_bytes = 0, fraction * cask.num_bytes
    started: deque[tuple[ShardEntry, Future[ShardReport]]] = deque()
    # Reading and hashing let other threads run; the main one waits, so that a signal is noticed.
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="verify")
    try:
        for entry in order:
            while started and not _fits(entry, started):
                yield started.popleft()[1].result()
            if visited >= target_bytes or (deadline is not None and time.monotonic() >= deadline):
                break
            started.append((entry, pool.submit(prove or verify_shard, cask, entry, table)))
            visited += entry.bytes
        while started:
            yield started.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _fits(entry: ShardEntry, started: Sequence[tuple[ShardEntry, Any]]) -> bool:
    """Whether a shard may be started beside those that are under way."""
    under_way = sum(_size_of(other) for other, _ in started)
    return len(started) < _AT_ONCE and under_way + _size_of(entry) <= MAX_BYTES_AT_ONCE


def _size_of(entry: ShardEntry) -> int:
    """Bytes of a shard with its hints."""
    return entry.bytes + (0 if entry.hints is None else entry.hints.bytes)


def verify_shard(cask: Cask, entry: ShardEntry, table: DocumentTable | None = None) -> ShardReport:
    """Verify one shard completely: entry file, size, SHA-256, structure, document by document, and its hints.

    Raises:
        CaskReadError: The operating system refuses to read what may be sound.
    """
    listed_ids = table.shard(entry.name).ids if table is not None and entry.name in table else None
    report = ShardReport(entry=entry)
    try:
        if read_entry(LocalDirectory(path=cask.path), entry.name) != entry:
            report.entry_problems.append(f"shard {entry.name}: entry file and index disagree")
    except FileNotFoundError:
        report.entry_problems.append(f"shard {entry.name}: its entry file is missing, only the index knows it")
    except CaskReadError:
        raise
    except CaskError as error:
        report.entry_problems.append(str(error))
    try:
        # Read anew, not through the cask's cache: what is proved is the file as it is now.
        shard, digest = read_shard(cask.path, entry, cask.layout)
        if digest != entry.sha256:
            report.shard_problems.append(f"{shard.path}: SHA-256 should be {entry.sha256}, it is {digest}")
    except CaskReadError:
        raise
    except CaskError as error:
        if isinstance(error, CaskNotFoundError) and not _is_listed(cask.path, entry.name):
            return ShardReport(entry=entry, removed=True)
        lose_all(report, str(error), table)
        return report
    if not is_sound(shard, cask.manifest.teacher.vocab_size):
        _find_damaged(report, shard, cask.manifest.teacher.vocab_size, listed_ids)
    elif not report.shard_problems:
        report.hint_problems, report.hint_width = hint_problems(cask, entry, shard)
    if listed_ids is not None and not report.shard_problems and not np.array_equal(listed_ids, shard.document_ids):
        report.entry_problems.append(f"shard {entry.name}: the table of documents lists other documents. Delete it.")
    return report


def _find_damaged(report: ShardReport, shard: Shard, vocab_size: int, listed_ids: NDArray[np.uint8] | None) -> None:
    """Note which documents of a shard are damaged."""
    for row in range(shard.num_documents):
        try:
            shard.verify(row)
            require_valid(shard, row, vocab_size)
        except (CaskError, InvalidRecordError) as error:
            report.shard_problems.append(str(error))
            identity = shard.document_ids[row] if listed_ids is None else listed_ids[row]
            report.lost_documents.append(identity.tobytes().hex())


def lose_all(report: ShardReport, problem: str, table: DocumentTable | None) -> None:
    """Note a problem that leaves nothing of a shard, and its documents as lost."""
    name = report.entry.name
    report.shard_problems.append(problem)
    if table is not None and name in table:
        report.lost_documents += [identity.tobytes().hex() for identity in table.shard(name).ids]
    report.unnamed_documents = report.entry.documents - len(report.lost_documents)


def _is_listed(cask: Path, name: str) -> bool:
    """Whether entry file or index speak of a shard now; where they cannot be read, they may."""
    try:
        if os.path.lexists(cask / entry_file(name)):
            return True
        index = LocalDirectory(path=cask).read_index()
        return index is not None and name in parse_index(index, where=cask / INDEX_NAME)
    except CaskError:
        return True


def require_valid(shard: Shard, row: int, vocab_size: int) -> None:
    """Require of a document whose checksum is right that it obeys the format, and is the one it is stored as.

    Raises:
        CaskCorruptionError: Its token ids give another id.
        InvalidRecordError: An invariant of the format is broken.
    """
    document = shard.read(row)
    stored, computed = shard.document_ids[row].tobytes(), document.id
    where = f"{shard.path}: document {row} ({stored.hex()[:16]})"
    if stored != computed:
        raise CaskCorruptionError(f"{where}: its token ids give the id {computed.hex()}")
    document.check(vocab_size, where=where, head_holds_next=shard.layout.head_holds_next)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks; errors as `open_regular`."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except CaskError:
        raise
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise
        raise unreadable(path, error) from error
    return digest.hexdigest()


def note_other_widths(reports: Sequence[ShardReport]) -> None:
    """Add a problem to the report of every shard whose hints are of another width than most documents'.

    They are sound file by file, and of different teachers nevertheless.

    Args:
        reports: Of all shards of a cask that were verified. Of two widths of equally many documents the one that comes
            first counts as the cask's.
    """
    documents = Counter[int]()
    for report in reports:
        if report.hint_width is not None:
            documents[report.hint_width] += report.entry.documents
    if len(documents) < 2:
        return
    (usual, count), *_ = documents.most_common()
    for report in reports:
        if report.hint_width not in (None, usual):
            report.hint_problems.append(
                f"shard {report.entry.name}: its hints are vectors of {report.hint_width} numbers, those of "
                f"{count:,} documents of this cask have {usual}: they are another teacher's"
            )
