"""`logitcask download`: fetch a cask from a service."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.terminal import EXIT_INTERRUPTED, counted
from logitcask_services.cli.connection import KeyFileOption, ServerOption, connect, say
from logitcask_services.cli.request_options import require_cask_name

app = typer.Typer(help="Fetch a cask from a service.", add_completion=False)


@app.command()
def download(
    cask: Annotated[str, typer.Argument(help="Name of the cask at the service.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to make; default: the cask's name, here.")
    ] = None,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a cask; the folder appears when all is there and checked. Run it again to go on with a broken download."""
    require_cask_name(cask)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with connect(server, api_key_file) as client, Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("downloading", total=None)
            here = client.download(
                cask,
                to or Path(cask),
                on_bytes=lambda count, total: progress.update(task, completed=count, total=total),
            )
    except KeyboardInterrupt:
        say(console, "what has come is kept; the same command goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        document = {"folder": str(here.folder), "shards": here.shards, "bytes": here.bytes}
        typer.echo(json.dumps({**document, "received_bytes": here.received_bytes}))
        return
    what = f"{counted(here.shards, 'shard')} of {counted(here.bytes, 'byte')}"
    say(Console(), f"{here.folder}: {what}" + ("" if here.received_bytes else ", there already"))
