"""A shard's entry, made anew from the shard where the entry file is damaged and no index repeats it."""

import io

from logitcask_schemas.cask.arrow_carrier import ArrowCarrier
from logitcask_schemas.cask.carriers import CARRIERS
from logitcask_schemas.cask.columns import ShardColumns
from logitcask_schemas.cask.layout import SHARDS_NAME
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard_writing import write_shard
from logitcask_schemas.cask.verify import sha256_of
from logitcask_schemas.errors import CaskError
from logitcask_schemas.manifest import ShardEntry


def rebuilt_entry(cask: Cask, name: str) -> ShardEntry | None:
    """What the entry of a shard must have said; None where the shard does not prove itself.

    The name is the proof: it is the hash of the shard's content in Arrow form.
    """
    identity = cask.manifest.identity_digest()
    for carrier in CARRIERS.values():
        path = cask.path / SHARDS_NAME / (name + carrier.suffix)
        try:
            columns = carrier.open(path, cask.layout, identity)
            described = write_shard(ArrowCarrier(), _loaded(columns), cask.layout, identity, io.BytesIO())
        except (CaskError, FileNotFoundError):
            continue
        if described.name == name:
            changes = {"carrier": carrier.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            return ShardEntry.model_validate(described.model_dump() | changes)
    return None


def _loaded(columns: ShardColumns) -> ShardColumns:
    """Every column as an array, decoded where the carrier decodes on access."""
    arrays = {name: array[0 : len(array)] for name, array in columns.arrays.items()}
    return ShardColumns(
        document_ids=columns.document_ids, checksums=columns.checksums, offsets=columns.offsets, arrays=arrays
    )
