"""What can still be proved of a damaged shard, document by document.

A document is sound when its bytes match its checksum, wherever they lie in the file. So everything that only says where
things are may be damaged: an Arrow shard's framing follows from its entry (see `arrow_frame`), and since every column
of a level repeats the same offsets, one sound copy is enough. Of a Zarr shard, chunks that do not decode are left out,
and of a packed one, documents.
"""

import itertools
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.arrow_frame import arrow_frame
from logitcask_schemas.cask.carriers.packed import PackedCarrier
from logitcask_schemas.cask.carriers.registry import carrier_of
from logitcask_schemas.cask.carriers.zarr import ZarrCarrier
from logitcask_schemas.cask.format.columns import Row, ShardColumns, document_checksum, join_planes
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, Level, RecordLayout
from logitcask_schemas.cask.format.lists import LISTS, DocumentLists, ShardLists, list_sizes
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.integrity.verify import require_valid
from logitcask_schemas.cask.opening import open_columns
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import read_around_damage, writes_explained
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskReadError, InvalidRecordError
from logitcask_schemas.record.extent import IdArray, document_id

_MAX_BYTES: Final = 1 << 30
"""Read of a file that is larger than its entry says: it may be another shard's."""
_MAX_READINGS: Final = 256
"""Ways to cut one document out of columns that disagree; more mean that nothing is left to trust."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRecords:
    """A document whose tokens are known and whose records are damaged."""

    token_ids_L: IdArray
    recorded_R2: NDArray[np.uint32] | None
    """As `Extent` has them. A document under a context is none of these: nobody knows its context's tokens."""

    def line(self, document_id: str) -> dict[str, Any]:
        """The line of a corpus that captures it again, as the same document."""
        line: dict[str, Any] = {"custom_id": document_id, "input_ids": self.token_ids_L.tolist()}
        return line if self.recorded_R2 is None else line | {"recorded": self.recorded_R2.tolist()}


@dataclass(slots=True, kw_only=True)
class Salvage:
    """A damaged shard's documents, sorted by what is left of them."""

    sound: list[Row] = field(default_factory=list)
    """Proved by their checksums."""
    to_capture: dict[bytes, LostRecords] = field(default_factory=dict)
    """By document id, which proves them: documents whose records are damaged."""
    lost: list[bytes] = field(default_factory=list)
    """Ids of documents of which nothing but the id is known."""
    unnamed: int = 0
    """Documents of which not even the id is known."""


def salvage_shard(path: Path, entry: ShardEntry, cask: Cask, listed_ids: NDArray[np.uint8] | None) -> Salvage:
    """Sort the documents of a damaged shard.

    Args:
        path: Its file, wherever it lies now; may be missing.
        entry: What the shard should be.
        cask: That it belongs to.
        listed_ids: The documents it should hold, [D, 32], where another file tells.

    Raises:
        CaskReadError: The operating system refuses, which says nothing about the shard.
        CaskWriteError: There is no room for a copy in the temporary folder.
    """
    salvage, layout = Salvage(), cask.layout
    candidates = _columns_of(path, entry, layout) if path.is_file() else None
    if candidates is None:
        return nothing_left(listed_ids, entry.documents)
    columns, offsets = candidates

    def is_valid(document: ShardColumns) -> bool:
        return _is_valid(path, document, entry, cask)

    for row in range(entry.documents):
        named = columns.document_ids[row].tobytes()
        names = [named] if listed_ids is None else [listed_ids[row].tobytes(), named]
        _sort_document(salvage, columns, offsets, row, names, layout, is_valid, trusted=listed_ids is not None)
    return salvage


def nothing_left(listed_ids: NDArray[np.uint8] | None, documents: int) -> Salvage:
    """Of a shard of which nothing can be read; unnamed are those of so many documents that no other file names."""
    lost = [] if listed_ids is None else [identity.tobytes() for identity in listed_ids]
    return Salvage(lost=lost, unnamed=max(0, documents - len(lost)))


def _sort_document(
    salvage: Salvage,
    columns: ShardColumns,
    offsets: Mapping[Level, Sequence[NDArray[np.int64]]],
    row: int,
    names: list[bytes],
    layout: RecordLayout,
    is_valid: Callable[[ShardColumns], bool],
    *,
    trusted: bool,
) -> None:
    stored = int(columns.checksums[row])
    for name, spans in itertools.product(names, _readings(columns, offsets, row, layout)):
        slices = [columns.arrays[column.name][spans[LEVELS.index(column.level)]] for column in layout.columns]
        sizes = [span.stop - span.start for span in spans]
        for lists in _lists_of(columns, row):
            if document_checksum(name, sizes, [*slices, *(column.values for column in lists)]) == stored:
                document = _alone(name, stored, sizes, slices, lists, layout)
                if is_valid(document):
                    salvage.sound.append((document, 0))
                    return
    for span in {(int(cut[row]), int(cut[row + 1])) for cut in offsets["token"]}:
        ids = _token_ids(columns, slice(*span), layout)
        for lists in _lists_of(columns, row):
            extent = lists.extent(0)
            if len(ids) >= 2 and (identity := document_id(ids, extent)) in names:
                if extent.context is None:
                    salvage.to_capture[identity] = LostRecords(token_ids_L=ids, recorded_R2=extent.recorded_R2)
                else:
                    salvage.lost.append(identity)  # its context is not stored, so nobody can capture it again
                return
    if trusted:
        salvage.lost.append(names[0])
    else:
        # The id may be what is damaged; a wrong one would send somebody looking for a document that never was.
        salvage.unnamed += 1


def _readings(
    columns: ShardColumns, offsets: Mapping[Level, Sequence[NDArray[np.int64]]], row: int, layout: RecordLayout
) -> Iterator[tuple[slice, ...]]:
    # Of a file that was cut off, the columns of one level end at different places.
    sizes = {
        level: min(len(columns.arrays[column.name]) for column in layout.columns if column.level == level)
        for level in LEVELS
    }
    choices = []
    for level in LEVELS:
        spans = {(int(cut[row]), int(cut[row + 1])) for cut in offsets[level]}
        choices.append([slice(*span) for span in sorted(spans) if 0 <= span[0] <= span[1] <= sizes[level]])
    return itertools.islice(itertools.product(*choices), _MAX_READINGS)


def _lists_of(columns: ShardColumns, row: int) -> list[ShardLists]:
    """What a document may say beside its records: each list as its column has it where it can be read, or nothing."""
    choices: list[list[DocumentLists | None]] = [
        [None, *([kind.joined([stored])] if len(stored := columns.lists.stored(kind, row)) else [])] for kind in LISTS
    ]
    return [ShardLists.of(chosen) for chosen in itertools.product(*choices)]


def _alone(
    name: bytes,
    checksum: int,
    sizes: Sequence[int],
    slices: Sequence[NDArray[Any]],
    lists: ShardLists,
    layout: RecordLayout,
) -> ShardColumns:
    """One document as the columns of a shard of its own."""
    return ShardColumns(
        document_ids=np.frombuffer(name, np.uint8).reshape(1, 32),
        checksums=np.array([checksum], dtype=np.uint64),
        offsets={level: np.array([0, size], dtype=np.int64) for level, size in zip(LEVELS, sizes, strict=True)},
        arrays={column.name: part for column, part in zip(layout.columns, slices, strict=True)},
        lists=lists,
    )


def _is_valid(path: Path, document: ShardColumns, entry: ShardEntry, cask: Cask) -> bool:
    """Whether a document with the right checksum also obeys the format: a checksum proves what was written, no more."""
    sizes = {level: int(document.offsets[level][-1]) for level in LEVELS}
    described = {"tokens": sizes["token"], "positions": sizes["position"]}
    described |= {"documents": 1, "head_entries": sizes["head"], "tail_entries": sizes["tail"]}
    described |= document.lists.counts()
    try:
        require_valid(
            Shard(path, entry.model_copy(update=described), cask.layout, document), 0, cask.manifest.teacher.vocab_size
        )
    except (CaskError, InvalidRecordError):
        return False
    return True


def _token_ids(columns: ShardColumns, span: slice, layout: RecordLayout) -> IdArray:
    low: IdArray = columns.arrays["token_ids"][span]
    return join_planes(low, columns.arrays["token_ids" + HIGH_SUFFIX][span]) if layout.wide_ids else low


def _columns_of(
    path: Path, entry: ShardEntry, layout: RecordLayout
) -> tuple[ShardColumns, Mapping[Level, Sequence[NDArray[np.int64]]]] | None:
    """The shard's columns, and every copy of the offsets of each level; None where nothing can be read."""
    content = _copied(path, max(entry.bytes, _MAX_BYTES))
    carrier = carrier_of(entry)
    try:
        if isinstance(carrier, ZarrCarrier | PackedCarrier):
            columns = carrier.open_around_damage(path, layout, entry.identity, content)
        else:
            columns = open_columns(path, carrier, layout, entry.identity, content)
        if len(columns.document_ids) == entry.documents:
            return columns, {level: [columns.offsets[level]] for level in LEVELS}
    except CaskReadError:
        raise
    except CaskError:
        pass  # That it does not open is why we are here.
    return _unframed(path, content, entry, layout) if isinstance(carrier, ArrowCarrier) else None


def _copied(path: Path, max_bytes: int) -> memoryview:
    """What the disk gives back of a file, mapped from a nameless copy.

    Mapping the file itself would end the process at a bad sector, or when the file gets shorter; and memory alone would
    not hold the damaged shards of a large cask.
    """
    content = read_around_damage(path, max_bytes)
    if not len(content):
        return memoryview(b"")
    advice = "Set TMPDIR to a folder with room for the damaged shards; the cask is as it was"
    with (
        writes_explained(f"{path}: what is left of it cannot be copied into a temporary file", advice),
        tempfile.TemporaryFile(prefix="logitcask-salvage-") as copy,
    ):
        copy.write(content.data)
        copy.flush()
        return memoryview(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ))


def _unframed(
    path: Path, copied: memoryview, entry: ShardEntry, layout: RecordLayout
) -> tuple[ShardColumns, Mapping[Level, Sequence[NDArray[np.int64]]]] | None:
    """The columns of an Arrow file by where they must lie, whatever its framing says; they end where the file does."""
    counts: dict[Level, int] = {
        "token": entry.tokens,
        "position": entry.positions,
        "head": entry.head_entries,
        "tail": entry.tail_entries,
    }
    frame = arrow_frame(entry.documents, counts, layout, entry.identity, list_sizes(entry.list_counts))
    if frame.size != entry.bytes:
        return None
    content = np.frombuffer(copied, dtype=np.uint8)[: frame.size]
    if len(content) < frame.checksums + 8 * entry.documents:
        return None  # without its checksum no document can be proved, and all else lies behind

    def view(start: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        there = min(count, max(0, len(content) - start) // dtype.itemsize)
        values: NDArray[Any] = content[start : start + there * dtype.itemsize].view(dtype)
        return values

    offsets: dict[Level, list[NDArray[np.int64]]] = {level: [] for level in LEVELS}
    arrays: dict[str, NDArray[Any]] = {}
    for column in layout.columns:
        offsets_start, values_start = frame.columns[column.name]
        cut = view(offsets_start, np.dtype("<i4"), entry.documents + 1)
        if len(cut) == entry.documents + 1:
            offsets[column.level].append(cut.astype(np.int64))
        flat = view(values_start, column.dtype, counts[column.level] * column.values_per_unit)
        whole = flat[: len(flat) - len(flat) % column.values_per_unit]
        arrays[column.name] = whole if column.width is None else whole.reshape(-1, column.width)
    lists: list[DocumentLists] = []
    for kind in LISTS:
        if kind.name in frame.lists:
            offsets_start, values_start = frame.lists[kind.name]
            cut = view(offsets_start, np.dtype("<i4"), entry.documents + 1).astype(np.int64)
            values = view(values_start, np.dtype("<u4"), list_sizes(entry.list_counts)[kind.name])
            # Where the offsets do not cut groups of numbers, documents that had some are damaged.
            with suppress(CaskCorruptionError):
                lists.append(kind.opened(path, cut, values, entry.documents))
    columns = ShardColumns(
        document_ids=view(frame.document_ids, np.dtype(np.uint8), entry.documents * 32).reshape(-1, 32),
        checksums=view(frame.checksums, np.dtype("<u8"), entry.documents),
        offsets={},
        arrays=arrays,
        lists=ShardLists.of(lists),
    )
    return columns, offsets
