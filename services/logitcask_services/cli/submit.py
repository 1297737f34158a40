"""`logitcask submit`: send a corpus to a service and start its extraction."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from logitcask_schemas.api.objects import Corpus
from logitcask_schemas.cli.output import JsonOption
from logitcask_services.cli.capture_options import with_capture_options
from logitcask_services.cli.connection import (
    KeyFileOption,
    ServerOption,
    as_json_text,
    connect,
    exit_code,
    follow,
    say,
    summarise,
)
from logitcask_services.cli.corpus_file import LocalCorpus, file_corpus, local_corpus
from logitcask_services.cli.dry_run import dry_run
from logitcask_services.cli.hub_corpus import hub_corpus
from logitcask_services.cli.pilot import MOST_LINES
from logitcask_services.cli.request_options import pairs, require_cask_name, require_key, specified

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

app = typer.Typer(help="Send a corpus to a service and start its extraction.", add_completion=False)


@app.command()
@with_capture_options
def submit(
    *,
    corpus: Annotated[
        Path,
        typer.Argument(
            help="JSON lines with `text`, `messages`, `input_ids`, or prompts; `-`: standard input; or hf://owner/name.",
            metavar="CORPUS",
        ),
    ],
    cask: Annotated[
        str | None, typer.Option(help="Name of the cask, below the service's cask root; may be left out of a dry run.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the extraction to its end.")] = False,
    capture: dict[str, Any],
    of_corpus: dict[str, Any],
    metadata: Annotated[list[str] | None, typer.Option(help="key=value to keep with it; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset of the Hub, such as train.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset of the Hub that has several.")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Of a dataset of the Hub: the column that is the text.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Larger ones go first; default: 0.", min=-1000, max=1000)] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Submitting again with it does nothing.")] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would become of the corpus: nothing is sent to stay.")
    ] = False,
    documents: Annotated[int, typer.Option(help="Dry run: documents to show.", min=0, max=50)] = 3,
    pilot: Annotated[
        int | None,
        typer.Option(
            help="Dry run: capture so many lines from all over the corpus now, measure, and forget them.",
            min=1,
            max=MOST_LINES,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Name of one of the service's teachers (`GET /v1/teachers`); default: its first. Dry run: also a "
            "teacher's folder or Hub id, instead of a service."
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Dry run: of the teacher's machine; what the work would cost is told.", min=0)
    ] = None,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    others: Annotated[list[Path] | None, typer.Argument(hidden=True, metavar="")] = None,
) -> None:
    """Send a corpus and start its extraction. Exit code 3 when it is waited for and does not complete."""
    console = Console(stderr=True)
    request: dict[str, Any] = {
        "cask": cask,
        "capture": capture,
        "metadata": pairs(metadata, "--metadata"),
        **of_corpus,
        **specified({"priority": priority}),
    }
    # A name has no slash; that a folder here is called like it matters to a dry run alone.
    is_model = teacher is not None and ("/" in teacher or (dry and Path(teacher).is_dir()))
    if teacher is not None and not is_model:
        request["teacher"] = teacher
    require_key(idempotency_key)
    require_cask_name(cask)
    dataset = hub_corpus(str(corpus), config=config, split=split, text_column=text_column)
    if pilot is not None and (is_model or not dry):
        raise typer.BadParameter(
            "a pilot is part of a --dry-run that asks a service, whose teacher captures it", param_hint="--pilot"
        )
    if dry:
        from logitcask_schemas.api.connection import ServiceUnreachableError

        with local_corpus(corpus, others or [], lambda line: say(console, line), dataset) as local:
            local.require_lines()
            if teacher is not None and is_model:
                dry_run(
                    local, request, Path(teacher), documents=documents, as_json=as_json, price_per_hour=price_per_hour
                )
            else:
                try:
                    with connect(server, api_key_file) as client:
                        dry_run(
                            local,
                            request,
                            client,
                            documents=documents,
                            as_json=as_json,
                            price_per_hour=price_per_hour,
                            pilot_lines=pilot,
                        )
                except ServiceUnreachableError as error:
                    raise ServiceUnreachableError(
                        f"{error}. Without a service: --dry-run --teacher FOLDER_OR_HUB_ID"
                    ) from error
        return
    if cask is None:
        raise typer.BadParameter("missing; it names the cask, below the service's cask root", param_hint="--cask")
    if teacher is not None and is_model:
        raise typer.BadParameter(
            "folders and Hub ids go with --dry-run; a service knows its teachers by name, see `GET /v1/teachers`",
            param_hint="--teacher",
        )
    if dataset is None:
        file_corpus(corpus, others or [])  # before the service is asked anything
    with connect(server, api_key_file) as client:
        client.check(request)  # before hours of a pipe are read
        with local_corpus(corpus, others or [], lambda line: say(console, line), dataset) as local:
            uploaded = send(local, client, console, lambda size: client.check(request, corpus_bytes=size))
        extraction = client.submit({**request, "corpus_id": uploaded.id}, idempotency_key=idempotency_key)
        if wait:
            say(console, f"{extraction.id}: {extraction.status}")  # now: whoever reads a pipe may want it
            extraction = follow(client, extraction.id, console)
            summarise(extraction, client, console)
        if as_json:
            typer.echo(as_json_text(extraction))
        elif not wait:
            typer.echo(extraction.id)
    raise typer.Exit(exit_code(extraction) if wait else 0)


def send(local: LocalCorpus, client: "ServiceClient", console: Console, check: Callable[[int], object]) -> Corpus:
    """The corpus at the service; sent only where the service does not have the content.

    Args:
        local: The corpus here.
        client: Of the service.
        console: For progress.
        check: Asks whether a corpus of so many bytes would be taken, before it is sent; raises where not.
    """
    with Progress(console=console, transient=True) as progress:
        reading = progress.add_task("reading", total=local.bytes)
        sha256 = local.sha256(lambda total: progress.update(reading, completed=total))
        if (corpus := client.corpus_with(sha256)) is None:
            check(local.bytes)
            uploading = progress.add_task("uploading", total=local.bytes)
            return client.upload(
                local.path,
                name=local.name,
                sha256=sha256,
                sent=lambda total: progress.update(uploading, completed=total),
            )
    say(console, f"the service has this content already ({corpus.id}); nothing is sent")
    return corpus
