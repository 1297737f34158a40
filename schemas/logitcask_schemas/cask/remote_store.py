"""A folder of an object store (`s3://bucket/folder` and whatever else fsspec speaks), as a cask needs it.

Objects appear whole or not at all, which is what publication needs of a store. Workers: fsspec runs its requests on an
event loop in a thread, which a fork does not carry over; every process therefore makes its own connection.
"""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import CaskError, CaskNotFoundError, MissingExtraError

_SEPARATOR: Final = "://"


def is_url(place: str | Path) -> bool:
    """Whether a place is a folder of an object store rather than a local path."""
    return isinstance(place, str) and _SEPARATOR in place


class RemoteStore:
    """Objects under one URL, named by their path below it. Can be pickled; credentials come from the environment."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Nothing is contacted yet.

        Args:
            url: The folder.
            options: For fsspec's file system, such as {"anon": True}; None: what the environment says.
        """
        self.url = url.rstrip("/")
        self._options = dict(options or {})
        self._connected: tuple[int, Any, str] | None = None

    def read(self, name: str) -> bytes:
        """A whole small object.

        Raises:
            CaskNotFoundError: There is none.
            CaskError: The store does not answer, or refuses.
        """
        with self._explained(name):
            system, root = self._system()
            content: bytes = system.cat_file(f"{root}/{name}")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a small object; CaskError where the store refuses."""
        with self._explained(name):
            system, root = self._system()
            system.pipe_file(f"{root}/{name}", content)

    def download(self, name: str, target: Path) -> None:
        """Copy an object into a local file; errors as `read`."""
        with self._explained(name):
            system, root = self._system()
            system.get_file(f"{root}/{name}", str(target))

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file into an object; CaskError where the store refuses or took another number of bytes."""
        with self._explained(name):
            system, root = self._system()
            system.put_file(str(source), f"{root}/{name}")
            system.invalidate_cache(root)
            stored = system.info(f"{root}/{name}")["size"]
        if stored != (size := source.stat().st_size):
            raise CaskError(f"{self.url}/{name}: sent {size} bytes, the store has {stored}; try again")

    def sizes(self, folder: str) -> dict[str, int]:
        """Names and sizes in bytes of the objects right below a folder; none where there is no folder."""
        with self._explained(folder):
            system, root = self._system()
            system.invalidate_cache(f"{root}/{folder}")
            try:
                listing = system.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {item["name"].rpartition("/")[2]: int(item["size"]) for item in listing if item["type"] == "file"}

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["options"])  # type: ignore[misc]

    def _system(self) -> tuple[Any, str]:
        """This process's file system and the root inside it."""
        if self._connected is None or self._connected[0] != os.getpid():
            try:
                fsspec: Any = importlib.import_module("fsspec")
                system, root = fsspec.url_to_fs(self.url, skip_instance_cache=True, **self._options)
            except ImportError as error:
                missing = error.name or getattr(error.__cause__, "name", None) or str(error)
                raise MissingExtraError("cask", "remote", missing) from error
            except ValueError as error:
                raise CaskError(f"{self.url}: not an address of an object store: {error}") from error
            self._connected = os.getpid(), system, str(root).rstrip("/")
        return self._connected[1:]

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn the errors of the store and of its client into ours."""
        where = f"{self.url}/{name}"
        try:
            yield
        except CaskError:
            raise
        except FileNotFoundError as error:
            raise CaskNotFoundError(f"{where}: there is no such object") from error
        except _client_errors() as error:
            raise CaskError(
                f"{where}: the object store failed: {error or type(error).__name__}. Check address, credentials "
                "and network, and try again; what was stored before is untouched."
            ) from error


def _client_errors() -> tuple[type[BaseException], ...]:
    """What clients raise beside OSError; only those that are loaded can have."""
    found: list[type[BaseException]] = [OSError]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)
