"""Where a repair puts what it takes out: a folder of its own below quarantine/, which readers ignore."""

import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from logitcask_schemas.cask.files import FileOperations, clear_errors, link_or_copy, publish_file
from logitcask_schemas.cask.layout import QUARANTINE_NAME

REQUEUE_NAME: Final = "requeue.jsonl"
LOST_NAME: Final = "lost.jsonl"


class Quarantine:
    """One repair's folder. Every method raises CaskWriteError where the file system refuses."""

    def __init__(self, files: FileOperations, path: Path) -> None:
        """Use `create`."""
        self.path = path
        self._files = files

    @classmethod
    def create(cls, files: FileOperations, cask: Path) -> Self:
        """Make quarantine/<time>-<random>, durably."""
        folder = cask / QUARANTINE_NAME / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        with clear_errors(cask):
            files.make_directory(folder.parent)
            files.sync_directory(cask)
            files.make_directory(folder)
            files.sync_directory(folder.parent)
        return cls(files, folder)

    def keep(self, paths: Iterable[Path]) -> None:
        """Give files a second name here; what is no file is left out."""
        for path in paths:
            if path.is_file():
                link_or_copy(self._files, path, self.path, self._free_name(path.name))

    def write_lists(self, requeue: Iterable[tuple[str, list[int]]], lost: Iterable[str]) -> None:
        """Write the corpus of documents to capture again, and the ids of those whose tokens are lost too."""
        self._write_lines(REQUEUE_NAME, ({"custom_id": identity, "input_ids": ids} for identity, ids in requeue))
        self._write_lines(LOST_NAME, ({"document_id": identity} for identity in lost))

    def take_away(self, paths: list[Path]) -> None:
        """Take these names, all of one folder, away: kept files lose theirs, anything else moves here."""
        if not paths:
            return
        with clear_errors(paths[0].parent):
            for path in paths:
                if path.is_file() or not (path.exists() or path.is_symlink()):
                    self._files.unlink(path)
                else:
                    self._files.rename(path, self.path / self._free_name(path.name))
            self._files.sync_directory(self.path)
            self._files.sync_directory(paths[0].parent)

    def _free_name(self, name: str) -> str:
        """This name, or one with a number before it where this folder has it already, or will."""
        taken = {REQUEUE_NAME, LOST_NAME, *(file.name for file in self.path.iterdir())}
        return next(free for free in (name, *(f"{n}-{name}" for n in range(1, len(taken) + 2))) if free not in taken)

    def _write_lines(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        def write(file: BinaryIO) -> str:
            for line in lines:
                file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            return name

        publish_file(self._files, self.path, write)
