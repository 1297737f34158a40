"""`logitcask cask export` and `logitcask cask import`: the same cask in another carrier, or in another place."""

from typing import Annotated

import typer

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A cask: folder or URL (s3://bucket/folder).", show_default=False)
]
Destination = Annotated[
    str, typer.Argument(metavar="DST", help="New folder or URL, or an unfinished export.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]


def register(app: typer.Typer) -> None:
    """Add both commands to `logitcask cask`."""
    app.command("export")(export_command)
    app.command("import")(import_command)


def export_command(
    source: Source,
    destination: Destination,
    carrier: Annotated[str, typer.Option(help="File format of the shards: zarr, parquet or arrow.")] = "zarr",
    as_json: JsonOption = False,
) -> None:
    """Copy a cask into another carrier or place; run again, it goes on where it stopped."""
    _copy(source, destination, carrier, as_json)


def import_command(source: Source, destination: Destination, as_json: JsonOption = False) -> None:
    """Copy a cask of any carrier into Arrow shards, to train from; run again, it goes on where it stopped."""
    _copy(source, destination, "arrow", as_json)


def _copy(source: str, destination: str, carrier: str, as_json: bool) -> None:
    from logitcask_schemas.cask.export import export_cask, open_source, target_of
    from logitcask_schemas.cask_cli import _byte_progress, _number, _print_json, _print_table

    with open_source(source) as cask, _byte_progress() as progress:
        task = progress.add_task(f"to {carrier}", total=cask.num_bytes)
        steps = []
        for step in export_cask(cask, target_of(destination), carrier):
            steps.append(step)
            progress.advance(task, step.source.bytes)
        documents = len(cask)
    figures = {
        "source": source,
        "destination": destination,
        "carrier": carrier,
        "shards": len(steps),
        "skipped": sum(step.skipped for step in steps),
        "documents": documents,
        "source_bytes": sum(step.source.bytes for step in steps),
        "destination_bytes": sum(step.target.bytes for step in steps),
    }
    if as_json:
        _print_json(figures)
    else:
        _print_table(("figure", "value"), [[name, _number(value)] for name, value in figures.items()])
