"""Proving a cask where it lies in an object store: each shard is fetched anew, proved as a local one, and removed.

No cache is asked, since what is to be proved is what the store holds. On the disk lie, in a temporary folder laid out
like the cask, its table of documents, one shard that is proved and one that is being fetched.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import StoreDirectory
from logitcask_schemas.cask.documents import DocumentTable
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import parse_index
from logitcask_schemas.cask.format.shard_entry import HintsFile, ShardEntry
from logitcask_schemas.cask.hint_file import hints_path
from logitcask_schemas.cask.integrity.verify import (
    ShardReport,
    Survey,
    lose_all,
    survey,
    verify_shard,
)
from logitcask_schemas.cask.location import CachedStore
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.remote_cache import ShardCache
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskError, CaskNotFoundError, CaskWriteError


@dataclass(kw_only=True)
class RemoteSurvey:
    """A cask in a store, listed by `survey`, whose shards are fetched into a temporary folder to be proved."""

    store: RemoteStore
    folder: Path
    """The temporary one."""
    sizes: Mapping[str, int]
    """Bytes of the objects among the shards when they were listed."""
    surveyed: Survey

    def prove(self, cask: Cask, entry: ShardEntry, table: DocumentTable | None) -> ShardReport:
        """Verify one shard; as `verify_shard`, with what the store holds now. May be called from several threads.

        Raises:
            CaskError: The store does not answer, which says nothing about the shard.
            CaskWriteError: There is no room for the shard in the temporary folder.
        """
        path = shard_path(self.folder, entry)
        note = path.with_name(entry.name + ENTRY_SUFFIX)
        report = ShardReport(entry=entry)
        try:
            with _no_room_explained(path):
                self._fetch_entry(entry, note)
                name = f"{SHARDS_NAME}/{path.name}"
                if (size := self._size_now(path.name, entry)) != entry.bytes:
                    where = f"{self.store.url}/{name}"
                    lose_all(report, f"{where}: should have {entry.bytes} bytes, it has {size}", table)
                    return report
                self.store.download(name, path)
                if entry.hints is not None:
                    self._fetch_hints(entry, entry.hints)
            return self._named(verify_shard(cask, entry, table))
        except CaskNotFoundError as error:
            if not note.exists() and not self._is_indexed(entry.name):
                return ShardReport(entry=entry, removed=True)
            lose_all(report, f"{error}: shard {entry.name} of {entry.bytes} bytes is missing", table)
            return report
        finally:
            path.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            hints_path(self.folder, entry).unlink(missing_ok=True)

    def _fetch_hints(self, entry: ShardEntry, described: HintsFile) -> None:
        """The file of hints; one of another size is not fetched, and an empty file of that size stands for it."""
        path, name = hints_path(self.folder, entry), f"{SHARDS_NAME}/{entry.hints_name}"
        with suppress(CaskNotFoundError):  # which is told of the missing file
            if (size := self.store.size(name)) == described.bytes:
                self.store.download(name, path)
            else:
                path.touch()
                os.truncate(path, size)

    def _fetch_entry(self, entry: ShardEntry, note: Path) -> None:
        try:
            note.write_bytes(self.store.read(f"{SHARDS_NAME}/{note.name}"))
        except CaskNotFoundError:
            note.unlink(missing_ok=True)

    def _size_now(self, name: str, entry: ShardEntry) -> int:
        """Looked at before a download, so that an object of a terabyte does not fill the disk."""
        size = self.sizes.get(name)
        return size if size == entry.bytes else self.store.size(f"{SHARDS_NAME}/{name}")

    def _is_indexed(self, name: str) -> bool:
        try:
            index = StoreDirectory(store=self.store).read_index()
            return index is not None and name in parse_index(index, where=f"{self.store.url}/{INDEX_NAME}")
        except CaskError:
            return True

    def _named(self, report: ShardReport) -> ShardReport:
        """The report with addresses in the store for paths in the temporary folder."""
        for problems in (report.entry_problems, report.shard_problems, report.hint_problems):
            problems[:] = [problem.replace(str(self.folder), self.store.url) for problem in problems]
        return report


@contextmanager
def survey_url(url: str, options: Mapping[str, Any] | None = None) -> Iterator[RemoteSurvey]:
    """List a cask in a store and read its small files; fetches no shard.

    Args:
        url: The cask's folder.
        options: See `RemoteStore`.

    Raises:
        CaskNotFoundError, CaskCorruptionError: There is no manifest, or it is damaged.
        CaskError: The store does not answer.
        CaskWriteError: There is no room in the temporary folder.
    """
    store = RemoteStore(url, options)
    with TemporaryDirectory(prefix="logitcask-verify-") as temporary:
        folder = Path(temporary)
        (folder / SHARDS_NAME).mkdir()
        # Shards come and go, see `RemoteSurvey.prove`: this cache keeps nothing but the table.
        location = CachedStore(cache=ShardCache(folder, store, 1, None))
        with _no_room_explained(folder):
            surveyed = survey(location)
        yield RemoteSurvey(store=store, folder=folder, sizes=store.sizes(SHARDS_NAME), surveyed=surveyed)


@contextmanager
def _no_room_explained(path: Path) -> Iterator[None]:
    """Say what to do when the temporary folder is too small."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CaskError) and not isinstance(error, CaskWriteError):
            raise
        cause = str(error) if isinstance(error, CaskError) else f"{path}: cannot be kept: {error.strerror or error}"
        raise CaskWriteError(
            f"{cause}. Free some space, or set TMPDIR to a folder with room for the cask's index and two shards.",
            error.errno,
        ) from error
