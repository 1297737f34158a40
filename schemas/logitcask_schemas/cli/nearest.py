"""`logitcask cask nearest`: the documents whose vectors are nearest to a document's, or to a given one."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from logitcask_schemas.cli.output import CaskArgument, JsonOption, print_json, print_table


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `logitcask cask`."""
    app.command(rich_help_panel=panel)(nearest)


def nearest(
    cask: CaskArgument,
    to: Annotated[
        str | None, typer.Option("--to", help="A document of the cask: its number, or the start of its id in hex.")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", help="File of a vector: .npy, or a JSON list of numbers.")
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", help="How many documents.", min=1)] = 5,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Layer of the teacher (default: the last that the cask has).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the documents nearest to one, by the teacher's state after the whole document (hints of positions last)."""
    from logitcask_schemas.cask.describe import find_document
    from logitcask_schemas.cask.nearest import as_stored, read_vector, vector_of
    from logitcask_schemas.cask.nearest import nearest as nearest_to
    from logitcask_schemas.cli.cask import open_place

    if (to is None) == (vector is None):
        raise typer.BadParameter("give either --to or --vector")
    opened = open_place(cask)
    if to is not None:
        document: int | None = find_document(opened, to)
        assert document is not None, "find_document raises where there is none"
        asked = vector_of(opened, document, layer=layer)
    else:
        assert vector is not None, "one of the two is given"
        document, asked = None, as_stored(opened, read_vector(vector))
    neighbours = nearest_to(opened, asked, count=count, layer=layer, leave_out=document)
    if as_json:
        return print_json([asdict(neighbour) for neighbour in neighbours])
    return print_table(("document", "cosine", "id"), [[n.document, f"{n.cosine:.4f}", n.id[:16]] for n in neighbours])
