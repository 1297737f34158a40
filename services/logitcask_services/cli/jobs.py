"""`logitcask jobs`: a service's extractions and generations: list, show, follow and cancel them, read errors."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from logitcask_schemas.api.generation import Generation
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
from logitcask_services.cli.generate import to_its_end
from logitcask_services.cli.generation_view import summarise_generation

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

app = typer.Typer(
    help="List, follow and cancel a service's extractions and generations.", no_args_is_help=True, add_completion=False
)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the extraction or generation.")]


@dataclass(frozen=True, slots=True)
class Subject:
    """The job that a command is about, at its service."""

    client: "ServiceClient"
    id: str
    as_json: bool

    @property
    def is_generation(self) -> bool:
        """Whether its id is that of a generation."""
        return self.id.startswith("generation-")


def about_job(command: Callable[[Subject], None]) -> Callable[..., None]:
    """Register a command with the arguments that all commands about one job have."""

    def run(
        job_id: IdArgument,
        server: ServerOption = None,
        api_key_file: KeyFileOption = None,
        as_json: JsonOption = False,
    ) -> None:
        with connect(server, api_key_file) as client:
            command(Subject(client, job_id, as_json))

    return app.command(command.__name__, help=command.__doc__)(run)


@app.command("ls")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most to list.")] = 20,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List extractions and generations, newest first; `logitcask generate ls` lists generations alone."""
    with connect(server, api_key_file) as client:
        jobs: list[Extraction | Generation] = [
            *client.extractions(status=status, limit=limit),
            *client.generations.list(status=status, limit=limit),
        ]
    jobs = sorted(jobs, key=lambda job: job.created_at, reverse=True)[:limit]
    if as_json:
        documents = [job.model_dump(mode="json") for job in jobs]
        kinds = {"extractions": "extraction", "generations": "generation"}
        typer.echo(
            json.dumps(
                {name: [entry for entry in documents if entry["object"] == kind] for name, kind in kinds.items()}
            )
        )
        return
    table = Table(
        Column("id", no_wrap=True, min_width=35), "status", "of", "done", "tokens", "tokens/s", "ETA", box=None
    )
    for job in jobs:
        table.add_row(
            job.id,
            job.status + (" (paused)" if job.waiting else ""),
            *(_extraction_columns(job) if isinstance(job, Extraction) else _generation_columns(job)),
            f"{job.throughput_tps:,.0f}" if job.throughput_tps is not None else "",
            duration(job.eta_seconds) if job.eta_seconds is not None else "",
        )
    console = Console()
    # A pipe has no width; do not cut for one.
    (console if console.is_terminal else Console(width=160)).print(table)


def _extraction_columns(extraction: Extraction) -> tuple[str, str, str]:
    usage = extraction.usage
    tokens = f"{usage.tokens_done:,}/{usage.tokens_total:,}"
    return printable(extraction.cask), f"{_documents(extraction)} documents", tokens


def _generation_columns(generation: Generation) -> tuple[str, str, str]:
    """Of the step that runs, or ran last; what was written has no known total."""
    stage = generation.stages[-1] if generation.stages else None
    done = f"{stage.requests_done:,}/{stage.requests_total:,} requests of step {stage.stage}" if stage else ""
    return printable(generation.recipe or "own steps"), done, f"{generation.generated_tokens:,}"


def _documents(extraction: Extraction) -> str:
    """Completed of all, and what did not go as a person would expect."""
    counts = extraction.request_counts
    unusual = {"failed": counts.failed, "skipped": counts.skipped, "truncated": extraction.lines.truncated}
    parts = [f"{counts.completed}/{counts.total}", *(f"{count:,} {what}" for what, count in unusual.items() if count)]
    return ", ".join(parts)


@about_job
def show(subject: Subject) -> None:
    """Show one job in a few lines; with --json all that the service knows of it."""
    if subject.is_generation:
        generation = subject.client.generations.get(subject.id)
        if subject.as_json:
            typer.echo(as_json_text(generation))
        else:
            summarise_generation(generation, subject.client, Console())
        return
    extraction = subject.client.extraction(subject.id)
    if subject.as_json:
        typer.echo(as_json_text(extraction))
        return
    summarise(extraction, subject.client, Console())
    describe(extraction, subject.client.manifest(subject.id).shards, Console())


@about_job
def watch(subject: Subject) -> None:
    """Follow a job to its end, a generation with its extractions. Exit code 3 when it does not complete."""
    _to_its_end(subject)


@about_job
def cancel(subject: Subject) -> None:
    """Ask a job to end. What it has published stays in the cask."""
    calls = subject.client.generations if subject.is_generation else subject.client
    _say_status(calls.cancel(subject.id), as_json=subject.as_json)


@app.command()
def resume(
    job_id: IdArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a failed job up again where it was. Exit code 3 when it is waited for and does not complete."""
    with connect(server, api_key_file) as client:
        subject = Subject(client, job_id, as_json)
        job = client.generations.resume(job_id) if subject.is_generation else client.resume(job_id)
        if wait:
            _to_its_end(subject)
    _say_status(job, as_json=as_json)


@about_job
def errors(subject: Subject) -> None:
    """Print what did not make it, and why, one JSON object per line (with --json: one document)."""
    calls = subject.client.generations if subject.is_generation else subject.client
    failures = (failure.model_dump(mode="json") for failure in calls.failures(subject.id))
    if subject.as_json:
        typer.echo(json.dumps({"errors": list(failures)}))
        return
    for failure in failures:
        typer.echo(json.dumps(failure))


def _to_its_end(subject: Subject) -> None:
    """Follow a job, say how it ended, and exit with that."""
    console = Console(stderr=True)
    if subject.is_generation:
        to_its_end(subject.client, subject.id, console, as_json=subject.as_json)
    extraction = follow(subject.client, subject.id, console)
    summarise(extraction, subject.client, console)
    if subject.as_json:
        typer.echo(as_json_text(extraction))
    raise typer.Exit(exit_code(extraction))


def _say_status(job: Extraction | Generation, *, as_json: bool) -> None:
    typer.echo(as_json_text(job) if as_json else printable(f"{job.id}: {job.status}"))


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
