"""Which documents shards of a store hold, for whoever looks one up or must not store it twice: ids, not records.

Of an Arrow shard the entry's counts tell where ids and lengths lie, so two short ranges are asked for; shards of other
carriers are fetched.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.arrow_frame import ArrowFrame, arrow_frame
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable, ShardDocuments
from logitcask_schemas.cask.format.layout import SHARDS_NAME, Level, RecordLayout
from logitcask_schemas.cask.format.lists import list_sizes
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.opening import open_documents
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError

_PREFIX: Final = "logitcask-documents-"
_AT_A_TIME: Final = 256
"""Shards asked for at a time."""


def read_documents(
    store: RemoteStore,
    entries: Iterable[ShardEntry],
    layout: RecordLayout,
    whole: Callable[[ShardEntry], ShardDocuments] | None = None,
) -> dict[str, ShardDocuments]:
    """By name of the shard, ids and lengths of its documents, as `opening.open_documents` gives them.

    Args:
        store: The cask's folder.
        entries: Of the shards.
        layout: Of the cask.
        whole: Reads those of a shard that has to be fetched; None: into a temporary folder.

    Raises:
        CaskNotFoundError: The store has lost a shard.
        CaskCorruptionError: What it has is no such shard.
        StoreError: It does not answer.
    """
    framed, others = list[tuple[ShardEntry, ArrowFrame]](), list[ShardEntry]()
    for entry in entries:
        frame = _frame_of(entry, layout) if entry.carrier == ArrowCarrier.name else None
        if frame is None:
            others.append(entry)
        else:
            framed.append((entry, frame))
    documents = dict[str, ShardDocuments]()
    for start in range(0, len(framed), _AT_A_TIME):
        some = framed[start : start + _AT_A_TIME]
        parts = store.read_ranges(list(chain.from_iterable(_ranges(entry, frame) for entry, frame in some)))
        for number, (entry, _) in enumerate(some):
            read = _documents_of(entry, *parts[2 * number : 2 * number + 2])
            if read is None:
                others.append(entry)
            else:
                documents[entry.name] = read
    if whole is None:
        return documents | {entry.name: _fetched(store, entry, layout) for entry in others}
    return documents | {entry.name: whole(entry) for entry in others}


def _frame_of(entry: ShardEntry, layout: RecordLayout) -> ArrowFrame | None:
    """Where the buffers of an Arrow shard lie; None where its writer framed it in another way."""
    counts: dict[Level, int] = {
        "token": entry.tokens,
        "position": entry.positions,
        "head": entry.head_entries,
        "tail": entry.tail_entries,
    }
    frame = arrow_frame(entry.documents, counts, layout, entry.identity, list_sizes(entry.list_counts))
    return frame if frame.size == entry.bytes else None


def _ranges(entry: ShardEntry, frame: ArrowFrame) -> list[tuple[str, int, int]]:
    """The shard's document ids, and where each document's tokens start."""
    name = f"{SHARDS_NAME}/{shard_path(Path(), entry).name}"
    offsets = frame.columns["token_ids"][0]
    return [
        (name, frame.document_ids, frame.document_ids + 32 * entry.documents),
        (name, offsets, offsets + 4 * (entry.documents + 1)),
    ]


def _documents_of(entry: ShardEntry, ids: bytes, offsets: bytes) -> ShardDocuments | None:
    """The documents that two ranges tell; None where they are not what was expected there."""
    if len(ids) != 32 * entry.documents or len(offsets) != 4 * (entry.documents + 1):
        return None
    starts = np.frombuffer(offsets, dtype="<i4").astype(np.int64)
    lengths = np.diff(starts)
    if starts[0] != 0 or starts[-1] != entry.tokens or lengths.min() < 2:
        return None
    return ShardDocuments(
        ids=np.frombuffer(ids, dtype=np.uint8).reshape(-1, 32).copy(), lengths=lengths.astype(np.uint32)
    )


def _fetched(store: RemoteStore, entry: ShardEntry, layout: RecordLayout) -> ShardDocuments:
    with TemporaryDirectory(prefix=_PREFIX) as temporary:
        path = shard_path(Path(temporary), entry)
        path.parent.mkdir()
        store.download(f"{SHARDS_NAME}/{path.name}", path)
        try:
            return open_documents(Path(temporary), entry, layout)
        except CaskCorruptionError as error:
            raise CaskCorruptionError(str(error).replace(temporary, store.url)) from error


def read_table(store: RemoteStore) -> DocumentTable | None:
    """The table of documents, proved; None where there is none.

    Raises:
        CaskCorruptionError: It is damaged.
        StoreError: The store does not answer.
    """
    with TemporaryDirectory(prefix=_PREFIX) as temporary:
        path = Path(temporary) / DOCUMENTS_NAME
        try:
            store.download(DOCUMENTS_NAME, path)
        except CaskNotFoundError:
            return None
        try:
            table = DocumentTable(path)
            table.verify()
        except CaskCorruptionError as error:
            raise CaskCorruptionError(str(error).replace(temporary, store.url)) from error
        # The mapping outlives the file's name.
        return table
