"""`logitcask cask verify`, `repair`, `merge` and `split`: proving casks, mending them, joining and dividing them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

EXIT_PROBLEMS: Final = 3
CaskArgument = Annotated[Path, typer.Argument(metavar="CASK", help="The cask's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `logitcask cask`."""
    for name, command in (("verify", verify), ("repair", repair), ("merge", merge), ("split", split)):
        app.command(name)(command)


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
    """Prove every byte of every shard, or of some; names the documents hit. Exit 3 when anything is damaged."""
    import secrets

    from logitcask_schemas.cask.survey import survey
    from logitcask_schemas.cask.verify import verify_shards
    from logitcask_schemas.cask_cli import _byte_progress, _print_json

    taken = survey(cask)
    opened, reports = taken.cask, []
    seed = None if max_duration is None and sample == 1 else secrets.randbits(32)
    shards = verify_shards(opened, table=taken.table, fraction=sample, max_seconds=max_duration, seed=seed)
    with _byte_progress() as progress:
        task = progress.add_task("verifying", total=opened.num_bytes * sample)
        for report in shards:
            reports.append(report)
            progress.advance(task, report.entry.bytes)
    problems = [*taken.problems, *(problem for report in reports for problem in report.problems)]
    lost = [identity for report in reports for identity in report.lost_documents]
    unnamed = sum(report.unnamed_documents for report in reports)
    result = {
        "shards": len(opened.entries),
        "verified": len(reports),
        "bytes": sum(report.entry.bytes for report in reports),
        "problems": problems,
        "damaged_shards": [report.entry.name for report in reports if report.shard_problems],
        "lost_documents": lost,
        "unnamed_documents": unnamed,
        "strangers": taken.strangers,
    }
    if as_json:
        _print_json(result)
    else:
        for problem in problems:
            print(problem)
        for identity in lost:
            print(f"damaged document {identity}")
        for name in taken.strangers:
            print(f"note: shards/{name} belongs to no entry (an unfinished publication, or not the cask's)")
        state = f"{len(problems)} problems, {len(lost) + unnamed} documents hit" if problems else "sound"
        print(f"{len(reports)} of {len(opened.entries)} shards verified: {state}")
        if problems:
            print(f"`logitcask cask repair {cask}` takes the damage out and lists what to capture again.")
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


def repair(cask: CaskArgument, as_json: JsonOption = False) -> None:
    """Take damaged shards and documents out; keep, rewrite or list every document. Exit 3 when documents were lost.

    Damaged files are moved to CASK/quarantine. Its requeue.jsonl is a corpus: `logitcask submit` takes it as it is.
    """
    from logitcask_schemas.cask.repair import LOST_NAME, REQUEUE_NAME, repair_cask
    from logitcask_schemas.cask.survey import survey
    from logitcask_schemas.cask_cli import _byte_progress, _print_json

    with _byte_progress() as progress:
        task = progress.add_task("verifying", total=survey(cask).cask.num_bytes)
        report = repair_cask(cask, progress=lambda size: progress.advance(task, size))
    requeue = None if report.quarantine is None else report.quarantine / REQUEUE_NAME
    if as_json:
        _print_json(
            asdict(report)
            | {"quarantine": None if report.quarantine is None else str(report.quarantine)}
            | {"requeue": [identity for identity, _ in report.requeue], "requeue_file": requeue and str(requeue)}
        )
    elif report.quarantine is None:
        print(f"{cask}: nothing to repair")
    else:
        for problem in report.problems:
            print(problem)
        for identity, _ in report.requeue:
            print(f"capture again {identity}")
        for identity in report.lost:
            print(f"lost with its tokens {identity}")
        print(f"{len(report.damaged_shards)} damaged shards; {report.kept_documents} of their documents were sound")
        print(f"{len(report.requeue)} documents to capture again: logitcask submit {requeue}")
        gone = f"{len(report.lost)} documents whose tokens are lost as well: {report.quarantine / LOST_NAME}"
        print(gone + (f", and {report.unnamed} of which not even the id is known" if report.unnamed else ""))
    if report.requeue or report.lost or report.unnamed:
        raise typer.Exit(EXIT_PROBLEMS)


def merge(
    target: Annotated[Path, typer.Argument(metavar="DST", help="A cask, or a new folder.", show_default=False)],
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Casks to add.", show_default=False)],
    copy: Annotated[bool, typer.Option("--copy", help="Copy shards that could be shared by hard links.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove shards before taking them over.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Bring several casks of one teacher and capture spec together; every document is stored once."""
    from logitcask_schemas.cask.merge import merge_casks
    from logitcask_schemas.cask.reader import Cask

    total = sum(Cask.open(source).num_bytes for source in sources)
    with _progress() as progress:
        task = progress.add_task("merging", total=total)
        report = merge_casks(
            target, sources, link=not copy, verify=verify, progress=lambda size: progress.advance(task, size)
        )
    _print_figures({"target": str(target), **asdict(report)}, as_json)


def split(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A cask; it stays as it is.", show_default=False)],
    into: Annotated[
        tuple[Path, Path], typer.Option(metavar="A B", help="Folders: the fraction goes to A, the rest to B.")
    ],
    fraction: Annotated[float, typer.Option(help="Part of the documents that goes to A.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Chooses which.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Split a cask by document, into held-out and training set; no document changes sides when the cask grows."""
    from logitcask_schemas.cask.reader import Cask
    from logitcask_schemas.cask.split import SplitRule, split_cask

    rule = SplitRule(fraction=fraction, seed=seed)
    with _progress() as progress:
        task = progress.add_task("splitting", total=Cask.open(source).num_bytes)
        report = split_cask(source, into, rule, progress=lambda size: progress.advance(task, size))
    casks = {
        str(path): {"added": report.added[side], "present": report.present[side]} for side, path in enumerate(into)
    }
    if as_json:
        from logitcask_schemas.cask_cli import _print_json

        return _print_json({"source": str(source), "fraction": fraction, "seed": seed, "casks": casks})
    for path, counts in casks.items():
        print(f"{path}: {counts['added']:,} documents added, {counts['present']:,} were there")
    return None


def _progress() -> Any:
    from logitcask_schemas.cask_cli import _byte_progress

    return _byte_progress()


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    from logitcask_schemas.cask_cli import _number, _print_json, _print_table

    if as_json:
        _print_json(figures)
    else:
        _print_table(("figure", "value"), [[name, _number(value)] for name, value in figures.items()])
