"""`logitcask view`: look into casks in a browser, without a service."""

from pathlib import Path
from typing import Annotated, Final

import typer

app = typer.Typer(help="Look into casks in a browser.", add_completion=False)
DEFAULT_PORT: Final = 8010


@app.command()
def view(
    places: Annotated[
        list[str],
        typer.Argument(metavar="CASK...", help="Casks, or folders that hold casks: folders or URLs."),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the teacher's tokenizer, or model; without it tokens are ids.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of training runs and reports, whose curves are shown beside.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="A student's KL at each token, as `report --token-scores` writes them.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1; 0: any that is free.")
    ] = DEFAULT_PORT,
) -> None:
    """Show casks at http://127.0.0.1:PORT until Ctrl-C. Nothing is changed, and no other machine can reach it."""
    from logitcask_schemas.cli.tokenizers import load_tokenizer
    from logitcask_services.http.pages.viewer.application import create_viewer, listen, run_viewer
    from logitcask_services.http.pages.viewer.runs import RunFolder
    from logitcask_services.http.pages.viewer.scores import TokenScores
    from logitcask_services.http.pages.viewer.shelf import FolderShelf

    shelf = FolderShelf(places, None if tokenizer is None else load_tokenizer(tokenizer, command="logitcask view"))
    viewer = create_viewer(
        shelf,
        None if runs is None else RunFolder(runs),
        None if scores is None else TokenScores(scores),
    )
    run_viewer(viewer, listen(port), lambda address: typer.echo(address, err=True))
