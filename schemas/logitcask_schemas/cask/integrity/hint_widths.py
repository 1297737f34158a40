"""Hints of different widths in one cask: sound file by file, and of different teachers nevertheless."""

from collections import Counter
from collections.abc import Sequence

from logitcask_schemas.cask.integrity.verify import ShardReport


def note_other_widths(reports: Sequence[ShardReport]) -> None:
    """Add a problem to the report of every shard whose hints are of another width than most documents'.

    Args:
        reports: Of all shards of a cask that were verified. Of two widths of equally many documents the one that comes
            first counts as the cask's.
    """
    documents = Counter[int]()
    for report in reports:
        if report.hint_width is not None:
            documents[report.hint_width] += report.entry.documents
    if len(documents) < 2:
        return
    (usual, count), *_ = documents.most_common()
    for report in reports:
        if report.hint_width not in (None, usual):
            report.hint_problems.append(
                f"shard {report.entry.name}: its hints are vectors of {report.hint_width} numbers, those of "
                f"{count:,} documents of this cask have {usual}: they are another teacher's"
            )
