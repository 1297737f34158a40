"""`logitcask generate`: let the teacher write from a corpus, keep what is good, and capture it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from logitcask_schemas.api.generation import Generation
from logitcask_schemas.api.objects import Status
from logitcask_schemas.api.requests import OnError
from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.record.capture_spec import CaptureMode
from logitcask_schemas.terminal import EXIT_PROBLEMS, printable
from logitcask_services.cli.connection import (
    KeyFileOption,
    ServerOption,
    as_json_text,
    connect,
    exit_code,
    follow,
    say,
    summarise,
    when_loaded,
)
from logitcask_services.cli.corpus_file import LocalCorpus, file_corpus, local_corpus
from logitcask_services.cli.generation_request import extraction_of, parameters_of, steps_of
from logitcask_services.cli.generation_view import (
    estimate,
    follow_generation,
    list_generations,
    show_preview,
    show_recipes,
    show_rows,
    summarise_generation,
)
from logitcask_services.cli.request_options import (
    RUN,
    CorpusOrCommand,
    capture_of,
    pairs,
    require_cask_name,
    require_key,
    spec_of,
)
from logitcask_services.cli.submit import send

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

SAMPLE_BYTES = 1 << 20
"""Of a corpus, for a dry run: every prompt of it is rendered."""


app = typer.Typer(
    cls=CorpusOrCommand,
    help="Let the teacher write: `logitcask generate CORPUS --recipe NAME --cask CASK`, which is `generate run`; see "
    "`logitcask generate run --help`.",
    no_args_is_help=True,
    add_completion=False,
)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the generation.")]


@app.command(RUN)
def run(
    corpus: Annotated[Path, typer.Argument(help="JSON lines with the fields that the recipe reads; `-`: stdin.")],
    recipe: Annotated[str | None, typer.Option(help="Such as cot; `logitcask generate recipes` lists them.")] = None,
    steps: Annotated[
        Path | None, typer.Option(help="File with `steps` and `emit` (YAML or JSON), instead of a recipe.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value of the recipe, JSON or text; may be repeated."),
    ] = None,
    n: Annotated[int | None, typer.Option(help="Recipe: samples of each row.")] = None,
    check: Annotated[str | None, typer.Option(help="Recipe: field with the right answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Recipe: 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Recipe: most tokens of a text.")] = None,
    k: Annotated[int | None, typer.Option(help="Recipe: demonstrations in a prompt.")] = None,
    template: Annotated[str | None, typer.Option(help="Recipe: name of the template.")] = None,
    field: Annotated[str | None, typer.Option(help="Recipe: field that it is about.")] = None,
    target: Annotated[int | None, typer.Option(help="Recipe: rows to grow to.")] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="Recipe: JSON lines with examples, sent beside the corpus.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Who writes: a name of the service's, or students/NAME; default: its first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn; default: 0.")] = None,
    budget: Annotated[int | None, typer.Option(help="Ask for nothing more once so many tokens are written.")] = None,
    cask: Annotated[str | None, typer.Option(help="Capture what is kept into this cask; without: the corpus.")] = None,
    no_capture: Annotated[bool, typer.Option("--no-capture", help="Make the corpus only.")] = False,
    mode: Annotated[CaptureMode | None, typer.Option(help="Capture: which tokens are kept.")] = None,
    tau: Annotated[float | None, typer.Option(help="Capture: probability above which a token is kept.")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Capture: what `logitcask report` needs, as of submit.")
    ] = False,
    capture: Annotated[
        list[str] | None,
        typer.Option(help="Capture: name=value of its spec (head_max=16, k=8, ...); may be repeated."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Capture: longer documents are left out.")] = None,
    on_error: Annotated[OnError | None, typer.Option(help="Bad lines and rows; default: skip.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="key=value to keep with it; may be repeated.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it, and its extractions, to the end.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Show the prompts and what they may cost; ask nothing.")
    ] = False,
    documents: Annotated[int, typer.Option(help="Dry run: prompts to show.", min=0, max=50)] = 3,
    idempotency_key: Annotated[str | None, typer.Option(help="Starting again with it does nothing.")] = None,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    others: Annotated[list[Path] | None, typer.Argument(hidden=True, metavar="")] = None,
) -> None:
    """Send a corpus and let the teacher write from it. Exit code 3 when it is waited for and does not complete."""
    console = Console(stderr=True)
    if (recipe is None) == (steps is None):
        raise typer.BadParameter("give --recipe or --steps, one of the two", param_hint="--recipe")
    shortcuts: dict[str, Any] = {
        "n": n,
        "check": check,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "k": k,
        "template": template,
        "field": field,
        "target": target,
    }
    parameters = parameters_of(parameter, shortcuts)
    if steps is not None and (parameters or demonstrations is not None):
        raise typer.BadParameter(
            "parameters are those of a recipe; write the values into the file", param_hint="--steps"
        )
    if demonstrations is not None and "demonstrations" in parameters:
        raise typer.BadParameter("demonstrations are given twice: as a file, and with -p", param_hint="-p")
    spec = spec_of(capture, {"mode": mode, "tau": tau, "tail_logprobs": held_out or None})
    require_key(idempotency_key)
    require_cask_name(cask)
    plan: dict[str, Any] = {
        "parameters": parameters,
        "extraction": extraction_of(cask, capture_of(spec), max_length, no_capture=no_capture),
        "metadata": pairs(metadata, "--metadata"),
        **({"recipe": recipe} if steps is None else steps_of(steps)),
        **({"teacher": teacher} if teacher is not None else {}),
        **({"seed": seed} if seed is not None else {}),
        **({"budget": {"generated_tokens": budget}} if budget is not None else {}),
        **({"on_error": on_error} if on_error is not None else {}),
    }
    for file in (corpus, demonstrations):  # before the service is asked anything
        if file is not None:
            file_corpus(file, (others or []) if file is corpus else [])
    with connect(server, api_key_file) as client:
        if demonstrations is not None:
            with local_corpus(demonstrations, [], lambda line: say(console, line)) as examples:
                uploaded = send(examples, client, console, lambda _: None)
            parameters["demonstrations"] = uploaded.id
        client.generations.check(plan)  # before hours of a pipe are read
        with local_corpus(corpus, others or [], lambda line: say(console, line)) as local:
            if dry:
                local.require_lines()
                _dry_run(local, plan, client, documents, as_json=as_json)
                return
            uploaded = send(local, client, console, lambda size: client.generations.check(plan, corpus_bytes=size))
        generation = client.generations.create({**plan, "corpus_id": uploaded.id}, idempotency_key=idempotency_key)
        if wait:
            say(console, f"{generation.id}: {generation.status}")  # now: whoever reads a pipe may want it
            to_its_end(client, generation.id, console, as_json=as_json)
        typer.echo(as_json_text(generation) if as_json else generation.id)


def to_its_end(client: "ServiceClient", generation_id: str, console: Console, *, as_json: bool) -> None:
    """Follow a generation and its extractions, say how they ended, and exit with that."""
    generation = follow_generation(client, generation_id, console)
    summarise_generation(generation, client, console)
    extractions = []
    for corpus in generation.corpora:
        if corpus.extraction_id is not None:
            extractions.append(follow(client, corpus.extraction_id, console))
            summarise(extractions[-1], client, console)
    if as_json:
        followed = [extraction.model_dump(mode="json") for extraction in extractions]
        typer.echo(json.dumps({**generation.model_dump(mode="json"), "extractions": followed}))
    raise typer.Exit(exit_code(generation, *extractions))


def _dry_run(local: LocalCorpus, plan: dict[str, Any], client: "ServiceClient", prompts: int, *, as_json: bool) -> None:
    with local.path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
        if len(sample) < local.bytes:
            sample = sample[: sample.rfind(b"\n") + 1]
    if not sample:
        raise typer.BadParameter(f"the first line is longer than {SAMPLE_BYTES:,} bytes", param_hint="CORPUS")
    share = len(sample) / local.bytes
    preview = when_loaded(
        lambda: client.generations.preview(sample, plan, prompts=prompts, whole=share == 1), Console(stderr=True)
    )
    earlier = next(iter(client.generations.list(status="completed", limit=1)), None)
    rate = earlier.throughput_tps if earlier is not None else None
    if as_json:
        sizes = {"corpus_bytes": local.bytes, "previewed_bytes": len(sample), "tokens_per_second": rate}
        typer.echo(json.dumps({**preview.model_dump(mode="json"), **sizes, "estimate": estimate(preview, share)}))
    else:
        show_preview(preview, share, rate, Console())
    if not preview.requests:
        say(Console(stderr=True), "no request can be made of these lines: nothing would be written", style="red")
        raise typer.Exit(EXIT_PROBLEMS)


@app.command("show")
def show(
    generation_id: IdArgument,
    step: Annotated[
        int | None, typer.Option(help="Behind which step, from 0; -1: lines as they came; default: the last so far.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Pass over so many rows.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most rows to show.")] = 5,
    dropped: Annotated[bool, typer.Option("--dropped", help="Rows that were left out, too, and why.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a generation is, and rows behind one of its steps, while it runs or later."""
    with connect(server, api_key_file) as client:
        generation = client.generations.get(generation_id)
        page = client.generations.rows(generation_id, step=step, after=after, limit=limit, dropped=dropped)
        if as_json:
            document = {"generation": generation.model_dump(mode="json"), "rows": page.model_dump(mode="json")}
            typer.echo(json.dumps(document))
            return
        out = Console()
        show_rows(page, generation, after, out)
        summarise_generation(generation, client, out)


@app.command("rows")
def rows(
    generation_id: IdArgument,
    step: Annotated[
        int | None, typer.Option(help="Behind which step, from 0; -1: lines as they came; default: the last so far.")
    ] = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="Rows that were left out, too.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Print all rows behind a step, one JSON object per line."""
    with connect(server, api_key_file) as client:
        after, has_more = 0, True
        while has_more:
            page = client.generations.rows(generation_id, step=step, after=after, limit=100, dropped=dropped)
            for row in page.data:
                typer.echo(as_json_text(row))
            # Of a running one, the last step that has rows may change from page to page.
            step, after, has_more = page.step, after + len(page.data), page.has_more


@app.command("recipes")
def recipes(server: ServerOption = None, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the recipes that the service has, with their parameters and defaults."""
    with connect(server, api_key_file) as client:
        known = client.generations.recipes()
    if as_json:
        typer.echo(json.dumps({"recipes": [recipe.model_dump(mode="json") for recipe in known]}))
    else:
        show_recipes(known, Console())


@app.command("ls")
def list_all(
    status: Annotated[Status | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most to list.")] = 20,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List generations, newest first."""
    with connect(server, api_key_file) as client:
        generations = client.generations.list(status=status, limit=limit)
    if as_json:
        typer.echo(json.dumps({"generations": [generation.model_dump(mode="json") for generation in generations]}))
        return
    console = Console()
    # A pipe has no width; do not cut for one.
    list_generations(generations, console if console.is_terminal else Console(width=160))


@app.command("watch")
def watch(
    generation_id: IdArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a generation, and its extractions, to the end. Exit code 3 when they do not complete."""
    with connect(server, api_key_file) as client:
        to_its_end(client, generation_id, Console(stderr=True), as_json=as_json)


@app.command("cancel")
def cancel(
    generation_id: IdArgument,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a generation to end."""
    with connect(server, api_key_file) as client:
        say_status(client.generations.cancel(generation_id), as_json=as_json)


@app.command("resume")
def resume(
    generation_id: IdArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    server: ServerOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a failed generation up again where it was. Exit code 3 when it is waited for and does not complete."""
    with connect(server, api_key_file) as client:
        generation = client.generations.resume(generation_id)
        if wait:
            to_its_end(client, generation_id, Console(stderr=True), as_json=as_json)
    say_status(generation, as_json=as_json)


def say_status(generation: Generation, *, as_json: bool) -> None:
    """One line, or the object."""
    typer.echo(as_json_text(generation) if as_json else printable(f"{generation.id}: {generation.status}"))
