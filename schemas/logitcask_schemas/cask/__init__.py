"""The cask: a directory of immutable shards of teacher records. `CaskWriter` fills it, `Cask` reads it.

Start with `layout` (what is stored), then `columns` (a shard without its file format), `carrier` (what a file format
must do), `files` and `lock` (how a publication survives crashes and other writers), `writer` and `reader`.
"""

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.writer import CaskWriter

__all__ = ["Carrier", "Cask", "CaskWriter", "Shard"]
