"""`logitcask cask verify` and `repair`: proving casks, and mending them."""

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from logitcask_schemas.cli.output import (
    CaskArgument,
    JsonOption,
    byte_progress,
    print_json,
)
from logitcask_schemas.terminal import EXIT_PROBLEMS, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitcask_schemas.cask.integrity.repair import RepairReport
    from logitcask_schemas.cask.integrity.verify import Prove, ShardReport, Survey

CARE: Final = "Prove and mend it"


def register(app: typer.Typer) -> None:
    """Add the commands to `logitcask cask`."""
    app.command("verify", rich_help_panel=CARE)(verify)
    app.command("repair", rich_help_panel=CARE)(repair)
    app.command("drop-hints", rich_help_panel=CARE)(drop_hints)


def verify(
    cask: CaskArgument,
    sample: Annotated[
        float, typer.Option(help="Part of the cask's bytes to prove, as shards chosen at random.", min=0, max=1)
    ] = 1.0,
    max_duration: Annotated[
        float | None, typer.Option(help="Stop after this many seconds; shards are then visited in random order.", min=0)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove every byte of every shard, or of some, and name the documents hit. Exit 3 when anything is damaged.

    A cask in an object store is proved as it lies there: each shard is fetched into a temporary
    folder, the next one while one is proved.
    """
    import secrets

    from logitcask_schemas.cask.integrity.verify import note_other_widths, verify_shards
    from logitcask_schemas.errors import CaskError

    reports: list[ShardReport] = []
    seed = None if max_duration is None and sample == 1 else secrets.randbits(32)
    with _surveyed(cask) as (surveyed, prove):
        opened = surveyed.cask
        shards = verify_shards(
            opened, table=surveyed.table, fraction=sample, max_seconds=max_duration, seed=seed, prove=prove
        )
        stopped: CaskError | None = None
        with byte_progress() as progress:
            task = progress.add_task("verifying", total=opened.num_bytes * sample)
            try:
                for report in shards:
                    reports.append(report)
                    progress.advance(task, report.entry.bytes)
            except CaskError as error:
                stopped = error
        note_other_widths(reports)
        result = _verification(surveyed, reports)
    if stopped is not None:
        result["stopped"] = str(stopped)
    if as_json:
        print_json(result)
    else:
        _print_verification(cask, result)
    if stopped is not None:
        raise stopped
    if result["problems"]:
        raise typer.Exit(EXIT_PROBLEMS)


@contextmanager
def _surveyed(place: str) -> "Iterator[tuple[Survey, Prove | None]]":
    """The survey of a cask, and what proves a shard of it where that is not simply a file."""
    from logitcask_schemas.cask.storage.object_store import is_url

    if not is_url(place):
        from logitcask_schemas.cask.integrity.verify import survey
        from logitcask_schemas.cask.location import LocalFolder

        yield survey(LocalFolder(folder=Path(place))), None
        return
    from logitcask_schemas.cask.integrity.remote_verify import survey_url

    with survey_url(place) as remote:
        yield remote.surveyed, remote.prove


def _verification(surveyed: "Survey", reports: "list[ShardReport]") -> dict[str, Any]:
    removed = [report.entry.name for report in reports if report.removed]
    return {
        "shards": len(surveyed.cask.entries),
        "verified": len(reports) - len(removed),
        "bytes": sum(report.entry.bytes for report in reports if not report.removed),
        "problems": [*surveyed.problems, *(problem for report in reports for problem in report.problems)],
        "damaged_shards": [report.entry.name for report in reports if report.shard_problems],
        "lost_documents": [identity for report in reports for identity in report.lost_documents],
        "unnamed_documents": sum(report.unnamed_documents for report in reports),
        "strangers": surveyed.unlisted_files,
        "removed": removed,
    }


def _print_verification(cask: str, result: dict[str, Any]) -> None:
    for problem in result["problems"]:
        print(problem)
    for identity in result["lost_documents"]:
        print(f"damaged document {identity}")
    for name in result["strangers"]:
        print(f"note: shards/{name} belongs to no entry (an unfinished publication, or not the cask's)")
    for name in result["removed"]:
        print(f"note: shard {name} was taken out of the cask in the meantime")
    hit = len(result["lost_documents"]) + result["unnamed_documents"]
    state = (
        f"{counted(len(result['problems']), 'problem')}, {counted(hit, 'document')} hit"
        if result["problems"]
        else "sound"
    )
    print(f"{result['verified']} of {counted(result['shards'], 'shard')} verified: {state}")
    if result["problems"]:
        print(_how_to_mend(cask))


def _how_to_mend(cask: str) -> str:
    from logitcask_schemas.cask.storage.object_store import is_url

    if not is_url(cask):
        return f"`logitcask cask repair {cask}` takes the damage out and lists what to capture again."
    return (
        "What is damaged in an object store is mended on a copy: `logitcask cask import --as-is "
        f"{cask} DIR` fetches it as it is, `logitcask cask repair DIR` takes the damage out and lists what to capture "
        "again, `logitcask cask export DIR URL` takes the result to a new address."
    )


def repair(
    cask: CaskArgument,
    older_than: Annotated[
        float, typer.Option(help="Of a URL: hours after which an object without an entry is a leftover.", min=0)
    ] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Take damaged shards and documents out; keep, rewrite or list every document. Exit 3 when documents were lost.

    Damaged files are moved to CASK/quarantine. Its requeue.jsonl is a corpus: the `logitcask submit` command that is
    printed captures it again. Of a cask in an object store, what writers that died have left is listed, and what is
    missing; nothing is changed there.
    """
    from logitcask_schemas.cask.integrity.repair import REQUEUE_NAME, repair_cask, submit_command
    from logitcask_schemas.cask.integrity.verify import survey
    from logitcask_schemas.cask.location import LocalFolder
    from logitcask_schemas.cask.storage.object_store import is_url

    if is_url(cask):
        return _list_leftovers(cask, older_than, as_json)
    path = Path(cask)
    with byte_progress() as progress:
        task = progress.add_task("verifying", total=survey(LocalFolder(folder=path)).cask.num_bytes)
        report = repair_cask(path, progress=lambda size: progress.advance(task, size))
    requeue = None if report.quarantine is None else report.quarantine / REQUEUE_NAME
    command = submit_command(path, requeue) if requeue and report.requeue else None
    if as_json:
        print_json(
            asdict(report)
            | {"quarantine": None if report.quarantine is None else str(report.quarantine)}
            | {"requeue": list(report.requeue), "requeue_file": requeue and str(requeue)}
            | {"submit": command}
        )
    else:
        _print_repair(cask, report, command)
    if report.requeue or report.lost or report.unnamed:
        raise typer.Exit(EXIT_PROBLEMS)
    return None


def _list_leftovers(url: str, hours: float, as_json: bool) -> None:
    from datetime import timedelta

    from logitcask_schemas.cask.integrity.leftovers import leftovers

    found = leftovers(url, timedelta(hours=hours))
    if as_json:
        print_json(
            {
                "leftovers": [f"shards/{file.name}" for file in found.unnamed],
                "leftover_bytes": sum(file.bytes for file in found.unnamed),
                "recent": [f"shards/{file.name}" for file in found.recent],
                "unfinished_uploads": [f"shards/{file.name}" for file in found.uploads],
                "incomplete": found.incomplete,
            }
        )
    else:
        for file in found.unnamed:
            print(f"leftover: shards/{file.name}, {file.bytes:,} bytes: no entry names it for {hours:g} hours")
        for file in found.uploads:
            print(f"leftover: parts of shards/{file.name}, whose upload was not finished")
        for sentence in found.incomplete:
            print(sentence)
        listed = len(found.unnamed) + len(found.uploads)
        print(f"{counted(listed, 'leftover')}; {counted(len(found.recent), 'object')} may be a writer's at work")
        if listed:
            print("No reader sees leftovers. Remove them with the store's own tools while no writer is at work there.")
        print(f"Damage inside of objects is for `logitcask cask verify {url}` to find. {_how_to_mend(url)}")
    if found.incomplete:
        raise typer.Exit(EXIT_PROBLEMS)


_IMPORT_AGAIN: Final = (
    "this cask was imported, so convert the cache again into it (logitcask cask convert); what it lacks is stored"
)


def _print_repair(cask: str, report: "RepairReport", command: str | None) -> None:
    from logitcask_schemas.cask.integrity.repair import LOST_NAME

    if report.stale_table:
        print(
            "note: the table of documents was missing or out of date, as an earlier repair was cut short or somebody "
            f"removed it; it was made anew. What that repair listed is below {Path(cask) / 'quarantine'}."
        )
    if report.without_hints:
        print(
            f"note: sound records with damaged hints in {counted(len(report.without_hints), 'shard')}: records stay, "
            "these hints are gone. Training with hints needs all: take them from a copy, or capture into a new cask."
        )
    if report.quarantine is None:
        print(f"{cask}: nothing{' else' if report.stale_table else ''} to repair")
        return
    for problem in report.problems:
        print(problem)
    for identity in report.requeue:
        print(f"capture again {identity}")
    for identity in report.lost:
        print(f"lost with its tokens {identity}")
    print(f"{counted(len(report.damaged_shards), 'damaged shard')}; sound documents in them: {report.kept_documents}")
    how = f": {command}" if command else f": {_IMPORT_AGAIN}" if report.requeue else ""
    print(f"{counted(len(report.requeue), 'document')} to capture again{how}")
    gone = f"{counted(len(report.lost), 'document')} whose tokens are lost as well: {report.quarantine / LOST_NAME}"
    print(gone + (f", and {report.unnamed} of which not even the id is known" if report.unnamed else ""))


def drop_hints(cask: CaskArgument, as_json: JsonOption = False) -> None:
    """Free what the hints of a cask take (hidden states and the like); its records stay. Nothing brings them back."""
    from logitcask_schemas.cask.dropping import drop_hints as drop
    from logitcask_schemas.cask.dropping import drop_store_hints
    from logitcask_schemas.cask.storage.object_store import is_url

    dropped = drop_store_hints(cask) if is_url(cask) else drop(Path(cask))
    if as_json:
        return print_json(asdict(dropped))
    return print(f"{cask}: hints of {counted(dropped.shards, 'shard')} dropped, {dropped.bytes:,} bytes freed")
