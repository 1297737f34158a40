"""`logitcask cask rows`: a cask as Parquet tables of K ids and weights per token, for trainers of others."""

from typing import Annotated, Final

import typer

from logitcask_schemas.cli.output import JsonOption, byte_progress, number, print_json, print_table
from logitcask_schemas.local_paths import local_folder

GIVE: Final = "Give casks to other tools"


def register(app: typer.Typer) -> None:
    """Add the command to `logitcask cask`."""
    app.command("rows", rich_help_panel=GIVE)(rows)


def rows(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A cask: folder or URL (s3://bucket/folder).", show_default=False)
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="New folder for the Parquet files.", show_default=False)
    ],
    width: Annotated[
        int | None,
        typer.Option(
            "--k", help="Ids per token (default: the most that a position has, for which the cask is read once more)."
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="Names of the columns: rows or axolotl.")] = "rows",
    answers_only: Annotated[
        bool, typer.Option("--answers-only", help="Weights of tokens outside the answers become 0.")
    ] = False,
    renormalize: Annotated[
        bool, typer.Option("--renormalize", help="Take a cask of mode topk, its head renormalised: biased.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the draws where a position has more ids than K.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write one row per document: token ids, labels, and K target ids and weights per token that expect the teacher's.

    Run again, it goes on where it stopped.
    """
    from logitcask_schemas.cask.exchange.row_files import RowOptions, export_rows, largest_width
    from logitcask_schemas.cask.transfer.export import open_source

    folder = local_folder(destination)
    with open_source(source) as cask, byte_progress() as progress:
        if width is None:
            task = progress.add_task("counting ids", total=cask.num_bytes)
            width = largest_width(cask, lambda size: progress.advance(task, size))
        options = RowOptions(width=width, form=form, seed=seed, answers_only=answers_only, renormalize=renormalize)
        task = progress.add_task("to rows", total=cask.num_bytes)
        steps = []
        for entry, step in zip(cask.entries, export_rows(cask, folder, options), strict=True):
            steps.append(step)
            progress.advance(task, entry.bytes)
        figures = {
            "source": source,
            "destination": destination,
            "format": form,
            "k": width,
            "files": len(steps),
            "skipped": sum(step.skipped for step in steps),
            "documents": len(cask),
            "tokens": cask.num_tokens,
            "bytes": sum(step.bytes for step in steps),
        }
    if as_json:
        return print_json(figures)
    return print_table(("figure", "value"), [[name, number(value)] for name, value in figures.items()])
