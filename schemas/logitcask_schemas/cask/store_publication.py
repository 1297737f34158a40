"""A shard into an object store, where there is neither a rename nor a lock: its objects first, its entry at the end.

Each object is made only where there is none, and its name tells its content. So whoever finds one there, as the work of
a writer that died, of another one that publishes the same documents right now, or of an own put whose answer was lost,
proves it and goes on from it. The entry is made under the same condition, and is what publishes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.registry import carrier_of, shard_path
from logitcask_schemas.cask.directory import entry_file
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import SHARDS_NAME, RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest, entry_bytes, parse_entry
from logitcask_schemas.cask.format.shard_entry import HintsFile, ShardEntry
from logitcask_schemas.cask.hint_file import hints_path, open_hints
from logitcask_schemas.cask.opening import open_columns
from logitcask_schemas.cask.publication import Announce
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.cask.storage.hashing_sink import HashingSink
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError

STAGING: Final = "logitcask-publish-"
"""Starts the names of temporary folders in which objects are made."""


class StagingFiles(LocalFiles):
    """The file system for what is only kept until a store has it: nothing of it need survive a crash."""

    def sync_file(self, file: BinaryIO) -> None:
        """Hand the file's bytes to the operating system."""
        file.flush()

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePublication:
    """Publishing into one cask of a store."""

    store: SharedStore
    manifest: CaskManifest

    def publish(
        self, entry: ShardEntry, file: Path, hints: Path | None, announce: Announce = lambda name: None
    ) -> ShardEntry:
        """Make a shard part of the cask.

        Args:
            entry: What describes the files.
            file: The shard's.
            hints: That of its hints; None where the entry has none.
            announce: See `home.Home.publish`.

        Returns:
            The entry that is in the store: this one, or that of somebody who published the same documents first.

        Raises:
            StoreError: The store does not answer, or refuses. Publishing again finds what was done.
            CaskCorruptionError: What has the shard's name in the store is not the shard.
        """
        if not self.store.create_from(file, _object_of(entry)):
            if (theirs := self._entry_there(entry.name)) is not None:
                return theirs
            entry = self._shard_there(entry)
        if hints is not None and not self.store.create_from(hints, f"{SHARDS_NAME}/{entry.hints_name}"):
            entry = self._hints_there(entry)
        content = entry_bytes(entry)
        announce(entry.name)
        there = self.store.create(entry_file(entry.name), content)
        return entry if there == content else self._parsed(entry.name, there)

    def _entry_there(self, name: str) -> ShardEntry | None:
        try:
            return self._parsed(name, self.store.read(entry_file(name)))
        except CaskNotFoundError:
            return None

    def _parsed(self, name: str, content: bytes) -> ShardEntry:
        return parse_entry(content, where=f"{self.store.url}/{entry_file(name)}", name=name)

    def _shard_there(self, entry: ShardEntry) -> ShardEntry:
        """An entry for the object that has the shard's name.

        Usually it is the shard byte by byte. Zarr and Parquet files of the same documents differ with the libraries
        that wrote them; then the documents prove it.
        """
        with TemporaryDirectory(prefix=STAGING) as temporary:
            path = Path(temporary) / shard_path(Path(), entry).name
            size, sha256 = _fetched(self.store, _object_of(entry), path)
            if (size, sha256) == (entry.bytes, entry.sha256):
                return entry
            layout = RecordLayout.of(self.manifest)
            try:
                name = _name_of(open_columns(path, carrier_of(entry), layout, entry.identity), layout, entry.identity)
            except CaskCorruptionError as error:
                raise self._in_the_way(_object_of(entry), str(error)) from error
        if name != entry.name:
            raise self._in_the_way(_object_of(entry), f"its documents would be shard {name}")
        return entry.model_copy(update={"bytes": size, "sha256": sha256})

    def _hints_there(self, entry: ShardEntry) -> ShardEntry:
        """An entry for the object that has the name of the shard's hints: of the same documents, and whole."""
        name, spec = f"{SHARDS_NAME}/{entry.hints_name}", self.manifest.capture.hints
        assert entry.hints is not None
        assert spec is not None
        with TemporaryDirectory(prefix=STAGING) as temporary:
            path = hints_path(Path(temporary), entry)
            path.parent.mkdir()
            size, sha256 = _fetched(self.store, name, path)
            described = HintsFile(bytes=size, sha256=sha256)
            if described == entry.hints:
                return entry
            entry = entry.model_copy(update={"hints": described})
            try:
                file = open_hints(Path(temporary), entry, spec)
                for row in range(len(file.document_ids)):
                    file.verify(row)
            except CaskCorruptionError as error:
                raise self._in_the_way(name, str(error)) from error
        return entry

    def _in_the_way(self, name: str, why: str) -> CaskCorruptionError:
        return CaskCorruptionError(
            f"{self.store.url}/{name}: is in the way of a shard that was to be published: {why}. No entry names it: "
            "remove the object, and publish again"
        )


def _object_of(entry: ShardEntry) -> str:
    return f"{SHARDS_NAME}/{shard_path(Path(), entry).name}"


def _fetched(store: SharedStore, name: str, path: Path) -> tuple[int, str]:
    """Fetch an object; its size and SHA-256."""
    store.download(name, path)
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _name_of(columns: ShardColumns, layout: RecordLayout, identity: str) -> str:
    """The name of a shard of these columns; see `publication.write_shard`."""
    sink = HashingSink(None)
    ArrowCarrier().write(columns, layout, identity, sink)
    return sink.sha256.hexdigest()[:32]
