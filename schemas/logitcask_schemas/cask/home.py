"""Where a writer publishes: a local folder, or a folder of an object store. Each has its own way to be atomic."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.directory import Listing
from logitcask_schemas.cask.documents import DocumentTable, ShardDocuments
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.publication import Announce
from logitcask_schemas.record.hint_spec import HintSpec


class Home(Protocol):
    """What a writer needs of the place where its cask lies.

    Errors of all methods, beside what they say: CaskWriteError where a file system refuses, StoreError where a store
    does not answer, CaskCorruptionError and CaskNotFoundError where what is there is damaged.
    """

    @property
    def place(self) -> str:
        """Folder or URL, for people."""
        ...

    def prepare(self) -> None:
        """Make what must be there before anything else. Raises CaskError where something else is in the way."""
        ...

    def begin(self, make: Callable[[], CaskManifest]) -> CaskManifest:
        """The cask's manifest: the one that is there, or a new one, which is then published. Call inside `exclusive`.

        Raises:
            CaskError: There are shards, but no manifest.
        """
        ...

    def exclusive(self) -> AbstractContextManager[list[str] | None]:
        """Keep out whoever would be in the way of a publication.

        Yields:
            Names of the shards that the writer has to look at, as others have published them since the last time; None
            where it must look at the whole cask.

        Raises:
            CaskLockedError: Somebody does not finish in time.
        """
        ...

    def sweep(self, published: Iterable[ShardEntry]) -> None:
        """Remove what writers left that died, where it is certain that they did."""
        ...

    def read_listing(self) -> Listing:
        """Index and entries, as they are now."""
        ...

    def read_entry(self, name: str) -> ShardEntry:
        """The entry of a shard."""
        ...

    def require_shards(self, entries: Iterable[ShardEntry]) -> None:
        """Require of shards that their files are there."""
        ...

    def read_table(self) -> DocumentTable | None:
        """The table of documents as it is now; None where there is none."""
        ...

    def table_version(self) -> tuple[int, ...] | None:
        """What tells the table that is there from the next; None where there is none, or it cannot be told."""
        ...

    def read_documents(self, entries: Iterable[ShardEntry], layout: RecordLayout) -> dict[str, ShardDocuments]:
        """By name of the shard, ids and lengths of its documents."""
        ...

    def hint_width(self, entries: Iterable[ShardEntry], spec: HintSpec) -> int | None:
        """How many numbers a vector of the stored hints has; None where no shard has hints that can be read."""
        ...

    def publish(
        self,
        carrier: Carrier,
        columns: ShardColumns,
        layout: RecordLayout,
        identity: str,
        hints: HintSpec | None,
        announce: Announce,
    ) -> ShardEntry:
        """Make documents part of the cask as one shard; when this returns, they survive a crash.

        `announce` hears the shard's name before its entry is made, unless somebody's is known to be there.

        Returns:
            The entry of the shard of these documents, which somebody else may have published at the same time.
        """
        ...

    def adopt(self, entry: ShardEntry, path: Path, hints: Path | None, *, link: bool) -> tuple[ShardEntry, bool]:
        """Make a whole shard of another cask part of this one.

        Args:
            entry: The shard's.
            path: Its file.
            hints: The file of hints beside it; None to leave it without.
            link: Share the files where possible.

        Returns:
            Its entry here, and whether its file is shared.
        """
        ...

    @property
    def compacts_while_publishing(self) -> bool:
        """Whether each writer folds entries into the index now and then, rather than when it is closed."""
        ...

    def compact(
        self, entries: Mapping[str, ShardEntry], documents: Mapping[str, ShardDocuments]
    ) -> DocumentTable | None:
        """Fold all entries into the index, and all documents into the table.

        Args:
            entries: By name, of the shards that the writer knows.
            documents: By name, of the shards of which it knows them.

        Returns:
            The new table.
        """
        ...
