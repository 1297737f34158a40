"""What can still be proved of a damaged shard, document by document.

A document is sound when its bytes give its checksum; where in the file it lies is of no account. So everything that
only says where things are may be damaged: an Arrow shard's framing follows from its entry and is written anew around
the bytes that are there, and since every column of a level repeats the same offsets, one sound copy is enough.
"""

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.arrow_carrier import ArrowCarrier
from logitcask_schemas.cask.carriers import carrier_of
from logitcask_schemas.cask.columns import ShardColumns, document_checksum, join_planes
from logitcask_schemas.cask.gather import Row
from logitcask_schemas.cask.layout import HIGH_SUFFIX, LEVELS, Level, RecordLayout
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.verify import require_valid
from logitcask_schemas.errors import CaskError, InvalidRecordError
from logitcask_schemas.manifest import ShardEntry
from logitcask_schemas.records import IdArray, document_id

_MOST_READINGS: Final = 256
"""Ways to cut one document out of columns that disagree; more mean that nothing is left to trust."""


@dataclass(slots=True, kw_only=True)
class Salvage:
    """A damaged shard's documents, sorted by what is left of them."""

    sound: list[Row] = field(default_factory=list)
    """Proved by their checksums."""
    token_ids: dict[bytes, IdArray] = field(default_factory=dict)
    """By document id: token ids of documents whose records are damaged, proved by that id."""
    lost: list[bytes] = field(default_factory=list)
    """Ids of documents of which nothing but the id is known."""
    unnamed: int = 0
    """Documents of which not even the id is known."""


def salvage_shard(path: Path, entry: ShardEntry, cask: Cask, known_ids: NDArray[np.uint8] | None) -> Salvage:
    """Sort the documents of a damaged shard.

    Args:
        path: Its file, wherever it lies now; may be missing.
        entry: What the shard should be.
        cask: That it belongs to.
        known_ids: The documents it should hold, [D, 32], where another file tells.
    """
    found, layout = Salvage(), cask.layout
    candidates = _columns_of(path, entry, layout)
    if candidates is None:
        found.lost = [] if known_ids is None else [identity.tobytes() for identity in known_ids]
        found.unnamed = entry.documents - len(found.lost)
        return found
    columns, offsets = candidates

    def is_valid(document: ShardColumns) -> bool:
        return _is_valid(path, document, entry, cask)

    for row in range(entry.documents):
        named = columns.document_ids[row].tobytes()
        names = [named] if known_ids is None else [known_ids[row].tobytes(), named]
        _sort_document(found, columns, offsets, row, names, layout, is_valid, trusted=known_ids is not None)
    return found


def _sort_document(
    found: Salvage,
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
        slices = [columns.arrays[one.name][spans[LEVELS.index(one.level)]] for one in layout.columns]
        sizes = [span.stop - span.start for span in spans]
        if document_checksum(name, sizes, slices) == stored:
            document = _alone(name, stored, sizes, slices, layout)
            if is_valid(document):
                found.sound.append((document, 0))
                return
    for span in {(int(cut[row]), int(cut[row + 1])) for cut in offsets["token"]}:
        ids = _token_ids(columns, slice(*span), layout)
        if len(ids) >= 2 and (identity := document_id(ids)) in names:
            found.token_ids[identity] = ids
            return
    if trusted:
        found.lost.append(names[0])
    else:
        # The id may be what is damaged; a wrong one would send somebody looking for a document that never was.
        found.unnamed += 1


def _readings(
    columns: ShardColumns, offsets: Mapping[Level, Sequence[NDArray[np.int64]]], row: int, layout: RecordLayout
) -> Iterator[tuple[slice, ...]]:
    sizes = {column.level: len(columns.arrays[column.name]) for column in layout.columns}
    choices = []
    for level in LEVELS:
        spans = {(int(cut[row]), int(cut[row + 1])) for cut in offsets[level]}
        choices.append([slice(*span) for span in sorted(spans) if 0 <= span[0] <= span[1] <= sizes[level]])
    return itertools.islice(itertools.product(*choices), _MOST_READINGS)


def _alone(
    name: bytes, checksum: int, sizes: Sequence[int], slices: Sequence[NDArray[Any]], layout: RecordLayout
) -> ShardColumns:
    """One document as the columns of a shard of its own."""
    return ShardColumns(
        document_ids=np.frombuffer(name, np.uint8).reshape(1, 32),
        checksums=np.array([checksum], dtype=np.uint64),
        offsets={level: np.array([0, size], dtype=np.int64) for level, size in zip(LEVELS, sizes, strict=True)},
        arrays={column.name: part for column, part in zip(layout.columns, slices, strict=True)},
    )


def _is_valid(path: Path, document: ShardColumns, entry: ShardEntry, cask: Cask) -> bool:
    """Whether a document with the right checksum also obeys the format: a checksum proves what was written, no more."""
    sizes = {level: int(document.offsets[level][-1]) for level in LEVELS}
    described = {"tokens": sizes["token"], "positions": sizes["position"]}
    described |= {"documents": 1, "head_entries": sizes["head"], "tail_entries": sizes["tail"]}
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
    try:
        columns = carrier_of(entry).open(path, layout, entry.identity)
        if len(columns.document_ids) == entry.documents:
            return columns, {level: [columns.offsets[level]] for level in LEVELS}
    except FileNotFoundError:
        return None
    except CaskError:
        pass  # That it does not open is why we are here.
    return _unframed(path, entry, layout) if entry.carrier == ArrowCarrier.name else None


def _unframed(
    path: Path, entry: ShardEntry, layout: RecordLayout
) -> tuple[ShardColumns, Mapping[Level, Sequence[NDArray[np.int64]]]] | None:
    """The columns of an Arrow file by where they must lie, whatever its framing says; what is missing reads as zeros.

    Equal shapes have equal framing: a shard of zeros with the entry's counts shows where every buffer starts.
    """
    blank = _blank(entry, layout)
    if len(blank) != entry.bytes:
        return None
    content = np.zeros(len(blank), dtype=np.uint8)
    damaged = np.fromfile(path, dtype=np.uint8, count=len(blank))
    content[: len(damaged)] = damaged
    buffer = pa.py_buffer(blank)
    batch = pa.ipc.open_file(buffer).get_batch(0)

    def view(arrow: Any, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        if not count:
            return np.empty(0, dtype=dtype)
        start = arrow.address - buffer.address
        return content[start : start + count * dtype.itemsize].view(dtype)

    counts = {
        "token": entry.tokens,
        "position": entry.positions,
        "head": entry.head_entries,
        "tail": entry.tail_entries,
    }
    offsets: dict[Level, list[NDArray[np.int64]]] = {level: [] for level in LEVELS}
    arrays: dict[str, NDArray[Any]] = {}
    for column in layout.columns:
        buffers = batch.column(column.name).buffers()
        offsets[column.level].append(view(buffers[1], np.dtype("<i4"), entry.documents + 1).astype(np.int64))
        flat = view(buffers[-1], column.dtype, counts[column.level] * column.values_per_unit)
        arrays[column.name] = flat if column.width is None else flat.reshape(-1, column.width)
    ids = view(batch.column("document_id").buffers()[1], np.dtype(np.uint8), entry.documents * 32)
    columns = ShardColumns(
        document_ids=ids.reshape(-1, 32),
        checksums=view(batch.column("checksum").buffers()[1], np.dtype("<u8"), entry.documents),
        offsets={level: cuts[0] for level, cuts in offsets.items()},
        arrays=arrays,
    )
    return columns, offsets


def _blank(entry: ShardEntry, layout: RecordLayout) -> bytes:
    counts = {
        "token": entry.tokens,
        "position": entry.positions,
        "head": entry.head_entries,
        "tail": entry.tail_entries,
    }
    offsets = {level: np.zeros(entry.documents + 1, dtype=np.int64) for level in LEVELS}
    for level in LEVELS:
        offsets[level][-1] = counts[level]
    shapes = {column.name: (counts[column.level], column.width) for column in layout.columns}
    zeros = ShardColumns(
        document_ids=np.zeros((entry.documents, 32), dtype=np.uint8),
        checksums=np.zeros(entry.documents, dtype=np.uint64),
        offsets=offsets,
        arrays={
            column.name: np.zeros([size for size in shapes[column.name] if size is not None], dtype=column.dtype)
            for column in layout.columns
        },
    )
    sink = io.BytesIO()
    ArrowCarrier().write(zeros, layout, entry.identity, sink)
    return sink.getvalue()


def _counts(entry: ShardEntry) -> dict[Level, int]:
    return {
        "token": entry.tokens,
        "position": entry.positions,
        "head": entry.head_entries,
        "tail": entry.tail_entries,
    }
