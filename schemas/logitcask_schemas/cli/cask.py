"""`logitcask cask`: list casks and shards, show documents, give figures; `integrity` and `transfer` bring the rest."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from logitcask_schemas.cask.format.layout import MANIFEST_NAME
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.object_store import RemoteStore, is_url
from logitcask_schemas.cli.convert import register as register_convert
from logitcask_schemas.cli.hub import register as register_hub
from logitcask_schemas.cli.integrity import register as register_care
from logitcask_schemas.cli.nearest import register as register_nearest
from logitcask_schemas.cli.output import (
    CaskArgument,
    JsonOption,
    byte_progress,
    console,
    number,
    print_json,
    print_line,
    print_table,
)
from logitcask_schemas.cli.rows import register as register_rows
from logitcask_schemas.cli.tokenizers import load_tokenizer
from logitcask_schemas.cli.transfer import register as register_export
from logitcask_schemas.errors import CaskError, CaskNotFoundError
from logitcask_schemas.terminal import counted

if TYPE_CHECKING:
    from logitcask_schemas.cli.show import Measure


CACHE_BYTES: Final = 4 << 30
"""Of each cask's shards that the commands keep: somebody looks around; training has a cache of its own."""


def default_cache() -> Path:
    """In the user's cache folder: $XDG_CACHE_HOME/logitcask/casks, or ~/.cache/logitcask/casks."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of these variables: a relative path is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "logitcask" / "casks"


def open_place(place: str, *, cache: Path | None = None, cache_bytes: int | None = None) -> "Cask":
    """Open a cask from its folder or URL; of a URL, nothing is kept before a shard or the documents' ids are needed."""
    return Cask.open(place, cache=cache or default_cache(), cache_bytes=cache_bytes or CACHE_BYTES)


_AT_ONCE: Final = 16
"""Casks of an object store asked for at a time; each takes a few requests."""


def cask_at(place: str) -> Cask | None:
    """The cask that a place is, or None where it is none; errors as `Cask.open`."""
    if not is_url(place):
        return open_place(place) if (Path(place) / MANIFEST_NAME).exists() else None
    try:
        return open_place(place)
    except CaskNotFoundError:
        return None


def casks_in(place: str) -> list[dict[str, Any]]:
    """Figures of every cask right below a place, by name; those that cannot be opened have the member `error` instead.

    Raises:
        CaskNotFoundError: There is no such folder.
        CaskError: The store does not answer.
    """
    if is_url(place):
        store = RemoteStore(place)
        names = store.folders()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            results = list(pool.map(lambda name: _cask_or_error(store.below(name).url), names))
        # Without a manifest it is something else that lies beside the casks.
        casks = {
            name: cask for name, cask in zip(names, results, strict=True) if not isinstance(cask, CaskNotFoundError)
        }
    else:
        if not (folder := Path(place)).is_dir():
            raise CaskNotFoundError(f"{folder}: no such folder")
        children = sorted(child.name for child in folder.iterdir() if (child / MANIFEST_NAME).exists())
        casks = {name: _cask_or_error(str(folder / name)) for name in children}
    return [_row(name, cask) for name, cask in casks.items()]


def _cask_or_error(place: str) -> Cask | CaskError:
    try:
        return open_place(place)
    except CaskError as error:
        return error


def _row(name: str, cask: Cask | CaskError) -> dict[str, Any]:
    if isinstance(cask, CaskError):
        return {"name": name, "error": str(cask)}
    return {
        "name": name,
        "teacher": cask.manifest.teacher.model,
        "shards": len(cask.entries),
        "documents": len(cask),
        "tokens": cask.num_tokens,
        "bytes": cask.num_bytes,
    }


app = typer.Typer(
    help="A cask is a folder, or a folder of an object store, that holds what a teacher said about documents. These "
    "commands look into casks, prove and mend them, and copy, join and divide them.",
    no_args_is_help=True,
    add_completion=False,
)

LOOK: Final = "Look into a cask"
_SHARD_COLUMNS: Final = ("name", "documents", "tokens", "head_entries", "tail_entries", "bytes")
_SHARD_TITLES: Final = ("shard", "documents", "tokens", "head", "draws", "bytes")
_CASK_COLUMNS: Final = ("name", "teacher", "shards", "documents", "tokens", "bytes")


@app.command(rich_help_panel=LOOK)
def ls(
    place: Annotated[str, typer.Argument(metavar="[PLACE]", help="A cask, or what holds casks: folder or URL.")] = ".",
    as_json: JsonOption = False,
) -> None:
    """List the casks in a folder, or the shards (files) of one cask. Exit 3 when a cask in the folder is damaged."""
    from logitcask_schemas.cli.cask import cask_at, casks_in
    from logitcask_schemas.terminal import EXIT_PROBLEMS

    if (cask := cask_at(place)) is not None:
        if as_json:
            return print_json([entry.model_dump(mode="json") for entry in cask.entries])
        rows = [[getattr(entry, name) for name in _SHARD_COLUMNS] for entry in cask.entries]
        if cask.manifest.capture.hints is None:
            return print_table(_SHARD_TITLES, rows)
        sizes = ["dropped" if entry.hints is None else entry.hints.bytes for entry in cask.entries]
        return print_table(
            (*_SHARD_TITLES, "bytes of hints"), [[*row, size] for row, size in zip(rows, sizes, strict=True)]
        )
    listed = casks_in(place)
    damaged = [row for row in listed if "error" in row]
    if as_json:
        print_json(listed)
    elif not listed:
        typer.echo(f"no casks in {place}", err=True)
    else:
        print_table(_CASK_COLUMNS, [[row[name] for name in _CASK_COLUMNS] for row in listed if "error" not in row])
        for row in damaged:
            typer.echo(f"{row['name']}: {row['error']}", err=True)
    if damaged:
        raise typer.Exit(EXIT_PROBLEMS)
    return None


@app.command(rich_help_panel=LOOK)
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
    cache: Annotated[
        Path | None,
        typer.Option(
            help="For a URL: folder for fetched shards (default: logitcask/casks in the user's cache folder)."
        ),
    ] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="For a URL: most bytes of this cask to keep there (4 GiB).", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the teacher said about a document: its tokens in the colour of the teacher's doubt, then positions.

    Green is sure, red is not (an entropy of 5 nats, or a probability of 0).
    """
    from logitcask_schemas.cask.describe import describe_hints, describe_positions, find_document, hints_text
    from logitcask_schemas.cli.cask import open_place
    from logitcask_schemas.cli.show import print_positions, token_strip

    measure = _measure(color)
    opened = open_place(cask, cache=cache, cache_bytes=cache_bytes)
    at = find_document(opened, document)
    text = _text_of_ids(tokenizer, opened.manifest.teacher.tokenizer_fingerprint) if tokenizer else None
    described = _from_shard(
        opened,
        at,
        lambda: describe_positions(opened, at, start=start, count=count, alternatives=alternatives, text=text),
    )
    if as_json:
        return print_json(described)
    out = console()
    answers = described["answers"]
    says = "" if answers is None else f", {answers:,} of them of answers{' (underlined)' if answers else ''}"
    print_line(out, Text(f"document {at:,} of {len(opened):,}: {counted(described['tokens'], 'token')}{says}"))
    print_line(out, Text(f"id {described['id']}"))
    if (hints := describe_hints(opened)) is not None:
        print_line(out, Text(f"hints: {hints_text(hints)}"))
    out.print(token_strip(described["positions"], measure, texts=tokenizer is not None))
    return print_positions(out, described["positions"])


@app.command(rich_help_panel=LOOK)
def stats(cask: CaskArgument, as_json: JsonOption = False) -> None:
    """Sizes, entries per position, bytes per token by column; reads no shard, only what the cask says of them."""
    from logitcask_schemas.cask.describe import cask_stats, hints_text
    from logitcask_schemas.cli.cask import open_place

    opened = open_place(cask)
    figures = asdict(cask_stats(opened))
    if as_json:
        manifest = opened.manifest.model_dump(mode="json")
        return print_json({**figures, "teacher": manifest["teacher"], "capture": manifest["capture"]})
    columns, hints = figures.pop("column_bytes_per_token"), figures.pop("hints")
    print_table(("figure", "value"), [[name, number(value)] for name, value in figures.items()])
    if hints is not None:
        print_table(("hints", "value"), [["kept", hints_text(hints)]])
    return print_table(("column", "bytes/token"), [[name, value] for name, value in columns.items()])


def _from_shard(cask: "Cask", document: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do something with a document, whose shard a store sends first, again where the cache's copy is bad."""
    from logitcask_schemas.errors import CaskCorruptionError

    number, _ = cask.locate(document)
    try:
        _fetch(cask, number)
        return work()
    except CaskCorruptionError:
        if not cask.forget(number):
            raise
        _fetch(cask, number)
        return work()


def _fetch(cask: Any, shard: int) -> None:
    with byte_progress() as progress:
        task = progress.add_task("fetching", total=cask.entries[shard].bytes)
        cask.fetch(shard, lambda size: progress.update(task, completed=size))


def _measure(name: str) -> "Measure":
    if name not in ("entropy", "probability"):
        raise typer.BadParameter(f"{name!r} is neither entropy nor probability", param_hint="--color")
    return "entropy" if name == "entropy" else "probability"


def _text_of_ids(folder: Path, expected: str) -> Any:
    """A function from ids to texts, after proving that the folder's tokenizer is the cask's."""
    from logitcask_schemas.errors import IdentityMismatchError
    from logitcask_schemas.record.identity import tokenizer_fingerprint

    tokenizer = load_tokenizer(folder, command="logitcask cask show")
    if (fingerprint := tokenizer_fingerprint(tokenizer)) != expected:
        raise IdentityMismatchError(
            f"{folder}: tokenizer fingerprint {fingerprint}, the cask's records need {expected}"
        )
    return lambda token_id: json.dumps(tokenizer.decode([token_id]), ensure_ascii=False)


register_nearest(app, LOOK)
register_care(app)
register_export(app)
register_convert(app)
register_rows(app)
register_hub(app)
