"""Parts of uploads on disk: `uploads/<upload id>/<part id>`, each whole or absent."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from logitcask_schemas.cask.storage import files

TEMPORARY = ".part"
BLOCK_BYTES = 1 << 20


class PartStorage:
    """The folder of uploads in parts. Names are those that the service itself gives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def receive(self, upload_id: str) -> "IncomingPart":
        """A new part; leaving its `with` block without `finish` deletes what was written."""
        folder = self._folder / upload_id
        folder.mkdir(exist_ok=True)
        return IncomingPart(folder, f"part-{secrets.token_hex(12)}")

    def blocks(self, upload_id: str, part_ids: Sequence[str]) -> Iterator[bytes]:
        """The bytes of some parts, one part after the other."""
        for part_id in part_ids:
            with (self._folder / upload_id / part_id).open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block

    def drop(self, upload_id: str) -> None:
        """Delete all parts of an upload."""
        shutil.rmtree(self._folder / upload_id, ignore_errors=True)

    def drop_part(self, upload_id: str, part_id: str) -> None:
        """Delete a part that the database does not know."""
        (self._folder / upload_id / part_id).unlink(missing_ok=True)

    def sweep(self, keep: Mapping[str, set[str]]) -> None:
        """Delete everything but these parts of these uploads, such as a crash leaves. Call before any upload starts."""
        for folder in self._folder.iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder)
                continue
            for path in folder.iterdir():
                if path.name not in keep[folder.name]:
                    path.unlink()


class IncomingPart:
    """One part on its way. Not thread-safe; each call does blocking disk work."""

    def __init__(self, folder: Path, part_id: str) -> None:
        self.id = part_id
        self.bytes = 0
        self._target = folder / part_id
        self._temporary = folder / f"{part_id}{TEMPORARY}"
        self._file = self._temporary.open("x+b", buffering=0)
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, block: bytes | bytearray) -> None:
        """Append bytes, hashing them on the way. Raises OSError where the disk is full."""
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(block)
        self.bytes += len(block)

    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Make the part durable under its name."""
        os.fsync(self._file.fileno())
        files.publish_path(self._temporary, self._target)
