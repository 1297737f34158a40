"""Proving the files of hints beside the shards, and saving what they hold when a shard is rewritten."""

import hashlib
from dataclasses import replace

from logitcask_schemas.cask.directory import LocalDirectory, read_entry
from logitcask_schemas.cask.format.columns import Row
from logitcask_schemas.cask.format.hint_columns import HintColumns
from logitcask_schemas.cask.format.shard_entry import HintsFile, ShardEntry
from logitcask_schemas.cask.hint_file import hints_path, read_hints, require_hints_of
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import open_regular
from logitcask_schemas.errors import CaskError, CaskNotFoundError, CaskReadError, InvalidRecordError

_BLOCK = 1 << 20


def hint_problems(cask: Cask, entry: ShardEntry, shard: Shard) -> tuple[list[str], int | None]:
    """What is wrong with the hints of a sound shard; every byte of their file is read.

    Returns:
        One sentence each, and the width of the teacher's vectors, where the hints are sound.

    Raises:
        CaskReadError: The operating system refuses to read what may be sound.
    """
    spec = cask.manifest.capture.hints
    if entry.hints is None:
        return [], None
    if spec is None:
        return [f"shard {entry.name}: its entry names a file of hints, but the cask's capture spec has none"], None
    try:
        file = read_hints(cask.path, entry, spec)
        for row in range(shard.num_documents):
            require_hints_of(shard, file, row, spec)
    except CaskReadError:
        raise
    except CaskError as error:
        if isinstance(error, CaskNotFoundError) and _are_dropped(cask, entry.name):
            return [], None
        return [str(error)], None
    return [], file.columns.rows.width


def _are_dropped(cask: Cask, name: str) -> bool:
    """Whether the entry says by now that the shard has no hints."""
    try:
        return read_entry(LocalDirectory(path=cask.path), name).hints is None
    except CaskError:
        return False


def with_hints(rows: list[Row], cask: Cask, entry: ShardEntry) -> list[Row]:
    """Salvaged documents of a shard with their hints, or as they are where the hints of one of them are not sound.

    Args:
        rows: Proved documents.
        cask: That they belong to.
        entry: Of the damaged shard.

    Raises:
        CaskReadError: The operating system refuses, which says nothing about the file.
    """
    spec = cask.manifest.capture.hints
    if spec is None or entry.hints is None:
        return rows
    try:
        file = read_hints(cask.path, entry, spec)
    except CaskReadError:
        raise
    except CaskError:
        return rows
    numbers = {identity.tobytes(): row for row, identity in enumerate(file.document_ids)}
    joined = list[Row]()
    for columns, at in rows:
        number = numbers.get(columns.document_ids[at].tobytes())
        if number is None:
            return rows
        positions = int(columns.offsets["position"][at + 1] - columns.offsets["position"][at])
        hints = HintColumns.gathered([(file.columns, number)])
        try:
            file.verify(number)
            file.columns.of(number).check(spec, positions, where=str(file.path))
        except (CaskError, InvalidRecordError):
            return rows
        # Salvaged documents are each alone in their columns.
        joined.append((replace(columns, hints=hints), at))
    return joined


def rebuilt_hints(cask: Cask, entry: ShardEntry) -> ShardEntry:
    """The entry of a shard that proves itself, with the file of hints that lies beside it, which it does not prove.

    Raises:
        CaskReadError: The operating system refuses.
    """
    path, digest, size = hints_path(cask.path, entry), hashlib.sha256(), 0
    if cask.manifest.capture.hints is None or not path.is_file():
        return entry
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return entry.model_copy(update={"hints": HintsFile(bytes=size, sha256=digest.hexdigest())}) if size else entry
