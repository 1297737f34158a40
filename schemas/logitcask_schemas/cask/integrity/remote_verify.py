"""Proving a cask where it lies in an object store: each shard is fetched anew, proved as a local one, and removed.

No cache is asked, since what is to be proved is what the store holds. On the disk lie, in a temporary folder laid out
like the cask, its index and table of documents, one shard that is proved and one that is being fetched.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import parse_index
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import ShardEntry
from logitcask_schemas.cask.integrity.verify import (
    ShardReport,
    Survey,
    lose_all,
    survey,
    unlisted_files,
    verify_shard,
)
from logitcask_schemas.cask.location import entry_names_of, read_manifest_of
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskError, CaskNotFoundError, CaskWriteError


@dataclass(kw_only=True)
class RemoteSurvey:
    """A cask in a store, taken stock of as `survey` does with a folder."""

    store: RemoteStore
    folder: Path
    """The temporary one."""
    sizes: Mapping[str, int]
    """Bytes of the objects among the shards when they were listed."""
    taken: Survey

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
            return self._named(verify_shard(cask, entry, table))
        except CaskNotFoundError as error:
            if not note.exists() and not self._is_indexed(entry.name):
                return ShardReport(entry=entry, removed=True)
            lose_all(report, f"{error}: shard {entry.name} of {entry.bytes} bytes is missing", table)
            return report
        finally:
            path.unlink(missing_ok=True)
            note.unlink(missing_ok=True)

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
            return name in parse_index(self.store.read(INDEX_NAME), where=f"{self.store.url}/{INDEX_NAME}")
        except CaskNotFoundError:
            return False
        except CaskError:
            return True

    def _named(self, report: ShardReport) -> ShardReport:
        """The report with addresses in the store for paths in the temporary folder."""
        for problems in (report.entry_problems, report.shard_problems):
            problems[:] = [problem.replace(str(self.folder), self.store.url) for problem in problems]
        return report


@contextmanager
def survey_url(url: str, options: Mapping[str, Any] | None = None) -> Iterator[RemoteSurvey]:
    """Take stock of a cask in a store; fetches no shard.

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
        with _no_room_explained(folder):
            sizes = _mirror(store, folder)
        try:
            taken = survey(folder)
        except CaskError as error:
            raise type(error)(str(error).replace(temporary, store.url)) from error
        names = {*entry_names_of(dict(sizes))}
        entries = taken.cask.entries
        taken.problems = [problem.replace(temporary, store.url) for problem in taken.problems]
        taken.unlisted_files = unlisted_files(sizes, entries, names - {entry.name for entry in entries})
        yield RemoteSurvey(store=store, folder=folder, sizes=sizes, taken=taken)


def _mirror(store: RemoteStore, folder: Path) -> Mapping[str, int]:
    """Manifest, index, table and the entries that the index lacks as local files; sizes of all objects by name."""
    (folder / SHARDS_NAME).mkdir()
    (folder / MANIFEST_NAME).write_bytes(read_manifest_of(store))
    sizes = store.sizes(SHARDS_NAME)
    indexed: set[str] = set()
    try:
        index = store.read(INDEX_NAME)
        (folder / INDEX_NAME).write_bytes(index)
        indexed = {*parse_index(index, where=INDEX_NAME)}
    except CaskNotFoundError:
        pass
    except CaskError:
        if not (folder / INDEX_NAME).exists():
            raise
        # A damaged index is the survey's to report; every entry then counts for itself.
    try:
        store.download(DOCUMENTS_NAME, folder / DOCUMENTS_NAME)
    except CaskNotFoundError:
        (folder / DOCUMENTS_NAME).unlink(missing_ok=True)
    loose = [f"{SHARDS_NAME}/{name}{ENTRY_SUFFIX}" for name in entry_names_of(dict(sizes)) if name not in indexed]
    for path, content in store.read_all(loose).items():
        (folder / path).write_bytes(content)
    return sizes


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
