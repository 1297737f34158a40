"""The cask: a directory of immutable shards of teacher records. `CaskWriter` fills it, `Cask` reads it.

Start with `layout` (what is stored), then `columns` (a shard without its file format), `carrier` (what a file format
must do), `files` and `lock` (how a publication survives crashes and other writers), `writer` and `reader`.

A name loads its module when it is first asked for: commands that need a part of this package, such as what a URL is,
start without numpy and Arrow.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from logitcask_schemas.cask.carriers.carrier import Carrier
    from logitcask_schemas.cask.reader import Cask
    from logitcask_schemas.cask.shard import Shard
    from logitcask_schemas.cask.writer import CaskWriter

__all__ = ["Carrier", "Cask", "CaskWriter", "Shard"]

_MODULES: Final = {"Carrier": "carriers.carrier", "Cask": "reader", "CaskWriter": "writer", "Shard": "shard"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
