"""A folder of an object store (`s3://bucket/folder` and whatever else fsspec speaks), as a cask needs it.

Objects appear whole or not at all, which is what publication needs of a store. Workers: fsspec runs its requests on an
event loop in a thread, which a fork does not carry over; every process therefore makes its own connection.
"""

import errno
import importlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.cask.storage.client_errors import client_errors, no_bucket
from logitcask_schemas.cask.storage.files import NO_SPACE
from logitcask_schemas.errors import CaskError, CaskNotFoundError, CaskWriteError, MissingExtraError, StoreError

SEPARATOR: Final = "://"
_LOCAL_ERRORS: Final = NO_SPACE | {errno.EFBIG, errno.EROFS}
"""What no client of a store says of the store: a download failed because of the disk that it went to."""
_CLIENTS_READ: Final = (
    "AWS_",
    "S3_",
    "FSSPEC_",
    "GOOGLE_",
    "GCSFS_",
    "AZURE_",
    "HTTP_",
    "HTTPS_",
    "NO_PROXY",
    "HOME",
    "HF_",
)
"""Starts of the names of environment variables that say where a store is and who asks."""

_systems: "weakref.WeakValueDictionary[Any, Any]" = weakref.WeakValueDictionary()
"""Connected file systems that are in use in this process: making one costs a tenth of a second of CPU."""


_HUB: Final = "hf://"
_HUB_KINDS: Final = ("datasets", "models", "spaces", "buckets")


def is_url(place: str | Path) -> bool:
    """Whether a place is a folder of an object store rather than a local path."""
    return isinstance(place, str) and SEPARATOR in place


def dataset_url(url: str) -> str:
    """The address of a data set of the Hugging Face Hub, "hf://owner/name", in full; any other URL as it is.

    Clients of the Hub take what has no kind for a model, which a cask never is.
    """
    if not url.startswith(_HUB) or url.removeprefix(_HUB).split("/")[0] in _HUB_KINDS:
        return url
    return f"{_HUB}datasets/{url.removeprefix(_HUB)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object, or one that is still being sent in parts."""

    name: str
    """Without its folder."""
    bytes: int
    modified: datetime | None
    """When it was put, or its first part was; None where the store does not say."""


class RemoteStore:
    """Objects under one URL, named by their path below it. Can be pickled; credentials come from the environment."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Nothing is contacted yet.

        Args:
            url: The folder.
            options: For fsspec's file system, such as {"anon": True}; None: what the environment says.

        Raises:
            CaskError: The URL has a query, which no folder has, or a folder without a name.
        """
        if "?" in url:
            raise CaskError(
                f"{url}: an address of a folder has no `?`. Leave out what follows it; where a store is and who asks "
                "is said by the environment (docs/cask.md)"
            )
        if "//" in url.rpartition(SEPARATOR)[2].lstrip("/").rstrip("/"):
            raise CaskError(
                f"{url}: an address of a folder has no `//`, where the client of a store lists another folder than it "
                "writes to. Is a variable in it empty?"
            )
        self.url = dataset_url(url.rstrip("/"))
        self._options = dict(options or {})
        self._connected: tuple[int, Any, str] | None = None

    def below(self, name: str) -> "RemoteStore":
        """The store of a folder right below this one."""
        return RemoteStore(f"{self.url}/{name}", self._options)

    def read(self, name: str) -> bytes:
        """A whole small object, in one request.

        Raises:
            CaskNotFoundError: There is none.
            CaskError: The store does not answer, or refuses.
        """
        with self._explained(name):
            system, root = self._system()
            path = f"{root}/{name}"
            try:
                # "From the first byte on" rather than all: for that, s3fs asks for the size first.
                content: bytes = system.cat_file(path, start=0)
            except FileNotFoundError:
                raise
            except OSError:
                # An empty object has no first byte.
                content = system.cat_file(path)
        return content

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Many small objects, many at a time; those that do not exist are left out. Errors else as `read`."""
        with self._explained("..."):
            system, root = self._system()
            results = system.cat_ranges([f"{root}/{name}" for name in names], 0, None, on_error="return")
        contents = {}
        for name, content in zip(names, results, strict=True):
            if isinstance(content, bytes):
                contents[name] = content
            elif not isinstance(content, FileNotFoundError):
                contents[name] = self.read(name)  # says what is wrong, or was a passing trouble
        return contents

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of objects, [start, stop) in bytes of each, many at a time; shorter where the object ends before.

        Raises:
            CaskNotFoundError, StoreError: As `read`.
        """
        with self._explained("..."):
            system, root = self._system()
            names, starts, stops = zip(*ranges, strict=True) if ranges else ((), (), ())
            results: list[bytes] = system.cat_ranges(
                [f"{root}/{name}" for name in names], list(starts), list(stops), on_error="return"
            )
        for name, result in zip(names, results, strict=True):
            if isinstance(result, BaseException):
                with self._explained(name):
                    raise result
        return results

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a small object; CaskError where the store refuses."""
        with self._explained(name):
            system, root = self._system()
            system.pipe_file(f"{root}/{name}", content)

    def download(self, name: str, target: Path, progress: Callable[[int], None] | None = None) -> None:
        """Copy an object into a local file.

        Args:
            name: The object.
            target: The file; one that exists is overwritten in place.
            progress: Called with the bytes that have come so far, from another thread.

        Raises:
            CaskNotFoundError, CaskError: As `read`.
            CaskWriteError: The local disk is full or read-only.
        """
        with self._explained(name):
            system, root = self._system()
            callbacks: Any = importlib.import_module("fsspec.callbacks")
            hooks = {} if progress is None else {"bytes": lambda size, value, **_: progress(value)}
            try:
                system.get_file(f"{root}/{name}", str(target), callback=callbacks.Callback(hooks=hooks))
            except OSError as error:
                if error.errno in _LOCAL_ERRORS:
                    raise CaskWriteError(
                        f"{target}: cannot keep {self.url}/{name}: {error.strerror or error}", error.errno
                    ) from error
                raise

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file into an object; CaskError where the store refuses or took another number of bytes."""
        with self._explained(name):
            system, root = self._system()
            system.put_file(str(source), f"{root}/{name}")
        self._require_size(name, source)

    def size(self, name: str) -> int:
        """Bytes of an object; errors as `read`."""
        with self._explained(name):
            system, root = self._system()
            system.invalidate_cache(f"{root}/{name}")
            stored: int = system.info(f"{root}/{name}")["size"]
        return stored

    def sizes(self, folder: str) -> dict[str, int]:
        """Names and sizes in bytes of the objects right below a folder; none where there is no folder."""
        return {
            item["name"].rstrip("/").rpartition("/")[2]: int(item["size"])
            for item in self._listing(folder)
            if item["type"] == "file"
        }

    def objects(self, folder: str) -> list[StoredObject]:
        """What lies right below a folder, by name; nothing where there is no folder."""
        objects = [
            StoredObject(
                name=item["name"].rpartition("/")[2], bytes=int(item["size"]), modified=item.get("LastModified")
            )
            for item in self._listing(folder)
            if item["type"] == "file"
        ]
        return sorted(objects, key=lambda item: item.name)

    def folders(self) -> list[str]:
        """Names of the folders right below this one, sorted; CaskNotFoundError where there is nothing at all."""
        items = self._listing("")
        if not items:
            raise CaskNotFoundError(f"{self.url}: there is nothing in the store under this address")
        return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in items if item["type"] == "directory")

    def children(self) -> list[str]:
        """Names of objects and folders right below this one, sorted; none where there is nothing."""
        return sorted({item["name"].rstrip("/").rpartition("/")[2] for item in self._listing("")})

    def delete(self, name: str) -> None:
        """Remove an object, if it is there; StoreError where the store refuses."""
        with suppress(CaskNotFoundError), self._explained(name):
            system, root = self._system()
            system.rm_file(f"{root}/{name}")

    def _require_size(self, name: str, source: Path) -> None:
        if (stored := self.size(name)) != (size := source.stat().st_size):
            raise StoreError(f"{self.url}/{name}: sent {size} bytes, the store has {stored}; try again")

    def _listing(self, folder: str) -> list[dict[str, Any]]:
        """What lies right below a folder. Not the folder itself, for which consoles of stores make an empty object."""
        with self._explained(folder):
            system, root = self._system()
            path = f"{root}/{folder}".rstrip("/")
            system.invalidate_cache(path)
            try:
                listing: list[dict[str, Any]] = system.ls(path, detail=True)
            except FileNotFoundError:
                listing = []
            # It may have a hundred thousand names, and clients would keep it.
            system.invalidate_cache(path)
        return [item for item in listing if item["name"].rstrip("/") != path]

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["options"])  # type: ignore[misc]

    def _system(self) -> tuple[Any, str]:
        """This process's file system and the root inside it."""
        if self._connected is None or self._connected[0] != os.getpid():
            try:
                system, root = _system_of(self.url, self._options)
            except ImportError as error:
                missing = error.name or getattr(error.__cause__, "name", None) or str(error)
                raise MissingExtraError("logitcask cask", "remote", missing) from error
            except ValueError as error:
                raise CaskError(f"{self.url}: not an address of an object store: {error}") from error
            self._connected = os.getpid(), system, root.rstrip("/")
        return self._connected[1:]

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn the errors of the store and of its client into ours."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except CaskError:
            raise
        except FileNotFoundError as error:
            if no_bucket(error):
                raise StoreError(f"{self.url}: there is no such bucket. Make it, or name another") from error
            raise CaskNotFoundError(f"{where}: there is no such object") from error
        except client_errors() as error:
            raise StoreError(
                f"{where}: the object store failed: {error or type(error).__name__}. Check address, credentials "
                "and network, and try again; what was stored before is untouched."
            ) from error


def _system_of(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """A file system for a URL, shared by all stores of one server that this process has in use, and the path in it."""
    server = url if "::" in url else "/".join(url.split("/", 3)[:3])
    # Credentials and addresses come from the environment: whoever mends them there must not be given the old ones.
    variables = frozenset((name, value) for name, value in os.environ.items() if name.upper().startswith(_CLIENTS_READ))
    key = (os.getpid(), server, repr(sorted(options.items())), variables)
    if (system := _systems.get(key)) is not None:
        return system, str(system._strip_protocol(url))
    fsspec: Any = importlib.import_module("fsspec")
    system, root = fsspec.url_to_fs(url, skip_instance_cache=True, **options)
    _systems[key] = system
    return system, str(root)
