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
from logitcask_schemas.api.service_objects import Queue
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
AllOption = Annotated[bool, typer.Option("--all", help="All jobs: the service's queue, also over restarts.")]
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
        is_held = not as_json and client.queue().paused
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
            job.status + (" (waiting)" if job.waiting else ""),
            *(_extraction_columns(job) if isinstance(job, Extraction) else _generation_columns(job)),
            f"{job.throughput_tps:,.0f}" if job.throughput_tps is not None else "",
            duration(job.eta_seconds) if job.eta_seconds is not None else "",
        )
    console = Console()
    # A pipe has no width; do not cut for one.
    (console if console.is_terminal else Console(width=160)).print(table)
    if is_held:
        say(
            Console(stderr=True),
            "the queue is paused: no job is worked on; logitcask jobs resume --all",
            style="yellow",
        )


def _extraction_columns(extraction: Extraction) -> tuple[str, str, str]:
    usage = extraction.usage
    tokens = f"{usage.tokens_done:,}/{usage.tokens_total:,}"
    return printable(extraction.cask), _documents(extraction), tokens


def _generation_columns(generation: Generation) -> tuple[str, str, str]:
    """Of the step that runs, or ran last; what was written has no known total."""
    stage = generation.stages[-1] if generation.stages else None
    done = f"{stage.requests_done:,}/{stage.requests_total:,} requests of step {stage.stage}" if stage else ""
    return printable(generation.recipe or "own steps"), done, f"{generation.generated_tokens:,}"


def _documents(extraction: Extraction) -> str:
    """Completed of all, and what did not go as a person would expect."""
    counts, lines = extraction.request_counts, extraction.lines
    unusual = [
        (lines.bad, counted(lines.bad, "bad line")),
        (extraction.documents.failed, f"{extraction.documents.failed:,} failed"),
        (counts.skipped, f"{counts.skipped:,} skipped"),
        (lines.truncated, f"{lines.truncated:,} truncated"),
    ]
    done = f"{counts.completed:,}/{counts.total:,} documents"
    return ", ".join([done, *(text for count, text in unusual if count)])


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
def pause(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Id of the extraction or generation.")] = None,
    everything: AllOption = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a job, or with --all the whole queue, until it is resumed. What is published stays in the cask."""
    _require_one(job_id, everything=everything)
    with connect(server, api_key_file) as client:
        if job_id is None:
            _say_queue(client.pause_queue(), as_json=as_json)
            return
        subject = Subject(client, job_id, as_json)
        job = client.generations.pause(job_id) if subject.is_generation else client.pause(job_id)
    _say_status(job, as_json=as_json)


@app.command()
def priority(
    job_id: IdArgument,
    to: Annotated[int | None, typer.Argument(metavar="[NUMBER]", help="-1000 to 1000; larger ones go first.")] = None,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Put it before this waiting job instead.")] = None,
    front: Annotated[bool, typer.Option("--front", help="Put it before all waiting jobs instead.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the priority or the place of a job that waits."""
    if (to is not None) + (before is not None) + front != 1:
        raise typer.BadParameter("give one of a number, --before ID and --front", param_hint="[NUMBER]")
    with connect(server, api_key_file) as client:
        calls = client.generations if job_id.startswith("generation-") else client
        job = calls.move(job_id, before=before) if to is None else calls.set_priority(job_id, to)
    _say_status(job, as_json=as_json, more=f", priority {job.priority}")


@app.command()
def queue(server: ServerOption = None, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the jobs that wait or are held, in the order in which they will be worked on."""
    with connect(server, api_key_file) as client:
        waiting = client.queue()
    if as_json:
        typer.echo(as_json_text(waiting))
        return
    table = Table(Column("id", no_wrap=True, min_width=35), "status", "priority", box=None)
    for entry in waiting.data:
        table.add_row(entry.id, entry.status, str(entry.priority))
    console = Console()
    console.print(table)
    _say_queue(waiting, as_json=False)


@app.command()
def resume(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Id of the extraction or generation.")] = None,
    everything: AllOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a failed or paused job (--all: the queue) up again. Exit code 3 when it is waited for and fails."""
    _require_one(job_id, everything=everything)
    with connect(server, api_key_file) as client:
        if job_id is None:
            _say_queue(client.resume_queue(), as_json=as_json)
            return
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


def _say_status(job: Extraction | Generation, *, as_json: bool, more: str = "") -> None:
    typer.echo(as_json_text(job) if as_json else printable(f"{job.id}: {job.status}{more}"))


def _require_one(job_id: str | None, *, everything: bool) -> None:
    """Raise typer.BadParameter unless a job or all of them are named."""
    if (job_id is not None) == everything:
        raise typer.BadParameter("name one job, or --all for the whole queue", param_hint="[ID]")


def _say_queue(queue: Queue, *, as_json: bool) -> None:
    if as_json:
        typer.echo(as_json_text(queue))
        return
    more = " at least" if queue.has_more else ""
    state = "paused" if queue.paused else "open"
    typer.echo(f"the queue is {state}; {counted(len(queue.data), 'job')}{more} in it")


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
