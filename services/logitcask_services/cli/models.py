"""`logitcask models`: list and fetch teachers that come from the package index."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from logitcask_schemas.cli.output import JsonOption

app = typer.Typer(
    help="Fetch small teachers that come from the package index.", no_args_is_help=True, add_completion=False
)


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the teachers that `fetch` knows, and where a fetched one lies."""
    from logitcask_services.models import CATALOG, default_folder, is_fetched

    rows = [
        {
            "name": source.name,
            "title": source.title,
            "license": source.license,
            "source": source.requirement,
            "download_bytes": source.download_bytes,
            "folder": str(folder) if is_fetched(source.name, folder) else None,
        }
        for source in CATALOG.values()
        for folder in [default_folder(source.name)]
    ]
    if as_json:
        typer.echo(json.dumps({"models": rows}))
        return
    for row in rows:
        typer.echo(f"{row['name']}  {row['title']}")
        typer.echo(f"    {row['license']}, from {row['source']}; {row['folder'] or 'not fetched'}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name from `logitcask models list`, such as smollm2-135m.")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder to make; default: the user's cache folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a teacher into a Hugging Face folder. A second run finds it there and does nothing."""
    from logitcask_services.models import fetch_model

    console = Console(stderr=True)
    with console.status(f"fetching {name}"):
        folder = fetch_model(name, to, progress=lambda line: console.print(line, highlight=False))
    typer.echo(json.dumps({"name": name, "folder": str(folder)}) if as_json else str(folder))
