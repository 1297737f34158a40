"""`logitcask cask push` and `pull`: casks to the Hugging Face Hub, and back."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from logitcask_schemas.cli.output import JsonOption, byte_progress, number, print_json, print_table
from logitcask_schemas.cli.rows import GIVE
from logitcask_schemas.local_paths import local_folder


def register(app: typer.Typer) -> None:
    """Add the commands to `logitcask cask`."""
    app.command("push", rich_help_panel=GIVE)(push)
    app.command("pull", rich_help_panel=GIVE)(pull)


def push(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A cask in a local folder.", show_default=False)],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A data set of the Hub: hf://OWNER/NAME.", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a new data set public; else it is private.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="For its page, as the Hub spells it, such as apache-2.0.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a cask to the Hugging Face Hub, with a page about it; run again, it sends what is not there yet."""
    from logitcask_schemas.cask.exchange.hub import HubPlace
    from logitcask_schemas.cask.exchange.hub_transfer import PushOptions, push_cask
    from logitcask_schemas.cask.reader import Cask

    place, cask = HubPlace.parse(destination), Cask.open(local_folder(source))
    with byte_progress() as progress:
        task = progress.add_task("pushing", total=cask.num_bytes)
        options = PushOptions(public=public, licence=licence, quiet=True)
        report = push_cask(cask, place, options, lambda size: progress.advance(task, size))
    figures = {"source": source, "destination": place.url, "bytes": cask.num_bytes, **asdict(report)}
    _print(figures, as_json)
    if not as_json and report.card_kept:
        print("The page of the data set is somebody's own and stayed as it is.")
    if not as_json and any(entry.hints is not None for entry in cask.entries):
        print("The hints of the cask stay here: the Hub gets its records. Copy the folder to hand them on.")


def pull(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A data set of the Hub: hf://OWNER/NAME[@REVISION].", show_default=False),
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="New folder, or an unfinished pull.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy a cask from the Hugging Face Hub and prove every byte; run again, it goes on where it stopped."""
    from logitcask_schemas.cask.exchange.hub import HubPlace
    from logitcask_schemas.cask.exchange.hub_transfer import pull_cask

    place, folder = HubPlace.parse(source), local_folder(destination)
    with byte_progress() as progress:
        task, steps = progress.add_task("pulling", total=None), []
        for step in pull_cask(place, folder, planned=lambda size: progress.update(task, total=size)):
            steps.append(step)
            progress.advance(task, step.source.bytes)
    figures = {
        "source": place.url,
        "destination": destination,
        "shards": len(steps),
        "skipped": sum(step.skipped for step in steps),
        "documents": sum(step.target.documents for step in steps),
        "bytes": sum(step.target.bytes for step in steps),
    }
    _print(figures, as_json)


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(figures)
    else:
        print_table(("figure", "value"), [[name, number(value)] for name, value in figures.items()])
