"""Uploaded corpora on disk: one file per content, named by its SHA-256, complete or absent."""

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from logitcask_schemas.cask.storage import files
from logitcask_services.corpora.file_kind import SNIFFED_BYTES, require_lines

HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCorpus:
    """What an upload became."""

    sha256: str
    bytes: int
    lines: int
    """Newlines, plus one where the last line has none."""


class CorpusStorage:
    """The folder of corpora: `<sha256>.jsonl`, and uploads in progress below `incoming/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

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

    def receive(self) -> "CorpusUpload":
        """A new upload; leaving its `with` block without `finish` deletes what was written."""
        return CorpusUpload(self, self._incoming / secrets.token_hex(16))


class CorpusUpload:
    """One upload. Not thread-safe; each call does blocking disk work."""

    def __init__(self, storage: CorpusStorage, temporary: Path) -> None:
        self._storage = storage
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
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, block: bytes | bytearray) -> None:
        """Append bytes, hashing them on the way.

        Raises:
            NotJsonLinesError: The first block is the beginning of a file of another format.
            OSError: The disk is full (ENOSPC).
        """
        if block and not self.bytes:
            require_lines(bytes(block[:SNIFFED_BYTES]))
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(block)
        self._newlines += block.count(b"\n")
        self._ends_open = (bool(block) and block[-1:] != b"\n") or (not block and self._ends_open)
        self.bytes += len(block)

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
        """Make the upload durable under its digest; content that is there already, and whole, is kept as it is."""
        stored = StoredCorpus(
            sha256=self._digest.hexdigest(), bytes=self.bytes, lines=self._newlines + int(self._ends_open)
        )
        target = self._storage.path(stored.sha256)
        if not self._storage.holds(stored.sha256, stored.bytes):
            os.fsync(self._file.fileno())
            files.publish_path(self._temporary, target)
        return stored
