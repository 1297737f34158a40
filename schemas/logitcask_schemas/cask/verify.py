"""Proving a cask: every byte against its shard's SHA-256, every document against the format's rules."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from logitcask_schemas.cask.carriers import CARRIERS
from logitcask_schemas.cask.index import entry_names, read_entry
from logitcask_schemas.cask.layout import SHARDS_NAME
from logitcask_schemas.cask.opening import open_shard
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import CaskError, InvalidRecordError
from logitcask_schemas.manifest import ShardEntry
from logitcask_schemas.records import document_id

_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What `verify` found about one shard."""

    entry: ShardEntry
    problems: list[str] = field(default_factory=list)
    """One sentence each; empty for a sound shard."""
    lost_documents: list[str] = field(default_factory=list)
    """Ids (hex) of documents that cannot be trusted, as far as they can still be named."""


def verify_shards(cask: Cask, *, max_seconds: float | None = None, seed: int | None = None) -> Iterator[ShardReport]:
    """Verify shard after shard.

    Args:
        cask: An open cask.
        max_seconds: Stop before the first shard that would start after this time; None for all.
        seed: Visit shards in this random order, so that time-limited runs cover all of them in the long run; None for
            the order of the cask.

    Yields:
        One report per visited shard.
    """
    order = list(cask.entries)
    if seed is not None:
        random.Random(seed).shuffle(order)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    for entry in order:
        if deadline is not None and time.monotonic() >= deadline:
            return
        yield verify_shard(cask, entry)


def verify_shard(cask: Cask, entry: ShardEntry) -> ShardReport:
    """Verify one shard completely: entry file, size, SHA-256, structure, then document by document."""
    report = ShardReport(entry=entry)
    try:
        if read_entry(cask.path, entry.name) != entry:
            report.problems.append(f"shard {entry.name}: entry file and index disagree")
    except FileNotFoundError:
        report.problems.append(f"shard {entry.name}: its entry file is missing, only the index knows it")
    except CaskError as error:
        report.problems.append(str(error))
    try:
        # Opened anew, not through the cask's cache: what is proved is the file as it is now.
        shard = open_shard(cask.path, entry, cask.layout)
        if (found := _sha256(shard)) != entry.sha256:
            report.problems.append(f"{shard.path}: SHA-256 should be {entry.sha256}, it is {found}")
    except CaskError as error:
        report.problems.append(str(error))
        return report
    vocab_size = cask.manifest.teacher.vocab_size
    for row in range(shard.num_documents):
        try:
            shard.verify(row)
            _require_valid(shard, row, vocab_size)
        except (CaskError, InvalidRecordError) as error:
            report.problems.append(str(error))
            report.lost_documents.append(shard.document_ids[row].tobytes().hex())
    return report


def strangers(cask: Cask) -> list[str]:
    """Files among the shards that no entry names: unfinished publications, or not the cask's at all."""
    known = {entry.name for entry in cask.entries} | set(entry_names(cask.path))
    suffixes = {carrier.suffix for carrier in CARRIERS.values()} | {".json"}
    with os.scandir(cask.path / SHARDS_NAME) as listing:
        return sorted(
            file.name
            for file in listing
            if file.name.partition(".")[0] not in known or f".{file.name.partition('.')[2]}" not in suffixes
        )


def _require_valid(shard: Shard, row: int, vocab_size: int) -> None:
    document = shard.read(row)
    stored, computed = shard.document_ids[row].tobytes(), document_id(document.token_ids_L)
    where = f"{shard.path}: document {row} ({stored.hex()[:16]})"
    if stored != computed:
        raise CaskError(f"{where}: its token ids give the id {computed.hex()}")
    document.check(vocab_size, where=where)


def _sha256(shard: Shard) -> str:
    digest = hashlib.sha256()
    with shard.path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
