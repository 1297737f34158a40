"""`logitcask jobs`: list, show, follow and cancel a service's extractions, and read their errors."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from logitcask_schemas.api.objects import Extraction, ShardOfExtraction, Status
from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.terminal import counted, printable
from logitcask_services.cli.connection import (
    KeyFileOption,
    ServerOption,
    as_json_text,
    connect,
    duration,
    exit_code,
    follow,
    say,
    summarise,
)

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

app = typer.Typer(help="List, follow and cancel a service's extractions.", no_args_is_help=True, add_completion=False)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the extraction.")]


@dataclass(frozen=True, slots=True)
class Subject:
    """The extraction that a command is about, at its service."""

    client: "ServiceClient"
    id: str
    as_json: bool


def about_extraction(command: Callable[[Subject], None]) -> Callable[..., None]:
    """Register a command with the arguments that all commands about one extraction have."""

    def run(
        extraction_id: IdArgument,
        server: ServerOption = None,
        api_key_file: KeyFileOption = None,
        as_json: JsonOption = False,
    ) -> None:
        with connect(server, api_key_file) as client:
            command(Subject(client, extraction_id, as_json))

    return app.command(command.__name__, help=command.__doc__)(run)


@app.command("ls")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most to list.")] = 20,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List extractions, newest first."""
    with connect(server, api_key_file) as client:
        extractions = client.extractions(status=status, limit=limit)
    if as_json:
        typer.echo(json.dumps({"extractions": [extraction.model_dump(mode="json") for extraction in extractions]}))
        return
    table = Table(
        Column("id", no_wrap=True, min_width=35), "status", "cask", "documents", "tokens", "tokens/s", "ETA", box=None
    )
    for extraction in extractions:
        usage = extraction.usage
        table.add_row(
            extraction.id,
            extraction.status + (" (paused)" if extraction.waiting else ""),
            printable(extraction.cask),
            _documents(extraction),
            f"{usage.tokens_done:,}/{usage.tokens_total:,}",
            f"{extraction.throughput_tps:,.0f}" if extraction.throughput_tps is not None else "",
            duration(extraction.eta_seconds) if extraction.eta_seconds is not None else "",
        )
    console = Console()
    # A pipe has no width; do not cut for one.
    (console if console.is_terminal else Console(width=160)).print(table)


def _documents(extraction: Extraction) -> str:
    """Completed of all, and what did not go as a person would expect."""
    counts = extraction.request_counts
    unusual = {"failed": counts.failed, "skipped": counts.skipped, "truncated": extraction.lines.truncated}
    parts = [f"{counts.completed}/{counts.total}", *(f"{count:,} {what}" for what, count in unusual.items() if count)]
    return ", ".join(parts)


@about_extraction
def show(subject: Subject) -> None:
    """Show one extraction in a few lines; with --json all that the service knows of it."""
    extraction = subject.client.extraction(subject.id)
    if subject.as_json:
        typer.echo(as_json_text(extraction))
        return
    summarise(extraction, subject.client, Console())
    describe(extraction, subject.client.manifest(subject.id).shards, Console())


@about_extraction
def watch(subject: Subject) -> None:
    """Follow an extraction to its end. Exit code 3 when it does not complete."""
    _to_its_end(subject)


@about_extraction
def cancel(subject: Subject) -> None:
    """Ask an extraction to end. What it has published stays in the cask."""
    _say_status(subject.client.cancel(subject.id), as_json=subject.as_json)


@app.command()
def resume(
    extraction_id: IdArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a failed extraction up again where it was. Exit code 3 when it is waited for and does not complete."""
    with connect(server, api_key_file) as client:
        extraction = client.resume(extraction_id)
        if wait:
            _to_its_end(Subject(client, extraction_id, as_json))
    _say_status(extraction, as_json=as_json)


@about_extraction
def errors(subject: Subject) -> None:
    """Print bad lines and failed documents, one JSON object per line (with --json: one document)."""
    failures = (failure.model_dump(mode="json") for failure in subject.client.failures(subject.id))
    if subject.as_json:
        typer.echo(json.dumps({"errors": list(failures)}))
        return
    for failure in failures:
        typer.echo(json.dumps(failure))


def _to_its_end(subject: Subject) -> None:
    """Follow an extraction, say how it ended, and exit with that."""
    console = Console(stderr=True)
    extraction = follow(subject.client, subject.id, console)
    summarise(extraction, subject.client, console)
    if subject.as_json:
        typer.echo(as_json_text(extraction))
    raise typer.Exit(exit_code(extraction))


def _say_status(extraction: Extraction, *, as_json: bool) -> None:
    typer.echo(as_json_text(extraction) if as_json else printable(f"{extraction.id}: {extraction.status}"))


def describe(extraction: Extraction, shards: list[ShardOfExtraction], out: Console) -> None:
    """What holds it up, how far it is, what it has put into the cask, and its spec; the state is `summarise`'s.

    Args:
        extraction: As the service shows it.
        shards: Those of its manifest.
        out: Where to.
    """
    if extraction.waiting:
        say(out, f"waiting: {extraction.waiting.message}", style="yellow")
    usage, documents = extraction.usage, extraction.documents
    pace = [f"{usage.tokens_done:,} of {usage.tokens_total:,} done"]
    if extraction.throughput_tps is not None:
        pace.append(f"{extraction.throughput_tps:,.0f} a second")
    if extraction.eta_seconds is not None:
        pace.append(f"{duration(extraction.eta_seconds)} to go")
    say(out, f"tokens: {', '.join(pace)}")
    say(
        out,
        f"documents: {documents.total:,}, of them {documents.captured:,} captured, {documents.present:,} in "
        f"the cask before, {documents.failed:,} failed",
    )
    size = sum(shard.bytes for shard in shards)
    say(out, f"files: {counted(len(shards), 'shard')} of {counted(size, 'byte')}, from {extraction.corpus_id}")
    say(out, f"spec: {', '.join(_spec(extraction))}")


def _spec(extraction: Extraction) -> list[str]:
    options = extraction.model_dump(include={"max_length", "overflow", "carrier", "on_error"})
    fields = {**extraction.capture.canonical(), **options}
    # What is empty, absent or off goes without saying.
    shown = [f"{name} {value}" for name, value in fields.items() if value not in ([], None) and value is not False]
    return [*shown, *(f"{name}={value}" for name, value in extraction.metadata.items())]
