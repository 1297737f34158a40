"""Whether documents were held out: looked up in the casks that a model was, or is being, trained on.

A model may have been trained by several runs, one after the other; the last run's document names those before it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.held_out.documents import HeldOutDocuments
from logitcask_consumer.run_document import earlier_runs
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaskError, LogitcaskError


def trained_on(folder: Path, casks: Sequence[Cask]) -> dict[str, Any]:
    """What is known of the documents that a model was trained on, and of those by which it was chosen.

    Args:
        folder: the model's folder, or a checkpoint of its run; run documents name the casks of the training runs.
        casks: the documents of the report.

    Returns:
        `status`: `untrained` (no training run left the folder), `checked`, or `unchecked` (a cask of a run is not
        where it was, or no longer the one that was read); `documents`: how many of the report's documents the runs
        trained on, as far as known; `unread`: casks that could not be read, with the reason; `chosen_by`: by how many
        of the report's documents the student, or one that it began as, was chosen among its run's checkpoints
        (`--load-best`), 0 for none.
    """
    runs = earlier_runs(folder)
    if not runs:
        return {"status": "untrained", "documents": 0, "unread": [], "chosen_by": 0}
    count, unread = _count_read(runs, casks)
    return {
        "status": "unchecked" if unread else "checked",
        "documents": count,
        "unread": unread,
        "chosen_by": _chosen_by(runs, casks),
    }


def _chosen_by(runs: Sequence[dict[str, Any]], casks: Sequence[Cask]) -> int:
    """See `trained_on`. Where a run measured on a sample of its casks, at most that many are said to be among them."""
    choices = [run["chosen_by"] for run in runs if "chosen_by" in run]
    count, _ = _count_read(choices, casks)
    return min(count, sum(int(choice["documents"]) for choice in choices))


def _count_read(runs: Sequence[dict[str, Any]], casks: Sequence[Cask]) -> tuple[int, list[str]]:
    """How many documents of `casks` are among those that `casks` at `places` of run documents hold; what is unread."""
    shards = {name for run in runs for described in run["casks"] for name in described["shards"]}
    ids, unread = list[NDArray[np.void]](), list[str]()
    for run in runs:
        if run["places"] is None:
            unread.append("a run document is of an earlier version, which does not say where its casks lie")
            continue
        for place, described in zip(run["places"], run["casks"], strict=True):
            try:
                with TemporaryDirectory(prefix="logitcask-overlap-") as cache:  # for what is fetched of a URL's
                    cask = Cask.open(place, cache=Path(cache))
                    ids.extend(_ids(cask, set(described["shards"])))
            except (LogitcaskError, OSError) as error:
                unread.append(f"{place}: {error}")
                continue
            if missing := set(described["shards"]) - {entry.name for entry in cask.entries}:
                unread.append(
                    f"{place}: {len(missing)} of the {len(described['shards'])} shards that the run read are no longer "
                    "in it"
                )
    seen = np.concatenate(ids) if ids else np.empty(0, dtype="V32")
    return sum(_documents_in(cask, seen, shards) for cask in casks), unread


def _ids(cask: Cask, shards: set[str]) -> Iterator[NDArray[np.void]]:
    """Identities of the documents of some shards: a cask may have grown since it was trained on."""
    for entry, documents in zip(cask.entries, cask.shard_documents(), strict=True):
        if entry.name in shards:
            yield _as_keys(documents.ids)


def _as_keys(ids_D32: NDArray[np.uint8]) -> NDArray[np.void]:
    """[D, 32] bytes as [D] values that can be compared."""
    return np.ascontiguousarray(ids_D32).view("V32").reshape(-1)


def _documents_in(cask: Cask, seen: NDArray[np.void], shards: set[str]) -> int:
    """Documents of a cask with an identity among some, or in a shard of a name in `shards`: names come from content."""
    count = 0
    for entry, documents in zip(cask.entries, cask.shard_documents(), strict=True):
        if entry.name in shards:
            count += entry.documents
        else:
            count += int(np.isin(_as_keys(documents.ids), seen).sum())
    return count


class NotHeldOutError(CaskError):
    """Every document that shall be held out is trained on."""


def overlap_notes(documents: HeldOutDocuments, casks: Sequence[Cask], student: Path | None) -> list[str]:
    """What is to be known of held-out documents of a run, a sentence each.

    Args:
        documents: that the run measures its student on.
        casks: that it trains on.
        student: folder of the student that it begins with, which earlier runs may have trained; None for none.

    Raises:
        NotHeldOutError: the run trains on all of them.
    """
    ids_N, total = _as_keys(documents.ids_N32), len(documents.numbers_N)
    trained_N = np.zeros(total, dtype=np.bool_)
    for cask in casks:
        trained_N |= np.isin(ids_N, _as_keys(cask.document_ids()))
    count = int(trained_N.sum())
    held_out = ", ".join(cask.place for cask in documents.casks)
    if count == total:
        raise NotHeldOutError(
            f"--eval-cask {held_out}: this run trains on every one of its documents, so nothing is held out. Name a "
            "cask of other text (submit --held-out, or `logitcask cask split`)"
        )
    notes = []
    if count:
        notes.append(
            f"this run trains on {count:,} of the {total:,} held-out documents: the figures are not those of held-out "
            "text alone"
        )
    history: dict[str, Any] = (
        {"documents": 0, "unread": [], "chosen_by": 0} if student is None else trained_on(student, documents.casks)
    )
    if history["documents"]:
        notes.append(
            f"earlier runs trained the student on {history['documents']:,} documents of {held_out}: its figures are "
            "not those of held-out text"
        )
    if history["chosen_by"]:
        notes.append(
            f"the student comes of a choice among checkpoints by {history['chosen_by']:,} documents of {held_out} "
            "(--load-best): on other text its figures are a little worse"
        )
    if history["unread"]:
        notes.append(
            "whether earlier runs trained the student on held-out documents could not be checked "
            f"({'; '.join(history['unread'])})"
        )
    return notes


def warnings_of(seen: dict[str, dict[str, Any]], documents: int) -> list[str]:
    """What a reader of the report must know before its figures.

    Args:
        seen: label of each model -> what `trained_on` gave.
        documents: of the report.
    """
    lines = []
    for label, history in seen.items():
        if history["documents"]:
            lines.append(
                f"{label} was trained on {history['documents']:,} of the {documents:,} documents of this report: its "
                "figures are not those of held-out text"
            )
        if history["chosen_by"]:
            lines.append(
                f"{label} comes of a choice among checkpoints by {history['chosen_by']:,} of the {documents:,} "
                "documents of this report (--load-best): on other text its figures are a little worse"
            )
        if history["unread"]:
            lines.append(
                f"whether {label} was trained on these documents could not be checked ({'; '.join(history['unread'])})"
            )
    return lines
