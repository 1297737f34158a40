"""The captured documents of a chunk become a shard, and it is known whose that is, and which of them it holds.

A shard's bytes and name follow from its documents, so a cask does not tell who put it there: the same corpus, captured
by somebody else into the same cask, gives the same shards. So their names are written down in the job's ledger before
they are published. What is in the cask and in the ledger is the job's; all else is somebody else's, whatever it holds.
A job that dies between the two leaves a name without a shard.

    LEDGER/RANDOM      a file for each writer, which may be on another machine: a name a line

A document that somebody else published while the teacher had it is left out of the shard, and is theirs.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.jobs.chunks import OpenChunk


class ShardLedger:
    """The names that writers of one job have written down. `note` is for one thread, `names` for all.

    Args:
        folder: the job's; made with the first name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / secrets.token_hex(8)
        self._is_durable = False

    def note(self, name: str) -> None:
        """Write down, durably, that the shard of this name is about to be published. Raises OSError."""
        if not self._is_durable:
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            # The line begins anew: before it may stand half a name, of a disk that was full.
            file.write(f"\n{name}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        if not self._is_durable:  # also where an earlier name failed after the file was made
            LocalFiles().sync_directory(self.folder)
            LocalFiles().sync_directory(self.folder.parent)
            self._is_durable = True

    def names(self) -> set[str]:
        """Of shards that were about to be published; whether they were, the cask says. Raises OSError."""
        if not self.folder.exists():
            return set()
        lines = (line for path in self.folder.iterdir() for line in path.read_text(errors="replace").split())
        return set(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPublication:
    """What publishing a chunk came to."""

    shard: ShardEntry | None
    """Of this publication; None where there was nothing left to publish."""
    documents: list[int]
    """In the shard, ascending."""
    tokens: int
    """Of these."""
    overtaken: list[int]
    """Captured, and found in the cask: published by somebody else, or by an own try whose answer was lost."""


def publish_chunk(
    entry: OpenChunk,
    tokens: TokenStore,
    writer: CaskWriter,
    *,
    note: Callable[[str], None],
    attempt: Callable[[Callable[[], Any]], Any],
) -> ChunkPublication:
    """Make the documents of a chunk durable as one shard. Safe to repeat.

    Args:
        entry: the chunk, whose documents have all come back.
        tokens: of the corpus.
        writer: of the cask.
        note: hears the shard's name before it is published.
        attempt: does what may be repeated.

    Raises:
        CaskError, OSError: what `attempt` lets through of `CaskWriter.publish`, and of `note`.
    """
    captured = [
        replace(entry.documents[document], answer_ranges_R2=tokens.answers(document))
        for document in sorted(entry.documents)
    ]
    announced = set[str]()

    def announce(name: str) -> None:
        note(name)
        announced.add(name)

    shard: ShardEntry | None = attempt(lambda: writer.publish(captured, announce=announce)) if captured else None
    if shard is not None and shard.name not in announced:
        shard = None  # another writer's, which was first
    held = set[int]() if shard is None else set(entry.documents)
    if shard is not None and shard.documents < len(captured):
        shards: list[tuple[ShardEntry, set[bytes]]] = attempt(
            lambda: writer.shards_with({document.id for document in captured})
        )
        stored = next(ids for each, ids in shards if each.name == shard.name)
        held = {document for document in held if tokens.document_id(document) in stored}
    return ChunkPublication(
        shard=shard,
        documents=sorted(held),
        tokens=sum(len(tokens.tokens(document)) for document in held),
        overtaken=sorted(entry.documents.keys() - held),
    )
