"""A shard's entry, made anew from what is left where the entry file is damaged and no index repeats it.

A sound shard proves itself: its name is the hash of its content in Arrow form, and its content gives its file. Of one
that is damaged as well, the numbers that its entry held are guessed from the shard's own framing and from the damaged
entry file. A wrong guess does no harm: what is salvaged with it is proved document by document.
"""

import hashlib
import io
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.arrow_frame import arrow_frame
from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.answers import ANSWERS_NAME, AnswerCounts, Answers
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, LEVELS, SHARDS_NAME, Level
from logitcask_schemas.cask.format.manifest import ShardEntry
from logitcask_schemas.cask.integrity.salvage import counts_of
from logitcask_schemas.cask.opening import open_columns
from logitcask_schemas.cask.publication import write_shard
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.files import read_around_damage, read_whole, size_of, unreadable
from logitcask_schemas.errors import CaskError, CaskReadError

_ENTRY_BYTES: Final = 1024
_INDEX_BYTES: Final = 256 << 20
_NUMBER: Final = re.compile(
    rb'"(documents|tokens|positions|(?:head|tail)_entries|answer_(?:documents|ranges|positions))":(\d{1,10})\b'
)
_COLUMNS: Final[dict[Level, str]] = {
    "token": "token_ids",
    "position": "head_counts",
    "head": "head_ids",
    "tail": "tail_ids",
}
_ARROW_MAGIC_BYTES: Final = 8
_EDGE_BYTES: Final = 32
"""The first ones and the last ones, neither of which are all zero in any carrier."""
_FRAMING_BYTES: Final = 1 << 16
"""More than any shard has before or after its columns."""


def rebuilt_entry(cask: Cask, name: str) -> ShardEntry | None:
    """What the entry of a shard must have said; None where the shard does not prove itself, to the last bit.

    Raises:
        CaskReadError: The operating system refuses, which says nothing about the shard.
    """
    identity = cask.manifest.identity_digest()
    for carrier, path in _files_of(cask, name):
        try:
            digest = hashlib.sha256()
            content = read_whole(path, _most_bytes(path), digest.update).data
            columns = open_columns(path, carrier, cask.layout, identity, content)
            described = write_shard(carrier, _loaded(columns), cask.layout, identity, io.BytesIO())
        except CaskReadError:
            raise
        except (CaskError, FileNotFoundError):
            continue
        # Another version of Arrow may frame the same columns in another way; the name then proves the file by itself.
        found = digest.hexdigest()
        proved = carrier.name == ArrowCarrier.name and found.startswith(name)
        if proved or (described.name, described.sha256) == (name, found):
            return described.model_copy(update={"name": name, "sha256": found, "bytes": len(content)})
    return None


def guessed_entries(cask: Cask, name: str, known: ShardDocuments | None) -> list[ShardEntry]:
    """What the entry of a damaged shard may have said; what it says of bytes and SHA-256 is made up.

    Args:
        cask: That it belongs to.
        name: The shard's.
        known: Its documents, where another file tells.

    Returns:
        The likeliest first; none where nothing is left to guess from.

    Raises:
        CaskReadError: The operating system refuses, which says nothing about the shard.
    """
    written = [numbers for text in _texts_about(cask.path, name) for numbers in _numbers_in_text(text, known)]
    found: list[ShardEntry] = []
    for carrier, path in _files_of(cask, name):
        for numbers in [*_numbers_in_file(cask, carrier, path), *written]:
            found += _described(cask, name, carrier, numbers)
    if not found:
        found += [entry for numbers in written for entry in _described(cask, name, ArrowCarrier(), numbers)]
    return list(dict.fromkeys(found))


def _described(cask: Cask, name: str, carrier: Carrier, numbers: Mapping[str, int]) -> list[ShardEntry]:
    """The entry with these numbers, or none where they cannot be a shard's."""
    identity = cask.manifest.identity_digest()
    made_up: dict[str, object] = {
        "name": name,
        "carrier": carrier.name,
        "sha256": "0" * 64,
        "identity": identity,
        "bytes": 0,
    }
    try:
        entry = ShardEntry.model_validate({**made_up, **numbers})
    except ValidationError:
        return []
    # What an Arrow file should have had follows from the numbers, whether it was cut off or not.
    frame = arrow_frame(entry.documents, counts_of(entry), cask.layout, identity, answer_ranges=entry.answer_ranges)
    return [entry.model_copy(update={"bytes": frame.size})]


def _files_of(cask: Cask, name: str) -> list[tuple[Carrier, Path]]:
    """The files that have a shard's name, whatever their carrier."""
    files = [(carrier, cask.path / SHARDS_NAME / (name + carrier.suffix)) for carrier in CARRIERS.values()]
    return [(carrier, path) for carrier, path in files if path.is_file()]


def _numbers_in_file(cask: Cask, carrier: Carrier, path: Path) -> list[Mapping[str, int]]:
    """What a shard's file says of itself."""
    try:
        if carrier.name == ArrowCarrier.name:
            return list(_numbers_in_framing(path))
        content = read_around_damage(path, _most_bytes(path)).data
        columns = open_columns(path, carrier, cask.layout, cask.manifest.identity_digest(), content)
    except CaskReadError:
        raise
    except (CaskError, FileNotFoundError):
        return []
    counts = {level: int(columns.offsets[level][-1]) for level in LEVELS}
    return [_numbers(len(columns.document_ids), counts, columns.answers)]


def _numbers_in_framing(path: Path) -> Iterator[Mapping[str, int]]:
    """What an Arrow file's footer, and its stream of messages, say of its one record batch."""
    content = _framing(path)
    for open_batch in (_batch_of_file, _batch_of_stream):
        try:
            batch = open_batch(content)
            counts = {level: len(batch.column(name).values) for level, name in _COLUMNS.items()}
            has_answers = ANSWERS_NAME in batch.schema.names
            ranges = len(batch.column(ANSWERS_NAME).values) // 2 if has_answers else 0
        except (pa.ArrowException, OSError, KeyError, AttributeError, UnicodeDecodeError, StopIteration):
            continue  # AttributeError: a column that is no list
        # How many documents and positions they belong to is not in the framing; a frame needs the ranges alone.
        yield _numbers(batch.num_rows, counts) | ({"answer_documents": 1, "answer_ranges": ranges} if ranges else {})


def _framing(path: Path) -> Any:
    """The file's first and last bytes where they belong, zeros between: Arrow looks there for numbers, not for values.

    Raises:
        FileNotFoundError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    if (size := _most_bytes(path)) == 0:
        return pa.py_buffer(b"")
    end_at = max(size - _FRAMING_BYTES, 0)
    begin, end = read_around_damage(path, _FRAMING_BYTES), read_around_damage(path, _FRAMING_BYTES, start=end_at)
    try:
        content = mmap.mmap(-1, size)  # memory that is never touched is never taken
    except OSError as error:
        raise unreadable(path, error) from error
    content[: len(begin)] = begin.tobytes()
    content[end_at : end_at + len(end)] = end.tobytes()
    return pa.py_buffer(content)


def _most_bytes(path: Path) -> int:
    """Bytes to read of a file that may be a shard: all, or none where it is full of holes, whatever their size.

    Raises:
        FileNotFoundError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    size = size_of(path)
    ends = [read_around_damage(path, _EDGE_BYTES, start=start) for start in (0, max(size - _EDGE_BYTES, 0))]
    return size if any(end.any() for end in ends) else 0


def _batch_of_file(content: Any) -> Any:
    return pa.ipc.open_file(content).get_batch(0)


def _batch_of_stream(content: Any) -> Any:
    return pa.ipc.open_stream(content.slice(_ARROW_MAGIC_BYTES)).read_next_batch()


def _texts_about(cask: Path, name: str) -> Iterator[bytes]:
    """What is left of the shard's entry: its file, and its part of the index."""
    entry, index = cask / SHARDS_NAME / (name + ENTRY_SUFFIX), cask / INDEX_NAME
    if entry.is_file():
        yield read_around_damage(entry, _ENTRY_BYTES).tobytes()
    if index.is_file():
        text = read_around_damage(index, _INDEX_BYTES).tobytes()
        if (start := text.find(f'"name":"{name}"'.encode())) >= 0:
            yield text[start : start + _ENTRY_BYTES].partition(b"}")[0]


def _numbers_in_text(text: bytes, known: ShardDocuments | None) -> Iterator[Mapping[str, int]]:
    """The numbers in a damaged entry, each way that they fit together."""
    found = {key.decode(): int(digits) for key, digits in _NUMBER.findall(text)}
    documents, tokens, positions = (found.get(key) for key in ("documents", "tokens", "positions"))
    if known is not None:
        documents, tokens = len(known.lengths), int(known.lengths.sum(dtype=np.int64))
    # Any two of the three give the third, whichever of them is damaged.
    if documents is not None and tokens is not None:
        yield found | {"documents": documents, "tokens": tokens, "positions": tokens - documents}
    if documents is not None and positions is not None:
        yield found | {"documents": documents, "tokens": documents + positions}
    if tokens is not None and positions is not None:
        yield found | {"documents": tokens - positions}


def _numbers(documents: int, counts: Mapping[Level, int], answers: Answers | None = None) -> dict[str, int]:
    sums = AnswerCounts() if answers is None else answers.counts()
    return {
        "answer_documents": sums.documents,
        "answer_ranges": sums.ranges,
        "answer_positions": sums.positions,
        "documents": documents,
        "tokens": counts["token"],
        "positions": counts["position"],
        "head_entries": counts["head"],
        "tail_entries": counts["tail"],
    }


def _loaded(columns: ShardColumns) -> ShardColumns:
    """Every column as an array, decoded where the carrier decodes on access."""
    arrays = {name: array[0 : len(array)] for name, array in columns.arrays.items()}
    return ShardColumns(
        document_ids=columns.document_ids,
        checksums=columns.checksums,
        offsets=columns.offsets,
        arrays=arrays,
        answers=columns.answers,
    )
