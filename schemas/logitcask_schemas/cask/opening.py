"""Opening a shard that an entry names, with errors that say what is wrong with it and what to do."""

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.packed import PackedCarrier
from logitcask_schemas.cask.carriers.registry import carrier_of, shard_path
from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import SHARDS_NAME, RecordLayout
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.lazy_shard import LazyShard
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import open_regular, read_whole, size_of, unreadable
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError

_MEND = (
    "Restore the file from a copy of the cask, or run `logitcask cask repair`, which keeps what is sound and lists the "
    "documents to capture again; where a repair has just taken the shard away, open the cask anew"
)

_SMALL: Final = 1 << 17
"""Bytes."""


def require_shards(cask: Path, entries: Iterable[ShardEntry]) -> None:
    """Require of every shard that its file is there in full size; lists the folder once, opens nothing.

    Raises:
        CaskNotFoundError: A shard's file, or the folder, is gone.
        CaskCorruptionError: A shard's file has another size.
        CaskReadError: The operating system refuses.
        CaskError: A carrier this version does not know.
    """
    try:
        with os.scandir(cask / SHARDS_NAME) as listing:
            files = {file.name: file for file in listing}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CaskNotFoundError(f"{cask / SHARDS_NAME}: the folder of shards is missing. {_MEND}.") from error
    except OSError as error:
        raise unreadable(cask / SHARDS_NAME, error) from error
    for entry in entries:
        path = shard_path(cask, entry)
        try:
            size = files[path.name].stat().st_size
        except (KeyError, FileNotFoundError) as error:
            raise _missing(path, entry) from error
        except OSError as error:
            raise unreadable(path, error) from error
        _require_size(path, entry, size)


def open_shard(cask: Path, entry: ShardEntry, layout: RecordLayout) -> Shard:
    """Open one shard; bulk data is mapped, not read.

    Raises:
        CaskNotFoundError: Its file is gone.
        CaskCorruptionError: Its file has another size, is no shard, is foreign, or disagrees with the entry.
        CaskReadError: The operating system refuses, which says nothing about the shard.
        CaskError: A carrier this version does not know.
    """
    path = shard_path(cask, entry)
    try:
        _require_size(path, entry, size_of(path))
        if isinstance(carrier := carrier_of(entry), PackedCarrier):
            with _system_explained(path):
                file = carrier.open_file(path, layout, entry.identity)
            return LazyShard(path, entry, layout, file)
        columns = open_columns(path, carrier, layout, entry.identity)
    except CaskError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(path, entry) from error
    return Shard(path, entry, layout, columns)


def read_shard(cask: Path, entry: ShardEntry, layout: RecordLayout) -> tuple[Shard, str]:
    """Read one shard into memory, and open it there; for whoever expects damage, see `Carrier.open`.

    Returns:
        The shard, and the SHA-256 (hex) of what was read.

    Raises:
        CaskNotFoundError, CaskCorruptionError, CaskReadError, CaskError: As `open_shard`.
    """
    path, digest = shard_path(cask, entry), hashlib.sha256()
    try:
        _require_size(path, entry, size_of(path))
        content = read_whole(path, entry.bytes, digest.update)
        _require_size(path, entry, len(content))
        columns = open_columns(path, carrier_of(entry), layout, entry.identity, content.data)
    except CaskError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(path, entry) from error
    return Shard(path, entry, layout, columns), digest.hexdigest()


def open_documents(cask: Path, entry: ShardEntry, layout: RecordLayout) -> ShardDocuments:
    """Ids and lengths of one shard's documents, copied: the file need not stay mapped.

    Of an Arrow file, packed or not, only the framing, the ids and what tells the lengths are looked at, in less than
    half the time that opening the whole shard takes; damage elsewhere shows when the shard is opened.

    Raises:
        CaskNotFoundError, CaskCorruptionError, CaskReadError, CaskError: As `open_shard`.
    """
    carrier, path = carrier_of(entry), shard_path(cask, entry)
    if not isinstance(carrier, ArrowCarrier | PackedCarrier):
        documents = open_shard(cask, entry, layout).documents
        return ShardDocuments(ids=documents.ids.copy(), lengths=documents.lengths)
    try:
        with open_regular(path) as file:
            _require_size(path, entry, os.fstat(file.fileno()).st_size)
            # Mapping takes longer than reading what is small.
            small = entry.bytes <= _SMALL
            content = memoryview(file.read() if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        documents = carrier.open_documents(path, layout, entry.identity, content)
    except OSError as error:
        if isinstance(error, CaskError):
            raise
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise _missing(path, entry) from error
        raise unreadable(path, error) from error
    counts, announced = (len(documents.ids), int(documents.lengths.sum())), (entry.documents, entry.tokens)
    if counts != announced:
        raise CaskCorruptionError(
            f"{path}: holds {counts} documents and tokens; its entry says {announced}. Run `logitcask cask verify`."
        )
    return ShardDocuments(ids=documents.ids.copy(), lengths=documents.lengths)


def open_columns(
    path: Path, carrier: Carrier, layout: RecordLayout, identity: str, content: memoryview | None = None
) -> ShardColumns:
    """Open a file as a shard of this carrier.

    Args:
        path: The file.
        carrier: Its format.
        layout: Of the cask.
        identity: Of the cask.
        content: See `Carrier.open`.

    Raises:
        FileNotFoundError, NotADirectoryError: There is none.
        CaskCorruptionError: It is no such shard.
        CaskReadError: The operating system refuses, which says nothing about the shard.
    """
    with _system_explained(path):
        return carrier.open(path, layout, identity, content)


@contextmanager
def _system_explained(path: Path) -> Iterator[None]:
    """Refusals of the operating system as ours, but for files that are not there."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (CaskError, FileNotFoundError, NotADirectoryError)):
            raise
        raise unreadable(path, error) from error


def _require_size(path: Path, entry: ShardEntry, size: int) -> None:
    if size != entry.bytes:
        raise CaskCorruptionError(
            f"{path}: shard {entry.name} should have {entry.bytes} bytes, it has {size}. {_MEND}."
        )


def _missing(path: Path, entry: ShardEntry) -> CaskNotFoundError:
    return CaskNotFoundError(
        f"{path}: shard {entry.name} of {entry.bytes} bytes with {entry.documents} documents is missing. {_MEND}."
    )
