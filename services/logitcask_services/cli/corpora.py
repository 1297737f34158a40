"""`logitcask corpora`: what a service has been sent: list, show, look into, delete."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.terminal import counted, printable
from logitcask_services.cli.connection import KeyFileOption, ServerOption, as_json_text, connect, say

app = typer.Typer(help="List, show and delete a service's corpora.", no_args_is_help=True, add_completion=False)
CorpusArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the corpus.")]


@app.command("ls")
def list_corpora(
    limit: Annotated[int, typer.Option(min=1, help="Most to list.")] = 20,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List corpora, newest first."""
    with connect(server, api_key_file) as client:
        corpora = client.corpora(limit=limit)
    if as_json:
        typer.echo(json.dumps({"corpora": [corpus.model_dump(mode="json") for corpus in corpora]}))
        return
    table = Table(Column("id", no_wrap=True, min_width=31), "name", "lines", "bytes", "uploaded (UTC)", box=None)
    for corpus in corpora:
        uploaded = datetime.fromtimestamp(corpus.created_at, UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(corpus.id, printable(corpus.name or ""), f"{corpus.lines:,}", f"{corpus.bytes:,}", uploaded)
    console = Console()
    # A pipe has no width; do not cut for one.
    (console if console.is_terminal else Console(width=160)).print(table)


@app.command()
def show(
    corpus_id: CorpusArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one corpus in a few lines; with --json all that the service knows of it."""
    with connect(server, api_key_file) as client:
        corpus = client.corpus(corpus_id)
    if as_json:
        typer.echo(as_json_text(corpus))
        return
    name = f" ({corpus.name})" if corpus.name else ""
    out = Console()
    say(out, f"{corpus.id}{name}: {counted(corpus.lines, 'line')}, {counted(corpus.bytes, 'byte')}")
    say(out, f"sha256 {corpus.sha256}")


@app.command()
def rows(
    corpus_id: CorpusArgument,
    offset: Annotated[int, typer.Option(min=0, help="So many lines are passed over.")] = 0,
    length: Annotated[int, typer.Option(min=1, max=100, help="Most lines to show.")] = 20,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print some lines of a corpus; on stderr what is wrong with a line. With --json: one document."""
    with connect(server, api_key_file) as client:
        page = client.corpus_rows(corpus_id, offset=offset, length=length)
    if as_json:
        typer.echo(as_json_text(page))
        return
    for line in page.data:
        typer.echo(printable(line.text or "") if line.row is None else json.dumps(line.row))
        if line.code is not None:
            typer.echo(printable(f"line {line.line}: {line.code}: {line.message}"), err=True)


@app.command("rm")
def remove(
    corpus_id: CorpusArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a corpus; the service refuses while a job needs it."""
    with connect(server, api_key_file) as client:
        client.delete_corpus(corpus_id)
    typer.echo(json.dumps({"object": "corpus.deleted", "id": corpus_id}) if as_json else f"{corpus_id}: deleted")
