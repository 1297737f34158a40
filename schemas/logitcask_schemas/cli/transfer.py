"""`logitcask cask export`, `import`, `merge` and `split`: copying, joining and dividing casks."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from logitcask_schemas.cli.output import JsonOption, byte_progress, number, print_json, print_table
from logitcask_schemas.terminal import counted

Record = Literal["packed", "flat"]
ARRANGE: Final = "Copy, join and divide casks"
Sources = Annotated[list[str], typer.Argument(metavar="SRC...", help="Casks to add: folders or URLs.")]
Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A cask: folder or URL (s3://bucket/folder).", show_default=False)
]
Destination = Annotated[
    str, typer.Argument(metavar="DST", help="New folder or URL, or an unfinished export.", show_default=False)
]

SingleWriter = Annotated[
    bool,
    typer.Option("--single-writer", help="Nobody else writes there; needed where a store has no conditional puts."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `logitcask cask`."""
    app.command("export", rich_help_panel=ARRANGE)(export_command)
    app.command("import", rich_help_panel=ARRANGE)(import_command)
    app.command("merge", rich_help_panel=ARRANGE)(merge)
    app.command("split", rich_help_panel=ARRANGE)(split)


def export_command(
    source: Source,
    destination: Destination,
    carrier: Annotated[
        str | None, typer.Option(help="File format of the shards: zarr, parquet, packed or arrow; default: zarr.")
    ] = None,
    record: Annotated[
        Record | None,
        typer.Option(
            help="packed: every value in a byte, rounded at random, bits packed by a rank table fitted on SRC; "
            "flat: Arrow shards of the same values, to train from."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a cask into another file format or place, to ship or archive it; run again, it goes on where it stopped.

    A packed copy of a cask with another codec is made anew.
    """
    if record is not None and carrier is not None:
        raise typer.BadParameter("decides the file format; leave --carrier out", param_hint="--record")
    if record == "packed":
        return _print(_packed(source, destination), as_json)
    return _print(_copied(source, destination, "arrow" if record == "flat" else carrier or "zarr"), as_json)


def import_command(
    source: Source,
    destination: Destination,
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="From a URL: copy every file as it is, damage included, for `cask repair`."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a cask of any file format into Arrow shards, to train from; run again, it goes on where it stopped."""
    from logitcask_schemas.cask.storage.object_store import is_url
    from logitcask_schemas.errors import CaskCorruptionError

    if as_is:
        if not is_url(source) or is_url(destination):
            raise typer.BadParameter(
                "copies from a URL to a folder; folders are copied by `cp -r`", param_hint="--as-is"
            )
        return _print(_copied_as_is(source, destination), as_json)
    try:
        figures = _copied(source, destination, "arrow")
    except CaskCorruptionError as error:
        if not is_url(source):
            raise
        hint = f"To keep what is sound: logitcask cask import --as-is {source} NEW-FOLDER, then cask repair NEW-FOLDER."
        raise CaskCorruptionError(f"{error} {hint}") from error
    return _print(figures, as_json)


def _copied(source: str, destination: str, carrier: str) -> dict[str, Any]:
    from logitcask_schemas.cask.transfer.export import export_cask, open_source, target_of

    with open_source(source) as cask, byte_progress() as progress:
        task = progress.add_task(f"to {carrier}", total=cask.num_bytes)
        steps = []
        for step in export_cask(cask, target_of(destination), carrier):
            steps.append(step)
            progress.advance(task, step.source.bytes)
        documents = len(cask)
    return {
        "source": source,
        "destination": destination,
        "carrier": carrier,
        "shards": len(steps),
        "skipped": sum(step.skipped for step in steps),
        "documents": documents,
        "source_bytes": sum(step.source.bytes for step in steps),
        "destination_bytes": sum(step.target.bytes for step in steps),
    }


def _packed(source: str, destination: str) -> dict[str, Any]:
    from logitcask_schemas.cask.transfer.export import open_source, target_of
    from logitcask_schemas.cask.transfer.packing import CODEC, export_packed

    with open_source(source) as cask, byte_progress() as progress:
        task = progress.add_task("to packed records", total=cask.num_bytes)
        steps = []
        for step in export_packed(cask, target_of(destination)):
            steps.append(step)
            progress.advance(task, step.source.bytes)
        documents, tokens, codec = len(cask), cask.num_tokens, cask.manifest.capture.logprob_codec
    destination_bytes = sum(step.target.bytes for step in steps)
    return {
        "source": source,
        "destination": destination,
        "carrier": "packed",
        "codec": codec if codec == CODEC else f"{CODEC}, rounded at random from {codec}",
        "shards": len(steps),
        "skipped": sum(step.skipped for step in steps),
        "documents": documents,
        "source_bytes": sum(step.source.bytes for step in steps),
        "destination_bytes": destination_bytes,
        "destination_bytes_per_token": round(destination_bytes / max(tokens, 1), 3),
    }


def _copied_as_is(source: str, destination: str) -> dict[str, Any]:
    from logitcask_schemas.cask.transfer.export import copy_as_is

    with byte_progress() as progress:
        task = progress.add_task("as it is", total=None)
        steps = []
        for step in copy_as_is(source, Path(destination), planned=lambda size: progress.update(task, total=size)):
            steps.append(step)
            progress.advance(task, step.bytes)
    return {
        "source": source,
        "destination": destination,
        "files": len(steps),
        "skipped": sum(step.skipped for step in steps),
        "bytes": sum(step.bytes for step in steps),
    }


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(figures)
    else:
        print_table(("figure", "value"), [[name, number(value)] for name, value in figures.items()])


def merge(
    target: Annotated[str, typer.Argument(metavar="DST", help="A cask, or a new folder or URL.", show_default=False)],
    sources: Sources,
    copy: Annotated[bool, typer.Option("--copy", help="Copy shards that could be shared by hard links.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove shards before taking them over.")] = True,
    single_writer: SingleWriter = False,
    as_json: JsonOption = False,
) -> None:
    """Bring several casks of one teacher and capture spec together; every document is stored once."""
    from logitcask_schemas.cask.transfer.merge import merge_casks

    with byte_progress() as progress:
        task = progress.add_task("merging", total=None)
        report = merge_casks(
            target,
            sources,
            link=not copy,
            verify=verify,
            single_writer=single_writer,
            planned=lambda total: progress.update(task, total=total),
            progress=lambda size: progress.advance(task, size),
        )
    figures = {"target": target, **asdict(report)}
    if as_json:
        return print_json(figures)
    print_table(("figure", "value"), [[name, number(value)] for name, value in figures.items()])
    if report.answers_left_out:
        print(
            f"{report.answers_left_out:,} documents of the sources say which tokens are answers; the target had "
            "them before and does not say. Merge target and sources into a new folder to keep what they say."
        )
    return None


def split(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A cask: folder or URL; it stays as it is.", show_default=False)
    ],
    into: Annotated[
        tuple[str, str], typer.Option(metavar="A B", help="Folders or URLs: the fraction goes to A, the rest to B.")
    ],
    fraction: Annotated[float, typer.Option(help="Part of the documents that goes to A.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Chooses which.", min=0)] = 0,
    single_writer: SingleWriter = False,
    as_json: JsonOption = False,
) -> None:
    """Split a cask by document, into held-out and training set; no document changes sides when the cask grows."""
    from logitcask_schemas.cask.transfer.split import SplitRule, split_cask

    rule = SplitRule(fraction=fraction, seed=seed)
    with byte_progress() as progress:
        task = progress.add_task("splitting", total=None)
        report = split_cask(
            source,
            into,
            rule,
            single_writer=single_writer,
            planned=lambda total: progress.update(task, total=total),
            progress=lambda size: progress.advance(task, size),
        )
    casks = {path: {"added": report.added[side], "present": report.present[side]} for side, path in enumerate(into)}
    if as_json:
        return print_json({"source": source, "fraction": fraction, "seed": seed, "casks": casks})
    for path, counts in casks.items():
        print(f"{path}: {counted(counts['added'], 'document')} added, {counts['present']:,} there before")
    return None
