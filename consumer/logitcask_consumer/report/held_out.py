"""Whether the documents of a report were held out: looked up in the casks that each model was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitcask_consumer.checkpoints import read_run
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import LogitcaskError


def trained_on(folder: Path, casks: Sequence[Cask]) -> dict[str, Any]:
    """What is known of the documents that a model was trained on.

    Args:
        folder: the model's folder; the run document in it, where there is one, names the casks of the training run.
        casks: the documents of the report.

    Returns:
        `status`: `untrained` (no training run left the folder), `checked`, or `unchecked` (a cask of the run is not
        where it was); `documents`: how many of the report's documents the run trained on, as far as known; `unread`:
        casks that could not be opened, with the reason.
    """
    run = read_run(folder)
    if run is None:
        return {"status": "untrained", "documents": 0, "unread": []}
    shards = {name for described in run["casks"] for name in described["shards"]}
    places, trained, unread = run.get("places"), list[Cask](), list[str]()
    for place in places or ():
        try:
            trained.append(Cask.open(place))
        except (LogitcaskError, OSError) as error:
            unread.append(f"{place}: {error}")
    if places is None:
        unread.append("the run document is of an earlier version, which does not say where its casks lie")
    return {
        "status": "unchecked" if unread else "checked",
        "documents": sum(_documents_in(cask, trained, shards) for cask in casks),
        "unread": unread,
    }


def _documents_in(cask: Cask, trained: Sequence[Cask], shards: set[str]) -> int:
    """Documents of a cask that are in others, or in a shard of a name in `shards`: names come from content."""
    count = 0
    for entry, documents in zip(cask.entries, cask.shard_documents(), strict=True):
        if entry.name in shards:
            count += entry.documents
        else:
            ids = [identity.tobytes() for identity in documents.ids]
            count += sum(any(other.find(identity) is not None for other in trained) for identity in ids)
    return count


def warnings_of(seen: dict[str, dict[str, Any]], documents: int) -> list[str]:
    """What a reader of the report must know before its figures.

    Args:
        seen: label of each model -> what `trained_on` gave.
        documents: of the report.
    """
    lines = []
    for label, known in seen.items():
        if known["documents"]:
            lines.append(
                f"{label} was trained on {known['documents']:,} of the {documents:,} documents of this report: its "
                "figures are not those of held-out text"
            )
        if known["unread"]:
            lines.append(
                f"whether {label} was trained on these documents could not be checked ({'; '.join(known['unread'])})"
            )
    return lines
