"""`logitcask capture`: a corpus into a cask without a service; `capture choose-tau` decides before what to keep."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.terminal import counted
from logitcask_services.cli.capture_corpus import capture_corpus
from logitcask_services.cli.request_options import RUN, CorpusOrCommand

if TYPE_CHECKING:
    from logitcask_services.pilot import TauChoice

_LONGEST = 1024

app = typer.Typer(cls=CorpusOrCommand, no_args_is_help=True, add_completion=False)
app.command(RUN)(capture_corpus)


@app.callback()
def _commands() -> None:
    """Capture a corpus into a cask without a service: `logitcask capture CORPUS`, which is `capture run`."""


@app.command("choose-tau")
def choose(
    model: Annotated[Path, typer.Option(help="Folder of the teacher.", exists=True, file_okay=False)],
    sample: Annotated[
        Path, typer.Option(help="JSON lines like those of the corpus, from all over it.", exists=True, dir_okay=False)
    ],
    bytes_per_token: Annotated[float, typer.Option(help="The budget.", min=1)],
    carrier: Annotated[str, typer.Option(help="What the budget counts: arrow, or zarr (compressed).")] = "arrow",
    codec: Annotated[str, typer.Option(help="f16, f32, u8 or u8all.")] = "f16",
    sampler: Annotated[str, typer.Option(help="systematic or multinomial.")] = "systematic",
    head_max: Annotated[int, typer.Option(help="Most tokens kept exactly.")] = 64,
    tail_max: Annotated[int | None, typer.Option(help="Most tail draws (default: what each tau asks for).")] = None,
    tail_logprobs: Annotated[bool, typer.Option("--tail-logprobs", help="Log-probabilities of draws, too.")] = False,
    pin: Annotated[list[int] | None, typer.Option(help="Token id that is always kept; may be repeated.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="Log Z at this one, too; may be repeated.")] = None,
    positions: Annotated[int, typer.Option(help="How much of the sample to run.", min=64)] = 4096,
    max_length: Annotated[int, typer.Option(help="Tokens of a document that are used.", min=4)] = _LONGEST,
    student: Annotated[
        Path | None, typer.Option(help="Model whose gradient the noise is compared with.", exists=True, file_okay=False)
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    dtype: Annotated[str, typer.Option(help="Compute dtype; `auto` fits the machine.")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="Also draw costs and noise into this PNG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose tau for a budget of bytes per token, from a short run of the teacher over a sample."""
    console = Console(stderr=True)
    spec = _spec(
        logprob_codec=codec,
        sampler=sampler,
        head_max=head_max,
        **({} if tail_max is None else {"tail_max": tail_max}),
        tail_logprobs=tail_logprobs,
        pinned_ids=tuple(pin or ()),
        temperatures=tuple(temperature or ()),
    )
    if carrier not in ("arrow", "zarr"):
        raise typer.BadParameter(f"{carrier!r} is not arrow or zarr", param_hint="--carrier")

    from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
    from logitcask_services.engines.factory import load_engine
    from logitcask_services.pilot import choose_tau
    from logitcask_services.pilot.pilot import sample_documents

    if plot is not None:
        from logitcask_services.pilot.plot import plot_choice  # before the teacher runs, should it be missing
    tokenizer = HuggingFaceTokenizer.load(model)
    with console.status("loading the teacher") as status:
        teacher = load_engine(engine, model, dtype=dtype)  # type: ignore[arg-type]  # refuses other names
        try:
            documents = sample_documents(sample, tokenizer, min(max_length, teacher.max_model_len))
            student_logits = None
            if student is not None:
                status.update("loading the student")
                student_logits = load_student(student, dtype)
            status.update(f"running {positions:,} positions of {sample.name}")
            choice = choose_tau(
                teacher,
                documents,
                bytes_per_token,
                spec=spec,
                carrier=carrier,  # type: ignore[arg-type]  # checked above
                positions=positions,
                student=student_logits,
            )
        finally:
            teacher.close()
    if plot is not None:
        plot_choice(choice, plot)
    if as_json:
        typer.echo(json.dumps(as_dict(choice)))
    else:
        show(choice)


def load_student(folder: Path, dtype: str) -> Any:
    """The student's logits as a function of token ids."""
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.engines.transformers_engine import TransformersEngine

    return TransformersEngine(ModelFolder.open(folder), dtype=dtype).logits


def as_dict(choice: "TauChoice") -> dict[str, Any]:
    """The choice as one JSON document."""
    from dataclasses import asdict

    document = asdict(choice) | {"spec": choice.spec.model_dump(mode="json"), "bytes_per_token": choice.bytes_per_token}
    for figures in (document["chosen"], *document["table"]):
        for name in ("arrow_error", "draw_mass"):
            if math.isnan(figures[name]):  # JSON has no such number
                figures[name] = None
        figures["tau_inverse"] = round(1 / figures["tau"])
    return document


def show(choice: "TauChoice") -> None:
    """The table and what it says, on stdout."""
    console = Console()
    table = Table(
        title=f"{choice.positions:,} positions of {counted(choice.documents, 'document')}", title_justify="left"
    )
    for name in ("tau", "head", "draws", "a draw", "Arrow", "Zarr", "noise", "noise/gradient"):
        table.add_column(name, justify="right")
    for figures in choice.table:
        mine = figures is choice.chosen
        table.add_row(
            f"{'> ' if mine else ''}1/{figures.inverse}",
            f"{figures.head_entries:.2f}",
            f"{figures.draws:.2f}",
            "" if math.isnan(figures.draw_mass) else f"{figures.draw_mass:.3g}",
            f"{figures.arrow_bytes:.1f}",
            f"{figures.zarr_bytes:.1f}",
            f"{figures.noise:.3g}",
            f"{figures.relative_noise:.3f}",
            style="bold" if mine else None,
        )
    console.print(table)
    chosen = choice.chosen
    whose = "a student's" if choice.gradient_of == "student" else "an untrained student's"
    error = "" if chosen.arrow_error != chosen.arrow_error else f", standard error {chosen.arrow_error:.1f}"
    lines = (
        f"tau = 1/{chosen.inverse}: {chosen.arrow_bytes:.1f} bytes per token as Arrow{error}, "
        f"{chosen.zarr_bytes:.1f} as Zarr (budget {choice.budget:g}, {choice.carrier})",
        f"expected noise of the target {chosen.noise:.3g} per position, "
        f"{chosen.noise / choice.label_noise:.1%} of that of one-hot labels ({choice.label_noise:.3g})",
        f"as a gradient's noise: {chosen.relative_noise:.1%} of {whose} gradient at one position, "
        f"{chosen.relative_noise / 2**7:.2%} in a batch of 2^14 positions",
    )
    for line in lines:
        typer.echo(line)


def _spec(**fields: Any) -> Any:
    from logitcask_schemas.errors import CaptureSpecError
    from logitcask_schemas.record.capture_spec import capture_spec

    try:
        return capture_spec(**fields)
    except CaptureSpecError as error:
        raise typer.BadParameter(str(error)) from error
