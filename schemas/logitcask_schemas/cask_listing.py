"""What `logitcask cask ls` lists: one cask, or the casks in a folder, here or in an object store."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.cask.layout import MANIFEST_NAME
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.remote_store import RemoteStore, is_url
from logitcask_schemas.cask_places import open_place
from logitcask_schemas.errors import CaskError, CaskNotFoundError

_AT_ONCE: Final = 16
"""Casks of an object store asked for at a time; each takes a few requests."""


def one_cask(place: str) -> Cask | None:
    """The cask that a place is, or None where it is none; errors as `Cask.open`."""
    if not is_url(place):
        return open_place(place) if (Path(place) / MANIFEST_NAME).exists() else None
    try:
        return open_place(place)
    except CaskNotFoundError:
        return None


def casks_in(place: str) -> list[dict[str, Any]]:
    """Figures of every cask right below a place, by name; those that cannot be opened have the member `error` instead.

    Raises:
        CaskNotFoundError: There is no such folder.
        CaskError: The store does not answer.
    """
    if is_url(place):
        store = RemoteStore(place)
        names = store.folders()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda name: _cask_or_error(store.below(name).url), names))
        # Without a manifest it is something else that lies beside the casks.
        casks = {name: one for name, one in zip(names, found, strict=True) if not isinstance(one, CaskNotFoundError)}
    else:
        if not (folder := Path(place)).is_dir():
            raise CaskNotFoundError(f"{folder}: no such folder")
        children = sorted(child.name for child in folder.iterdir() if (child / MANIFEST_NAME).exists())
        casks = {name: _cask_or_error(str(folder / name)) for name in children}
    return [_row(name, cask) for name, cask in casks.items()]


def _cask_or_error(place: str) -> Cask | CaskError:
    try:
        return open_place(place)
    except CaskError as error:
        return error


def _row(name: str, cask: Cask | CaskError) -> dict[str, Any]:
    if isinstance(cask, CaskError):
        return {"name": name, "error": str(cask)}
    return {
        "name": name,
        "teacher": cask.manifest.teacher.model,
        "shards": len(cask.entries),
        "documents": len(cask),
        "tokens": cask.num_tokens,
        "bytes": cask.num_bytes,
    }
