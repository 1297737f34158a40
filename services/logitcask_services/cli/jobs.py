"""`logitcask jobs`: list, show, follow and cancel a service's extractions, and read their errors."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from logitcask_schemas.terminal import printable
from logitcask_services.cli.connection import (
    JsonOption,
    KeyFileOption,
    ServerOption,
    connect,
    duration,
    exit_code,
    follow,
    summarise,
)
from logitcask_services.cli.described import describe
from logitcask_services.jobs.extraction import Status

app = typer.Typer(help="List, follow and cancel a service's extractions.", no_args_is_help=True, add_completion=False)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the extraction.")]


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
        found = client.extractions(status=status, limit=limit)
    if as_json:
        typer.echo(json.dumps({"extractions": found}))
        return
    table = Table(
        Column("id", no_wrap=True, min_width=35), "status", "cask", "documents", "tokens", "tokens/s", "ETA", box=None
    )
    for entry in found:
        usage = entry["usage"]
        table.add_row(
            entry["id"],
            entry["status"] + (" (paused)" if entry["waiting"] else ""),
            printable(entry["cask"]),
            _documents(entry),
            f"{usage['tokens_done']:,}/{usage['tokens_total']:,}",
            f"{entry['throughput_tps']:,.0f}" if entry["throughput_tps"] is not None else "",
            duration(entry["eta_seconds"]) if entry["eta_seconds"] is not None else "",
        )
    console = Console()
    # A pipe has no width; do not cut for one.
    (console if console.is_terminal else Console(width=160)).print(table)


def _documents(entry: dict[str, Any]) -> str:
    """Completed of all, and what did not go as a person would expect."""
    counts, lines = entry["request_counts"], entry["lines"]
    unusual = {"failed": counts["failed"], "skipped": counts["skipped"], "truncated": lines["truncated"]}
    parts = [
        f"{counts['completed']}/{counts['total']}",
        *(f"{many:,} {what}" for what, many in unusual.items() if many),
    ]
    return ", ".join(parts)


@app.command()
def show(
    extraction_id: IdArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one extraction in a few lines; with --json all that the service knows of it."""
    with connect(server, api_key_file) as client:
        extraction = client.extraction(extraction_id)
        if as_json:
            typer.echo(json.dumps(extraction))
            return
        summarise(extraction, client, Console())
        describe(extraction, client.manifest(extraction_id)["shards"], Console())


@app.command()
def watch(
    extraction_id: IdArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow an extraction to its end. Exit code 3 when it does not complete."""
    console = Console(stderr=True)
    with connect(server, api_key_file) as client:
        extraction = follow(client, extraction_id, console)
        summarise(extraction, client, console)
    if as_json:
        typer.echo(json.dumps(extraction))
    raise typer.Exit(exit_code(extraction))


@app.command()
def cancel(
    extraction_id: IdArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an extraction to end. What it has published stays in the cask."""
    with connect(server, api_key_file) as client:
        extraction = client.cancel(extraction_id)
    typer.echo(json.dumps(extraction) if as_json else printable(f"{extraction['id']}: {extraction['status']}"))


@app.command()
def resume(
    extraction_id: IdArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a failed extraction up again where it was. Exit code 3 when it is waited for and does not complete."""
    console = Console(stderr=True)
    with connect(server, api_key_file) as client:
        extraction = client.resume(extraction_id)
        if wait:
            extraction = follow(client, extraction_id, console)
            summarise(extraction, client, console)
    if as_json or not wait:
        typer.echo(json.dumps(extraction) if as_json else printable(f"{extraction['id']}: {extraction['status']}"))
    raise typer.Exit(exit_code(extraction) if wait else 0)


@app.command()
def errors(
    extraction_id: IdArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print bad lines and failed documents, one JSON object per line (with --json: one document)."""
    with connect(server, api_key_file) as client:
        failures = client.failures(extraction_id)
        if as_json:
            everything: list[dict[str, Any]] = list(failures)
            typer.echo(json.dumps({"errors": everything}))
            return
        for failure in failures:
            typer.echo(json.dumps(failure))
