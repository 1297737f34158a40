"""`logitcask cask`: list casks and shards, show documents, give figures; see `cask_care_cli` for the rest."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from logitcask_schemas.cask_care_cli import register as register_care
from logitcask_schemas.cask_export_cli import register as register_export

if TYPE_CHECKING:
    from logitcask_schemas.cask_strip import Measure

app = typer.Typer(help="Look into casks, prove what they hold.", no_args_is_help=True, add_completion=False)

CaskArgument = Annotated[Path, typer.Argument(metavar="CASK", help="The cask's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]


@app.command()
def ls(
    path: Annotated[Path, typer.Argument(help="A cask, or a folder of casks.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """List the casks in a folder, or the shards of one cask."""
    from logitcask_schemas.cask.layout import MANIFEST_NAME
    from logitcask_schemas.cask.reader import Cask
    from logitcask_schemas.errors import CaskNotFoundError

    if (path / MANIFEST_NAME).exists():
        entries = Cask.open(path).entries
        if as_json:
            return _print_json([entry.model_dump(mode="json") for entry in entries])
        columns = ("name", "documents", "tokens", "head_entries", "tail_entries", "bytes")
        return _print_table(columns, [[getattr(entry, name) for name in columns] for entry in entries])
    if not path.is_dir():
        raise CaskNotFoundError(f"{path}: no such folder")
    found = sorted(child for child in path.iterdir() if (child / MANIFEST_NAME).exists())
    casks = [(child.name, Cask.open(child)) for child in found]
    rows = [
        {
            "name": name,
            "teacher": cask.manifest.teacher.model,
            "shards": len(cask.entries),
            "documents": len(cask),
            "tokens": cask.num_tokens,
            "bytes": cask.num_bytes,
        }
        for name, cask in casks
    ]
    if as_json:
        return _print_json(rows)
    return _print_table(
        ("name", "teacher", "shards", "documents", "tokens", "bytes"), [list(row.values()) for row in rows]
    )


@app.command()
def show(
    cask: CaskArgument,
    document: Annotated[str, typer.Argument(help="A document's number, or the start of its id in hex.")] = "0",
    start: Annotated[int, typer.Option(help="First position to show.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="How many positions to show.", min=1)] = 20,
    alternatives: Annotated[int, typer.Option(help="Head entries to show per position.", min=1)] = 5,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The teacher's folder, to show text for ids (needs the trainer extra).")
    ] = None,
    color: Annotated[
        str, typer.Option(help="What colours the strip of tokens: entropy, or probability of the token that came.")
    ] = "entropy",
    as_json: JsonOption = False,
) -> None:
    """Show what the teacher said about a document: its tokens in the colour of the teacher's doubt, then positions.

    Green is sure, red is not (an entropy of 5 nats, or a probability of 0).
    """
    from logitcask_schemas.cask.reader import Cask
    from logitcask_schemas.cask.show import describe_positions, find_document
    from logitcask_schemas.cask_strip import token_strip

    opened = Cask.open(cask)
    number = find_document(opened, document)
    text = _text_of_ids(tokenizer, opened.manifest.teacher.tokenizer_fingerprint) if tokenizer else None
    described = describe_positions(opened, number, start=start, count=count, alternatives=alternatives, text=text)
    if as_json:
        return _print_json(described)
    rows = [
        [
            position["position"],
            position["token"],
            position["next"],
            f"{position['probability']:.3f}",
            f"{position['entropy']:.3f}",
            f"{position['captured']:.4f}",
            position["draws"],
            "  ".join(f"{token} {probability:.3f}" for token, probability in position["head"]),
        ]
        for position in described["positions"]
    ]
    print(f"document {number} · {described['id']} · {described['tokens']} tokens")
    Console(highlight=False).print(token_strip(described["positions"], _measure(color), texts=tokenizer is not None))
    return _print_table(
        ("position", "token", "next", "p(next)", "entropy (nats)", "head mass", "tail draws", "head"), rows
    )


@app.command()
def stats(cask: CaskArgument, as_json: JsonOption = False) -> None:
    """Sizes, entries per position, bytes per token by column; reads the index only."""
    from logitcask_schemas.cask.reader import Cask
    from logitcask_schemas.cask.stats import cask_stats

    opened = Cask.open(cask)
    figures = asdict(cask_stats(opened))
    if as_json:
        manifest = opened.manifest.model_dump(mode="json")
        return _print_json({**figures, "teacher": manifest["teacher"], "capture": manifest["capture"]})
    columns = figures.pop("column_bytes_per_token")
    _print_table(("figure", "value"), [[name, _number(value)] for name, value in figures.items()])
    return _print_table(("column", "bytes/token"), [[name, f"{value:.3f}"] for name, value in columns.items()])


def _measure(name: str) -> "Measure":
    if name not in ("entropy", "probability"):
        raise typer.BadParameter(f"{name!r} is neither entropy nor probability", param_hint="--color")
    return "entropy" if name == "entropy" else "probability"


def _text_of_ids(folder: Path, expected: str) -> Any:
    """A function from ids to texts, after proving that the folder's tokenizer is the cask's."""
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        from logitcask_schemas.errors import MissingExtraError

        raise MissingExtraError("cask show --tokenizer", "trainer", "transformers") from error
    from logitcask_schemas.errors import IdentityMismatchError
    from logitcask_schemas.tokenizer_fingerprint import tokenizer_fingerprint

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if (found := tokenizer_fingerprint(tokenizer)) != expected:
        raise IdentityMismatchError(f"{folder}: tokenizer fingerprint {found}, the cask's records need {expected}")
    return lambda token_id: json.dumps(tokenizer.decode([token_id]), ensure_ascii=False)


def _print_json(document: Any) -> None:
    json.dump(document, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _print_table(columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    table = Table(box=None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if rows and isinstance(rows[0][i], int) else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(_number(value) for value in row))
    Console(markup=False, highlight=False).print(table)


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _byte_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


register_export(app)
register_care(app)
