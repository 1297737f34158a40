"""What hints of a new shard must be: there where the capture spec has some, and as wide as those of the cask.

The width is how many numbers a vector of the teacher has, one for all shards. The capture spec says nothing of it, so
the files of the shards do.
"""

from collections.abc import Iterable
from pathlib import Path

from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import open_hints
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError, InvalidRecordError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.records import DocumentRecords


def stored_width(cask: Path, entries: Iterable[ShardEntry], spec: HintSpec) -> int | None:
    """The width that the first shard with a readable file of hints has; None where there is none.

    A damaged file is left to `verify`: it says nothing of what may be published beside it.

    Args:
        cask: The cask's folder.
        entries: Of its shards.
        spec: Of its hints.

    Raises:
        CaskReadError: The operating system refuses.
    """
    for entry in entries:
        if entry.hints is not None and entry.documents:
            try:
                return open_hints(cask, entry, spec).columns.rows.width
            except (CaskCorruptionError, CaskNotFoundError):
                continue
    return None


def require_stored_width(cask: str, width: int, stored: int | None) -> None:
    """Require of a shard's hints that they are as wide as those of the cask.

    Args:
        cask: Folder or URL of the cask.
        width: Of the new shard's.
        stored: Of the cask's; None where it has none yet.

    Raises:
        InvalidRecordError: They are not; names both.
    """
    if stored is not None and width != stored:
        raise InvalidRecordError(
            f"{cask}: its hints are vectors of {stored} numbers, those of the new shard have {width}: they are another "
            "teacher's. Nothing was written; publish into another cask"
        )


def require_hints_as_asked(spec: HintSpec | None, document: DocumentRecords, where: str) -> None:
    """Raise InvalidRecordError unless a document has hints exactly where a capture spec has some, and as it says."""
    if spec is None and document.hints is None:
        return
    if spec is None or document.hints is None:
        asks = "without hints" if spec is None else "with hints"
        raise InvalidRecordError(
            f"{where}: the cask's capture spec is {asks}, this document is {'with' if spec is None else 'without'}"
        )
    document.hints.check(spec, document.records.num_positions, where=where)
