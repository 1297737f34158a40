"""`logitcask cask export` and `logitcask cask import`: the same cask in another carrier, or in another place."""

from pathlib import Path
from typing import Annotated, Any

import typer

from logitcask_schemas.cli.integrity import ARRANGE
from logitcask_schemas.cli.output import JsonOption, byte_progress, number, print_json, print_table

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A cask: folder or URL (s3://bucket/folder).", show_default=False)
]
Destination = Annotated[
    str, typer.Argument(metavar="DST", help="New folder or URL, or an unfinished export.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add both commands to `logitcask cask`."""
    app.command("export", rich_help_panel=ARRANGE)(export_command)
    app.command("import", rich_help_panel=ARRANGE)(import_command)


def export_command(
    source: Source,
    destination: Destination,
    carrier: Annotated[str, typer.Option(help="File format of the shards: zarr, parquet or arrow.")] = "zarr",
    as_json: JsonOption = False,
) -> None:
    """Copy a cask into another file format or place, to ship or archive it; run again, it goes on where it stopped."""
    _print(_copied(source, destination, carrier), as_json)


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
