"""Reading hints: the files beside a cask's shards, mapped when they are first asked for, and proved row by row."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import HintFile, dropped, open_hints, require_hints_of
from logitcask_schemas.cask.location import Location
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.address_space import crowded
from logitcask_schemas.errors import HintsDroppedError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows

MAX_OPEN_FILES: Final = 4096
"""Mapped at once per process."""


class HintReader:
    """The hints of one cask, by number of its shards; for `Cask`, whose methods say what is raised."""

    def __init__(self, location: Location, manifest: CaskManifest, entries: Sequence[ShardEntry]) -> None:
        """Nothing is opened.

        Args:
            location: Of the cask.
            manifest: Of the cask.
            entries: Of its shards, in order.
        """
        self._location = location
        self._spec = manifest.capture.hints
        self._entries = entries
        self._open: dict[int, HintFile] = {}
        self._proved = dict[int, set[int]]()
        """Of each shard, the rows of documents whose hints were proved since their file was opened."""

    @property
    def has_all(self) -> bool:
        """As `Cask.has_hints`."""
        return self._spec is not None and all(entry.hints is not None for entry in self._entries)

    def require_all(self) -> None:
        """As `Cask.require_hints`."""
        self._require_spec()
        for entry in self._entries:
            if entry.hints is None:
                raise HintsDroppedError(dropped(self._location.directory.place, entry))
        self._location.require_hints(list(self._entries))

    def file(self, number: int) -> HintFile:
        """As `Cask.hint_file`."""
        if (file := self._open.get(number)) is not None:
            return file
        entry, spec = self._entries[number], self._require_spec()
        if entry.hints is None:
            raise HintsDroppedError(dropped(self._location.directory.place, entry))
        while self._open and (crowded(entry.hints.bytes) or len(self._open) >= MAX_OPEN_FILES):
            self._open.pop(next(iter(self._open)), None)
        with self._location.held_hints(entry):
            file = self._open[number] = open_hints(self._location.folder, entry, spec)
        self._proved[number] = set()
        return file

    def rows(self, shard: Shard, number: int, row: int, start: int | None, stop: int | None, *, where: str) -> HintRows:
        """The hints of one document, or of a window of it; see `Cask.hints`.

        Args:
            shard: Which holds the document.
            number: Of the shard.
            row: Of the document there.
            start: First position; None for 0.
            stop: One past the last position; None for the document's end.
            where: Names the document in an IndexError.
        """
        file, spec = self.file(number), self._require_spec()
        length = int(shard.token_offsets[row + 1] - shard.token_offsets[row]) - 1
        first, last = start or 0, length if stop is None else stop
        if not 0 <= first < last <= length:
            raise IndexError(
                f"{self._location.folder}: hints of window [{first}, {last}) of {where}, which has {length} positions"
            )
        if row not in (proved := self._proved[number]):
            require_hints_of(shard, file, row, spec)
            proved.add(row)
        rows, extent = file.columns.of(row), shard.extent(row)
        if spec.positions == "last":
            return rows
        return rows.slice(slice(extent.rows_before(first), extent.rows_before(last)))

    def with_columns(self, shard: Shard, number: int) -> ShardColumns:
        """As `Cask.columns_with_hints`, of an open shard."""
        if self._spec is None or self._entries[number].hints is None:
            return shard.columns
        file = self.file(number)
        for row in range(shard.num_documents):
            require_hints_of(shard, file, row, self._spec)
        return replace(shard.columns, hints=file.columns)

    def forget(self, number: int) -> None:
        """Let go of a file whose local copy may be damaged."""
        self._open.pop(number, None)

    def _require_spec(self) -> HintSpec:
        if self._spec is None:
            raise HintsDroppedError(
                f"{self._location.directory.place}: was captured without hints. Capture into another cask, with "
                "--hints (docs/hints.md)"
            )
        return self._spec
