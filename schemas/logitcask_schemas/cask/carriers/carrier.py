"""A carrier: one file format that stores the logical arrays of a shard.

A shard is one file in every carrier, so that one size and one SHA-256 in its entry prove every byte, one rename
publishes it and one request fetches it. Formats that are folders by nature (Zarr) go into an archive.
"""

from pathlib import Path
from typing import Any, Protocol

from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import RecordLayout


class ByteSink(Protocol):
    """Where a carrier's bytes go: the open file, and its hash on the way."""

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        ...

    def write(self, content: Any, /) -> int:
        """Take all of a bytes-like object and return its size in bytes."""
        ...


class Carrier(Protocol):
    """Stores `ShardColumns` and gives them back byte for byte.

    Equal columns give equal files as long as the libraries that compress and frame them are the same; a shard's name
    does not depend on that, it is taken from the Arrow form (see `shard_writing`).
    """

    @property
    def name(self) -> str:
        """As in `ShardEntry.carrier`."""
        ...

    @property
    def suffix(self) -> str:
        """Ends the names of the shards' files."""
        ...

    @property
    def max_open(self) -> int:
        """Most shards of this kind that one process should keep open: many where files are mapped, few where not."""
        ...

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """Write a whole shard to an open file.

        Args:
            columns: All of the layout's.
            layout: Names, dtypes and levels of the columns.
            identity: `CaskManifest.identity_digest`, stored inside the file.
            file: Open for writing, only ever appended to.

        Raises:
            CaskError: The format cannot hold a shard of this size.
            OSError: From the file, unchanged.
        """
        ...

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """Open a shard of this format, without reading its bulk where the format allows.

        Args:
            path: The file.
            layout: As in `write`.
            identity: As in `write`.
            content: The whole file, where it was read before; None: the file is mapped or read here. A bad sector or a
                file that gets shorter is an error to a read, and the end of the process to a mapping: whoever expects
                damage reads first.

        Raises:
            CaskCorruptionError: Not a file of this format, not this layout, or of another identity.
            OSError: From the file system, unchanged.
        """
        ...
