"""Which documents of a cask came from which lines of a corpus: the way back to the caller's own names.

One JSON object per line, in corpus order: `custom_id` (the caller's, or null), `line` (from 1), `piece` (from 0, where
a line was split), `document` (the cask's identity of it, SHA-256 in hex) and `tokens`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from logitcask_schemas.cask.storage import files

TEMPORARY = ".part"


class DocumentNames:
    """Writes such a file; it is there whole after `finish`, or not at all."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_suffix(TEMPORARY)
        self._file = self._temporary.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, custom_id: str | None, line: int, piece: int, document: bytes, tokens: int) -> None:
        """One document. Raises OSError where the disk is full."""
        entry = {"custom_id": custom_id, "line": line, "piece": piece, "document": document.hex(), "tokens": tokens}
        self._file.write(json.dumps(entry).encode() + b"\n")

    def finish(self) -> None:
        """Make the file durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        files.publish_path(self._temporary, self._target)


def read_names(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of such a file, in order. Raises OSError."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)
