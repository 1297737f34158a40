"""What a cask in an object store says of itself: manifest, index, and the entries that the index does not have yet.

Three requests where the index has everything: two small objects and a listing (one for every thousand objects).
"""

import hashlib
from dataclasses import dataclass

from logitcask_schemas.cask.index import parse_entry, parse_index, parse_manifest, require_identity
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.remote_store import RemoteStore
from logitcask_schemas.errors import CaskNotFoundError
from logitcask_schemas.manifest import CaskManifest, ShardEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """A cask as it was when it was looked at."""

    manifest: CaskManifest
    entries: list[ShardEntry]
    """Ascending by name."""
    index_version: str | None
    """Digest of the index; None where there is none."""


def take_inventory(store: RemoteStore) -> Inventory:
    """Read it, and believe it: whatever is damaged is an error (`remote_verify` reports it instead).

    Raises:
        CaskNotFoundError: There is no cask.
        CaskCorruptionError: Manifest, index or an entry is damaged, or a shard is foreign.
        CaskError: The store does not answer.
    """
    manifest = parse_manifest(read_manifest_of(store), where=f"{store.url}/{MANIFEST_NAME}")
    # The index after the listing: what is folded into it in between is then in both, never in neither.
    names = entry_names_of(store.sizes(SHARDS_NAME))
    try:
        index = store.read(INDEX_NAME)
    except CaskNotFoundError:
        version, entries = None, dict[str, ShardEntry]()
    else:
        version = hashlib.sha256(index).hexdigest()[:16]
        entries = parse_index(index, where=f"{store.url}/{INDEX_NAME}")
    loose = {f"{SHARDS_NAME}/{name}{ENTRY_SUFFIX}": name for name in names if name not in entries}
    for path, content in store.read_all(list(loose)).items():
        entries[loose[path]] = parse_entry(content, where=f"{store.url}/{path}", name=loose[path])
    require_identity(store.url, entries.values(), manifest)
    return Inventory(
        manifest=manifest, entries=sorted(entries.values(), key=lambda entry: entry.name), index_version=version
    )


def read_manifest_of(store: RemoteStore) -> bytes:
    """The bytes of a store's cask.json; CaskNotFoundError where there is none."""
    try:
        return store.read(MANIFEST_NAME)
    except CaskNotFoundError as error:
        raise CaskNotFoundError(
            f"{store.url}: not a cask (it has no {MANIFEST_NAME}). A cask is the folder that holds {MANIFEST_NAME}; an "
            "export that has not finished has none yet."
        ) from error


def entry_names_of(sizes: dict[str, int]) -> list[str]:
    """Names of the shards that have an entry, among the names of a folder of shards."""
    return sorted(name.removesuffix(ENTRY_SUFFIX) for name in sizes if name.endswith(ENTRY_SUFFIX) and name[0] != ".")
