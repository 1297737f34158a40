"""Where the cask commands find a cask: a folder, or a URL in an object store read through a cache on the local disk."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from logitcask_schemas.cask.reader import Cask

CACHE_BYTES: Final = 4 << 30
"""Of each cask's shards that the commands keep: somebody looks around; training has a cache of its own."""


def default_cache() -> Path:
    """In the user's cache folder: $XDG_CACHE_HOME/logitcask/casks, or ~/.cache/logitcask/casks."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of these variables: a relative path is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "logitcask" / "casks"


def open_place(place: str, *, cache: Path | None = None, cache_bytes: int | None = None) -> "Cask":
    """Open a cask from its folder or URL; of a URL, nothing is kept before a shard or the documents' ids are needed."""
    from logitcask_schemas.cask.reader import Cask

    return Cask.open(place, cache=cache or default_cache(), cache_bytes=cache_bytes or CACHE_BYTES)
