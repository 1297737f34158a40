"""Where a service's casks lie: a folder that holds them, or a folder of an object store. A place names each cask."""

import tempfile
import threading
import time
from pathlib import Path
from typing import Final, Protocol

from logitcask_schemas.api.requests import NAME_RULE, is_cask_name
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.directory import LocalDirectory, StoreDirectory
from logitcask_schemas.cask.format.layout import MANIFEST_NAME
from logitcask_schemas.cask.storage.object_store import RemoteStore, is_url
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.errors import CaskNotFoundError, LogitcaskError

CACHE_BYTES: Final = 4 << 30
"""Of each cask's shards that are kept of a store: people look around in them."""
FRESH_SECONDS: Final = 30.0
"""For so long a cask that was opened in a store is shown as it was: a page asks for it every few seconds."""
AT_ONCE: Final = 16
"""Casks of a list that are asked for at a time: in a store, each takes a few requests."""
_KEPT: Final = 64
"""Casks that are kept open so."""


class CaskNameError(LogitcaskError, ValueError):
    """A cask's name could leave the cask root."""


class FolderError(LogitcaskError, OSError):
    """A folder of the service cannot be made or written to."""


def make_writable(folder: Path, option: str) -> None:
    """Make a folder where absent, and require that it can be written to. Raises FolderError, which names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FolderError(
            f"the folder {folder} cannot be written to ({error.strerror or error}); make it writable for this user, or "
            f"name another with {option}"
        ) from error


def directory_of(place: Path | str) -> LocalDirectory | StoreDirectory:
    """The small files of the cask at a folder or URL; nothing is read."""
    return StoreDirectory(store=RemoteStore(str(place))) if is_url(place) else LocalDirectory(path=Path(place))


def holds_cask(place: Path | str) -> bool:
    """Whether there is a cask at a folder or URL, by its manifest. Raises StoreError where a store does not answer."""
    if not is_url(place):
        return (Path(place) / MANIFEST_NAME).exists()
    try:
        directory_of(place).read_manifest()
    except CaskNotFoundError:
        return False
    return True


class CaskRoot(Protocol):
    """What holds the casks of one service."""

    @property
    def place(self) -> str:
        """Folder or URL, for people."""
        ...

    @property
    def disks(self) -> tuple[Path, ...]:
        """Folders whose file systems must have room for casks."""
        ...

    def require_usable(self) -> None:
        """Raise FolderError or StoreError unless casks can be put there now."""
        ...

    def place_of(self, name: str) -> Path | str:
        """Where a cask lies, inside the root whatever the name. Raises CaskNameError."""
        ...

    def names(self) -> list[str]:
        """Names of the casks, by their manifests, sorted. Raises StoreError."""
        ...

    def open(self, name: str) -> Cask:
        """A cask to look into. Raises CaskNameError, and what `Cask.open` raises."""
        ...


class CaskFolder:
    """Casks as folders of a local folder; see `CaskRoot`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._path)

    @property
    def disks(self) -> tuple[Path, ...]:
        """The folder's."""
        return (self._path,)

    def require_usable(self) -> None:
        """Make the folder where absent, and require that it can be written to."""
        make_writable(self._path, "--cask-root")

    def place_of(self, name: str) -> Path:
        """A folder in the folder."""
        _require_name(name)
        path = self._path / name
        if path.resolve().parent != self._path.resolve():
            raise CaskNameError(f"the cask {name!r} is a link that leads out of the cask root; remove the link")
        return path

    def names(self) -> list[str]:
        """Those of folders with a manifest."""
        return sorted(child.name for child in self._path.iterdir() if (child / MANIFEST_NAME).is_file())

    def open(self, name: str) -> Cask:
        """The cask as it is now."""
        return Cask.open(self.place_of(name))


class CaskStore:
    """Casks as folders of an object store; see `CaskRoot`."""

    disks: tuple[Path, ...] = ()

    def __init__(self, url: str, cache: Path, *, single_writer: bool = False) -> None:
        """Nothing is contacted yet.

        Args:
            url: The folder.
            cache: Local folder for what is fetched.
            single_writer: Whether a store without conditional puts will do; see `CaskWriter.create`.
        """
        # Kept, so that everybody who asks the same server shares its connection.
        self._store = SharedStore(url)
        self._cache = cache
        self._single_writer = single_writer
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[float, Cask]] = {}
        """By name: when (monotonic), and the cask."""

    @property
    def place(self) -> str:
        """The URL."""
        return self._store.url

    def require_usable(self) -> None:
        """Require that the store takes puts, under conditions unless there is a single writer."""
        if not self._single_writer and not self._store.puts_under_conditions:
            raise FolderError(
                f"{self.place}: this kind of store cannot be asked to put an object only where there is none, so two "
                "services could destroy each other's work. Name a folder or a bucket of S3, or add --single-writer "
                "and see to it that nothing else writes there"
            )
        self._store.require_usable()

    def place_of(self, name: str) -> str:
        """A folder of the store."""
        _require_name(name)
        return f"{self.place}/{name}"

    def names(self) -> list[str]:
        """Those of folders with a manifest, which are all asked for at a time."""
        try:
            folders = self._store.folders()
        except CaskNotFoundError:
            return []  # nothing has been put there yet
        manifests = {name: f"{name}/{MANIFEST_NAME}" for name in folders if is_cask_name(name)}
        there = self._store.read_all(list(manifests.values()))
        return [name for name, manifest in manifests.items() if manifest in there]

    def open(self, name: str) -> Cask:
        """The cask as it was some seconds ago, or is now."""
        place, now = self.place_of(name), time.monotonic()
        with self._lock:
            if (kept := self._opened.get(name)) is not None and now - kept[0] < FRESH_SECONDS:
                return kept[1]
        cask = Cask.open(place, cache=self._cache, cache_bytes=CACHE_BYTES)
        with self._lock:
            self._opened.pop(name, None)
            self._opened[name] = now, cask
            while len(self._opened) > _KEPT:
                del self._opened[next(iter(self._opened))]
        return cask


def cask_root(place: Path | str, cache: Path, *, single_writer: bool) -> CaskRoot:
    """The root that a folder or URL names.

    Args:
        place: Folder or URL.
        cache: Of a URL: see `CaskStore`.
        single_writer: Of a URL: see `CaskStore`.
    """
    return CaskStore(str(place), cache, single_writer=single_writer) if is_url(place) else CaskFolder(Path(place))


def _require_name(name: str) -> None:
    if not is_cask_name(name):
        raise CaskNameError(f"{name[:140]!r} cannot name a cask; expected {NAME_RULE}")
