"""Uploaded corpora on disk: one file per content, named by its SHA-256, complete or absent.

An upload that is gzip, zstd or Parquet is kept aside until it is whole, then becomes the lines inside.
"""

import hashlib
import json
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from logitcask_schemas.cask.storage import files
from logitcask_services.corpora.file_kind import SNIFFED_BYTES, NotJsonLinesError, Packing, packing_of
from logitcask_services.corpora.packed import PackedError, UnpackLimits, unpack

HEAD_BYTES = 1 << 20
MAX_LAYERS = 2
"""Such as a Parquet file that is compressed once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCorpus:
    """What an upload became."""

    sha256: str
    bytes: int
    lines: int
    """Newlines, plus one where the last line has none."""


class CorpusStorage:
    """The folder of corpora: `<sha256>.jsonl`, and uploads in progress below `incoming/`."""

    def __init__(self, folder: Path, limits: UnpackLimits | None = None) -> None:
        self.folder = folder
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        self.limits = limits
        self.publishing = threading.RLock()
        """Held from before a content is published until the database knows it, and around its deletion."""

    def path(self, sha256: str) -> Path:
        """Where the content with this digest lies."""
        return self.folder / f"{sha256}.jsonl"

    def holds(self, sha256: str, size: int) -> bool:
        """Whether the content with this digest and of this many bytes lies there whole."""
        path = self.path(sha256)
        return path.is_file() and path.stat().st_size == size

    def sweep(self) -> None:
        """Delete what interrupted uploads left behind. Call before any upload starts."""
        for leftover in self._incoming.iterdir():
            leftover.unlink()

    def sweep_orphans(self, known: set[str]) -> list[str]:
        """Delete contents that no corpus has (of these digests), such as a crash leaves. Returns theirs."""
        orphans = [path for path in self.folder.glob("*.jsonl") if path.stem not in known]
        for path in orphans:
            path.unlink()
        return [path.stem for path in orphans]

    def receive(self, layer: int = 0) -> "CorpusUpload":
        """A new upload; leaving its `with` block without `finish` deletes what was written."""
        return CorpusUpload(self, self._incoming / secrets.token_hex(16), layer)


class CorpusUpload:
    """One upload. Not thread-safe; each call does blocking disk work."""

    def __init__(self, storage: CorpusStorage, temporary: Path, layer: int = 0) -> None:
        self._storage = storage
        self._layer = layer
        self.packing: Packing | None = None
        """As what the upload is packed; known from its first block."""
        self._inside: CorpusUpload | None = None
        self._temporary = temporary
        self._file = temporary.open("x+b", buffering=0)
        self._digest = hashlib.sha256()
        self._newlines = 0
        self._ends_open = False
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._inside is not None:
            self._inside.__exit__(kind, error, trace)
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, block: bytes | bytearray) -> None:
        """Append bytes, hashing them on the way.

        Raises:
            NotJsonLinesError: The first block is the beginning of a file of another format.
            OSError: The disk is full (ENOSPC).
        """
        if block and not self.bytes:
            self.packing = packing_of(bytes(block[:SNIFFED_BYTES]))
            if self.packing is not None and self._layer == MAX_LAYERS:
                raise NotJsonLinesError(
                    f"the corpus is packed more than {MAX_LAYERS} times; unpack it before you send it"
                )
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(block)
        self._newlines += block.count(b"\n")
        self._ends_open = (bool(block) and block[-1:] != b"\n") or (not block and self._ends_open)
        self.bytes += len(block)

    def sha256(self) -> str:
        """Of what was written so far, as it was sent: in hex."""
        return self._digest.hexdigest()

    def unpack(self) -> None:
        """Make lines of what is packed; nothing where it is not. Call before `finish`.

        Raises:
            PackedError: It is damaged, empty, unpacks to too much, or has no column that a corpus is made of.
            NotJsonLinesError: There is another format inside.
            OSError: The disk is full (ENOSPC).
        """
        if self.packing is None or self._inside is not None:
            return
        limits, unpacked = self._storage.limits or UnpackLimits(), 0
        self._inside = self._storage.receive(self._layer + 1)
        for block in unpack(self._temporary, self.packing):
            unpacked += len(block)
            limits.require(self.bytes, unpacked, self._storage.folder)
            self._inside.write(block)
        if not unpacked:
            raise PackedError("empty_body", f"there is nothing in the {self.packing} upload; send JSON lines, or rows")
        self._temporary.unlink()
        self._inside.unpack()

    def lost_its_lines(self) -> bool:
        """Whether all is one line that begins with two JSON objects, one right behind the other."""
        if self._newlines > int(not self._ends_open):
            return False
        head = os.pread(self._file.fileno(), HEAD_BYTES, 0).decode(errors="replace")
        try:
            _, end = json.JSONDecoder().raw_decode(head.lstrip())
        except (ValueError, RecursionError):
            return False
        return head.lstrip()[end:].lstrip().startswith("{")

    def finish(self) -> StoredCorpus:
        """Make the upload durable under its digest; content that is there already, and whole, is kept as it is.

        Raises what `unpack` raises, where that has not been called.
        """
        self.unpack()
        if self._inside is not None:
            return self._inside.finish()
        stored = StoredCorpus(
            sha256=self._digest.hexdigest(), bytes=self.bytes, lines=self._newlines + int(self._ends_open)
        )
        target = self._storage.path(stored.sha256)
        if not self._storage.holds(stored.sha256, stored.bytes):
            os.fsync(self._file.fileno())
            files.publish_path(self._temporary, target)
        return stored
