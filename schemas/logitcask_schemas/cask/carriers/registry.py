"""Which carriers there are, by the name a shard's entry gives."""

from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.packed import PackedCarrier
from logitcask_schemas.cask.carriers.parquet import ParquetCarrier
from logitcask_schemas.cask.carriers.zarr import ZarrCarrier
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.errors import CaskError

CARRIERS: Final[dict[str, Carrier]] = {
    carrier.name: carrier for carrier in (ArrowCarrier(), ZarrCarrier(), ParquetCarrier(), PackedCarrier())
}


def carrier_named(name: str) -> Carrier:
    """The carrier a user asks for; CaskError when there is none of that name."""
    if name not in CARRIERS:
        raise CaskError(f"there is no carrier {name!r}; choose one of {', '.join(CARRIERS)}")
    return CARRIERS[name]


def carrier_of(entry: ShardEntry) -> Carrier:
    """The carrier of a shard; CaskError when it is one this version does not know."""
    try:
        return CARRIERS[entry.carrier]
    except KeyError:
        raise CaskError(
            f"shard {entry.name} is stored as {entry.carrier!r}; this version reads {sorted(CARRIERS)}. "
            "Upgrade logitcask."
        ) from None


def shard_path(cask: Path, entry: ShardEntry) -> Path:
    """Where a shard's file lies."""
    return cask / SHARDS_NAME / (entry.name + carrier_of(entry).suffix)
