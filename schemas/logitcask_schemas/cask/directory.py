"""The list of shards: entry files are the truth, index.json repeats them so that opening reads one file.

The shards of a cask are those of the index and of every entry file beside it. An entry file stays when the index
takes it up: the index can be deleted at any time and is rebuilt by the next writer.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import FORMAT_VERSION, CaskManifest, ShardEntry, seal, unseal
from logitcask_schemas.cask.storage.files import FileOperations, publish_file, read_document, unreadable
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError

_ENTRIES: Final = TypeAdapter(list[ShardEntry])
_RESTORE: Final = "Restore it from a copy of the cask"
_DROP_INDEX: Final = "It only repeats the entry files: delete it, the next writer makes it anew"
_MOST_BYTES: Final = {"manifest": 64 << 20, "entry": 64 << 10, "index": 2 << 30}
"""Far more than any of them has; an index of this size lists six million shards."""
_LISTINGS: Final = 10
"""Times that a reader lists a folder of which a repair removes entries meanwhile."""


class _Index(BaseModel):
    """index.json."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["logitcask-index"] = "logitcask-index"
    version: Literal[1] = FORMAT_VERSION
    entries: list[ShardEntry]


def write_manifest(files: FileOperations, cask: Path, manifest: CaskManifest) -> None:
    """Publish cask.json."""
    _publish_document(files, cask, MANIFEST_NAME, manifest_bytes(manifest))


def read_manifest(cask: Path) -> CaskManifest:
    """cask.json, validated.

    Raises:
        CaskNotFoundError: The folder has none.
        CaskCorruptionError: It is damaged.
        CaskError: It is of a newer version, or not logitcask's.
    """
    path = cask / MANIFEST_NAME
    try:
        data = read_document(path, _MOST_BYTES["manifest"])
    except (FileNotFoundError, NotADirectoryError) as error:
        unfinished = (
            "It holds shards: an export into it has not finished (run it again), or the file was lost"
            if (cask / SHARDS_NAME).is_dir()
            else f"A cask is the folder that holds {MANIFEST_NAME}"
        )
        raise CaskNotFoundError(f"{cask}: not a cask (it has no {MANIFEST_NAME}). {unfinished}.") from error
    return parse_manifest(data, where=path)


def parse_manifest(data: bytes, *, where: Path | str) -> CaskManifest:
    """The bytes of a cask.json, validated; errors as `read_manifest`."""
    document = unseal(data, where=where, advice=_RESTORE)
    _require_version(where, document, "logitcask")
    try:
        return CaskManifest.model_validate(document)
    except ValidationError as error:
        raise CaskCorruptionError(f"{where}: {_first_fault(error)}. {_RESTORE}.") from error


def manifest_bytes(manifest: CaskManifest) -> bytes:
    """What cask.json holds."""
    return seal(manifest.model_dump(mode="json"))


def write_entry(files: FileOperations, cask: Path, entry: ShardEntry) -> None:
    """Publish a shard's entry; from this rename on the shard is part of the cask."""
    _publish_document(files, cask / SHARDS_NAME, entry.name + ENTRY_SUFFIX, entry_bytes(entry))


def read_entry(cask: Path, name: str) -> ShardEntry:
    """One entry file, validated.

    Raises:
        CaskNotFoundError: There is none (any more).
        CaskCorruptionError: It is damaged, or has another name than its own.
    """
    path = cask / SHARDS_NAME / (name + ENTRY_SUFFIX)
    try:
        data = read_document(path, _MOST_BYTES["entry"])
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise CaskCorruptionError(f"{path}: is a link to nothing. {_RESTORE}.") from error
        raise CaskNotFoundError(f"{path}: the entry of shard {name} is missing. {_RESTORE}.") from error
    return parse_entry(data, where=path, name=name)


def parse_entry(data: bytes, *, where: Path | str, name: str | None = None) -> ShardEntry:
    """The bytes of an entry file, validated; CaskCorruptionError when damaged, or not of the shard of this name."""
    try:
        entry = ShardEntry.model_validate(unseal(data, where=where, advice=_RESTORE))
    except ValidationError as error:
        raise CaskCorruptionError(f"{where}: {_first_fault(error)}. {_RESTORE}.") from error
    if name is not None and entry.name != name:
        raise CaskCorruptionError(f"{where}: holds the entry of shard {entry.name}. {_RESTORE}.")
    return entry


def entry_bytes(entry: ShardEntry) -> bytes:
    """What an entry file holds."""
    return seal(entry.model_dump(mode="json"))


def write_index(files: FileOperations, cask: Path, entries: Iterable[ShardEntry]) -> None:
    """Publish index.json with these entries, sorted by name."""
    _publish_document(files, cask, INDEX_NAME, index_bytes(entries))


def index_bytes(entries: Iterable[ShardEntry]) -> bytes:
    """What index.json holds for these entries."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    return seal(_Index(entries=ordered).model_dump(mode="json"))


def read_index(cask: Path) -> dict[str, ShardEntry]:
    """The entries of index.json by name; none where there is no index yet."""
    path = cask / INDEX_NAME
    try:
        data = read_document(path, _MOST_BYTES["index"])
    except FileNotFoundError:
        return {}
    return parse_index(data, where=path)


def parse_index(data: bytes, *, where: Path | str) -> dict[str, ShardEntry]:
    """The entries in the bytes of an index.json by name; CaskCorruptionError when damaged."""
    document = unseal(data, where=where, advice=_DROP_INDEX)
    _require_version(where, document, "logitcask-index")
    try:
        return {entry.name: entry for entry in _Index.model_validate(document).entries}
    except ValidationError as error:
        raise CaskCorruptionError(f"{where}: {_first_fault(error)}. {_DROP_INDEX}.") from error


def entry_names(cask: Path) -> list[str]:
    """Names of all shards that have an entry file, unread.

    Raises:
        CaskNotFoundError: The cask has lost its folder of shards.
    """
    try:
        with os.scandir(cask / SHARDS_NAME) as listing:
            return [
                file.name.removesuffix(ENTRY_SUFFIX)
                for file in listing
                if file.name.endswith(ENTRY_SUFFIX) and not file.name.startswith(".")
            ]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CaskNotFoundError(f"{cask / SHARDS_NAME}: the folder of shards is missing. {_RESTORE}.") from error
    except OSError as error:
        raise unreadable(cask / SHARDS_NAME, error) from error


def read_entries(cask: Path) -> tuple[dict[str, ShardEntry], dict[str, ShardEntry]]:
    """Entries that the index holds, and those that only have an entry file.

    The index is read after the listing: a compaction in between then leaves an entry in both, never in neither. An
    entry that is gone after the listing was taken away by a repair, which had published what was sound of its shard
    before: another listing shows that.
    """
    for attempt in range(_LISTINGS):
        names = entry_names(cask)
        indexed = read_index(cask)
        try:
            return indexed, {name: read_entry(cask, name) for name in names if name not in indexed}
        except CaskNotFoundError:
            if attempt == _LISTINGS - 1:
                raise
    raise AssertionError("unreachable")


def require_identity(cask: Path | str, entries: Iterable[ShardEntry], manifest: CaskManifest) -> None:
    """Raise CaskCorruptionError on an entry that was published into another cask."""
    identity = manifest.identity_digest()
    for entry in entries:
        if entry.identity != identity:
            raise CaskCorruptionError(
                f"{cask}/{SHARDS_NAME}/{entry.name}{ENTRY_SUFFIX}: foreign shard: its identity is {entry.identity}, "
                f"this cask's is {identity}. Move the shard and its entry back to the cask they came from."
            )


def _publish_document(files: FileOperations, directory: Path, name: str, document: bytes) -> None:
    def write(file: Any) -> str:
        file.write(document)
        return name

    publish_file(files, directory, write)


def _require_version(path: Path | str, document: dict[str, Any], expected: str) -> None:
    kind, version = document.get("format"), document.get("version")
    if kind != expected:
        raise CaskError(f"{path}: format is {json.dumps(kind)}, expected {json.dumps(expected)}")
    if version != FORMAT_VERSION:
        raise CaskError(
            f"{path}: format version {json.dumps(version)}; this program reads version {FORMAT_VERSION}. "
            "Upgrade logitcask to read it."
        )


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'document'}: {fault['msg']}"
