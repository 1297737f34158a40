"""One cask into two by a fraction of its documents: held-out and training set.

The side of a document depends on its id, the seed and the fraction, on nothing else. So a split stays what it was when
the cask grows: splitting again into the same two casks only adds documents, and none ever changes sides. Every shard
holds documents of both sides, so shards are rewritten, as stored; each document is proved on the way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import xxhash

from logitcask_schemas.cask.format.columns import Row, ShardColumns, gather_rows, stored_bytes
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.files import FileOperations
from logitcask_schemas.cask.transfer.export import absolute_place, open_source
from logitcask_schemas.cask.writer import CaskWriter
from logitcask_schemas.errors import CaskError

SHARD_BYTES: Final = 256 << 20
"""New shards are published when they have about this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """Which documents belong to the first of the two casks."""

    fraction: float
    seed: int

    def __post_init__(self) -> None:
        """Raise CaskError unless 0 < fraction < 1 and 0 <= seed < 2^64."""
        if not 0 < self.fraction < 1 or not 0 <= self.seed < 1 << 64:
            raise CaskError(
                f"a fraction between 0 and 1 and a seed of at most 64 bits are needed, got {self.fraction} and "
                f"{self.seed}"
            )

    def first(self, document_id: bytes) -> bool:
        """Whether a document belongs to the first cask: XXH3-64 of its id with the seed, as a part of 2^64."""
        return xxhash.xxh3_64_intdigest(document_id, seed=self.seed) < self.fraction * 2.0**64


@dataclass(slots=True, kw_only=True)
class SplitReport:
    """Documents of each side: new ones, and those that were there from an earlier split."""

    added: list[int] = field(default_factory=lambda: [0, 0])
    present: list[int] = field(default_factory=lambda: [0, 0])


def split_cask(
    source: Path | str,
    into: tuple[Path | str, Path | str],
    rule: SplitRule,
    *,
    shard_bytes: int = SHARD_BYTES,
    single_writer: bool = False,
    files: FileOperations | None = None,
    planned: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> SplitReport:
    """Copy every document of a cask into one of two casks.

    Args:
        source: The cask, as folder or URL; it stays as it is. Of a URL one shard at a time is fetched.
        into: Folders or URLs of the results: the fraction goes to the first, the rest to the second. Both may hold an
            earlier split by the same rule, or an unfinished one.
        rule: Which document goes where.
        shard_bytes: Size of the new shards; about as much is held in memory for each side.
        single_writer: Of results in an object store: see `CaskWriter.create`.
        files: The file system, for tests.
        planned: Called once with the bytes of the source.
        progress: Called with the bytes of every finished source shard.

    Raises:
        IdentityMismatchError: A result's folder holds records of another teacher or spec.
        CaskNotFoundError, CaskCorruptionError: The source is damaged: run `logitcask cask repair` first.
        CaskError: Folders coincide, or hold documents that this rule puts on the other side.
        CaskWriteError, StoreError: File system or store refuses; run again when it does not.
    """
    with open_source(str(source)) as cask:
        if planned is not None:
            planned(cask.num_bytes)
        _require_three_places(source, into)
        writers = _writers(cask, into, single_writer, files)
        return _split(cask, into, writers, rule, shard_bytes, progress or (lambda _: None))


def _require_three_places(source: Path | str, into: tuple[Path | str, Path | str]) -> None:
    """Raise CaskError where a cask is to be split into itself, or both parts into one."""
    if len({absolute_place(place) for place in (source, *into)}) != 3:
        raise CaskError(f"{source} cannot be split into {into[0]} and {into[1]}: three different folders are needed")


def _writers(
    cask: Cask, into: tuple[Path | str, Path | str], single_writer: bool, files: FileOperations | None
) -> list[CaskWriter]:
    with_hints = sum(entry.hints is not None for entry in cask.entries)
    if cask.manifest.capture.hints is not None and 0 < with_hints < len(cask.entries):
        raise CaskError(
            f"{cask.place}: {with_hints} of {len(cask.entries)} shards have hints, and new shards hold documents of "
            "several. Drop the rest first, with `logitcask cask drop-hints`, or split a copy that has them all"
        )
    carrier = cask.entries[0].carrier if cask.entries else "arrow"
    manifest = cask.manifest
    return [
        CaskWriter.create(
            path,
            teacher=manifest.teacher,
            capture=manifest.capture,
            carrier=carrier,
            files=files,
            version=manifest.version,
            rank_table=manifest.rank_table,
            single_writer=single_writer,
        )
        for path in into
    ]


def _split(
    cask: Cask,
    into: tuple[Path | str, Path | str],
    writers: Sequence[CaskWriter],
    rule: SplitRule,
    shard_bytes: int,
    progress: Callable[[int], None],
) -> SplitReport:
    report = SplitReport()
    _require_rule(into, rule)
    waiting = [_Waiting(writer, cask.layout, shard_bytes) for writer in writers]
    for number, entry in enumerate(cask.entries):
        shard, columns = cask.shard(number), cask.columns_with_hints(number)
        rows: tuple[list[Row], list[Row]] = [], []
        for row, identity in enumerate(shard.document_ids):
            side = 0 if rule.first(identity.tobytes()) else 1
            if writers[side].has(identity.tobytes()):
                report.present[side] += 1
                continue
            shard.verify(row)
            rows[side].append((columns, row))
            report.added[side] += 1
        for side, chosen in enumerate(rows):
            if chosen:
                # Copied out: a view of a few documents would keep the whole shard, fetched or mapped, until they go.
                waiting[side].add(gather_rows(chosen, cask.layout))
        progress(entry.bytes)
    for side_waiting in waiting:
        side_waiting.publish()
        side_waiting.writer.close()
    return report


class _Waiting:
    """Documents on their way into a shard."""

    def __init__(self, writer: CaskWriter, layout: RecordLayout, shard_bytes: int) -> None:
        self.writer, self._layout, self._shard_bytes = writer, layout, shard_bytes
        self._rows: list[Row] = []
        self._bytes = 0

    def add(self, columns: ShardColumns) -> None:
        for row in range(len(columns.document_ids)):
            self._rows.append((columns, row))
            self._bytes += stored_bytes(columns, row, self._layout)
            if self._bytes >= self._shard_bytes:
                self.publish()

    def publish(self) -> None:
        if self._rows:
            self.writer.publish_columns(gather_rows(self._rows, self._layout))
        self._rows, self._bytes = [], 0


def _require_rule(into: Sequence[Path | str], rule: SplitRule) -> None:
    """A document on the wrong side would be trained on and evaluated on."""
    for side, path in enumerate(into):
        with open_source(str(path)) as cask:
            ids = cask.document_ids()
        for identity in ids:
            if rule.first(identity.tobytes()) != (side == 0):
                raise CaskError(
                    f"{path}: holds document {identity.tobytes().hex()[:16]}, which fraction {rule.fraction} and seed "
                    f"{rule.seed} put into the other cask. It was split by another rule: name empty folders."
                )
