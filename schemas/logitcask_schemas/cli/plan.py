"""`logitcask plan`: what a capture takes, on paper."""

import dataclasses
from typing import Annotated, Any, Final

import typer

from logitcask_schemas.cli.output import JsonOption, print_json, print_table
from logitcask_schemas.errors import OptionError
from logitcask_schemas.planning.accelerators import ACCELERATORS
from logitcask_schemas.planning.plan import DAY, HOUR, Plan, Request, make_plan
from logitcask_schemas.record.capture_spec import DEFAULT_TAU, capture_spec
from logitcask_schemas.record.hint_spec import parse_hints
from logitcask_schemas.terminal import counted

app = typer.Typer(add_completion=False)
_FEWEST_DAYS: Final = 10
"""Below it GPU-days and core-days are told in hours or seconds: whole days would lose digits that matter."""
_UNITS: Final = ("", "k", "M", "G", "T", "P", "E")


def _number(text: str | float) -> float:
    """A number such as 70e9, 1e12 or 1/35; defaults come here as the numbers that they are."""
    above, slash, below = str(text).partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"{text!r} is no number; write 70e9, or 1/35") from error


@app.command()
def plan(
    tokens: Annotated[float, typer.Option(parser=_number, metavar="NUMBER", help="Of the corpus, such as 1e12.")],
    teacher_params: Annotated[
        float, typer.Option(parser=_number, metavar="NUMBER", help="Parameters of the teacher, such as 70e9.")
    ],
    gpu: Annotated[str, typer.Option(help=f"{', '.join(ACCELERATORS)}.")],
    tau: Annotated[
        float, typer.Option(parser=_number, metavar="NUMBER", help="Threshold of the records, such as 1/35.")
    ] = DEFAULT_TAU,
    codec: Annotated[str, typer.Option(help="f16, f32, u8 or u8all.")] = "f16",
    packed: Annotated[bool, typer.Option("--packed", help="Packed shards; with --codec u8all.")] = False,
    bytes_per_token: Annotated[
        float | None, typer.Option(help="Measured in a pilot; takes the place of the formula.", show_default=False)
    ] = None,
    entropy: Annotated[
        float | None, typer.Option(help="Mean of the teacher's distributions over the text, nats (default: 2.2).")
    ] = None,
    hints: Annotated[
        str | None, typer.Option(help='Kept beside the records, such as "layers=-1 codec=i8".', show_default=False)
    ] = None,
    hint_width: Annotated[
        int | None, typer.Option(help="Numbers of a vector of hints (default: the teacher's width).")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="How many there are; for the time.", show_default=False)] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="In any currency; without it no money is spoken of.", show_default=False)
    ] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(help="Between failures of one GPU and its share of a machine.", show_default=False)
    ] = None,
    restart_seconds: Annotated[
        float | None, typer.Option(help="From a failure until a teacher works again (default: 600).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16 or fp8, of weights and products.")] = "bf16",
    mfu: Annotated[float | None, typer.Option(help="Share of the peak FLOP/s that is reached (default: 0.4).")] = None,
    active_params: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="NUMBER", help="That a token passes, in a mixture of experts."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Of the teacher (default: from its parameters).")] = None,
    width: Annotated[int | None, typer.Option(help="Of its residual stream (default: from its parameters).")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Of the teacher (default: 128,256).")] = None,
    document_tokens: Annotated[float | None, typer.Option(help="Mean length of a document (default: 2,048).")] = None,
    shard_tokens: Annotated[
        float | None, typer.Option(parser=_number, metavar="NUMBER", help="Of a shard (default: the service's).")
    ] = None,
    step_tokens: Annotated[int | None, typer.Option(help="Of one step of the engine (default: 8,192).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell GPU-days, bytes, shards, failures, processors and network of a capture, before anything runs.

    Every number it stands on is listed with where it comes from: published, measured, assumed, or given by you.
    """
    if dtype not in ("bf16", "fp8"):
        raise OptionError(f"--dtype {dtype}: expected bf16 or fp8")
    request = Request(
        tokens=tokens,
        teacher_params=teacher_params,
        gpu=gpu,
        spec=capture_spec(tau=tau, logprob_codec=codec),
        dtype="bf16" if dtype == "bf16" else "fp8",
        mfu=mfu,
        active_params=active_params,
        layers=layers,
        width=width,
        vocab_size=vocab_size,
        document_tokens=document_tokens,
        entropy=entropy,
        bytes_per_token=bytes_per_token,
        packed=packed,
        hints=None if hints is None else parse_hints(hints),
        hint_width=hint_width,
        shard_tokens=shard_tokens,
        step_tokens=step_tokens,
        gpus=gpus,
        price_per_gpu_hour=price_per_gpu_hour,
        mtbf_hours=mtbf_hours,
        restart_seconds=restart_seconds,
    )
    made = make_plan(request)
    if as_json:
        print_json(_document(made))
        return
    print_table(("what", "how much", "of which"), _rows(made))
    print()
    print_table(("stands on", "value", "which is", "from"), [_basis_row(each) for each in made.basis])


def _document(made: Plan) -> dict[str, Any]:
    """The plan as JSON; sizes that it derives stand beside those that it holds."""
    document = dataclasses.asdict(made)
    cask = made.cask
    document["cask"] |= {
        "record_bytes": cask.record_bytes,
        "hint_bytes": cask.hint_bytes,
        "index_bytes": cask.index_bytes,
        "table_bytes": cask.table_bytes,
    }
    return document


def _rows(made: Plan) -> list[tuple[str, str, str]]:
    cask = made.cask
    entries = cask.entries
    rows = [
        (
            "teacher's time",
            _work(made.gpu_days, "GPU"),
            f"{made.flops:.3g} FLOP, {made.tokens_per_gpu_second:,.0f} tokens/s per GPU, limited by {made.limit}",
        ),
        ("a replica", counted(made.gpus_per_replica, "GPU"), "the smallest power of two that holds the weights"),
        (
            "records",
            _bytes(cask.record_bytes),
            f"{cask.bytes_per_token:.1f} bytes per token; per position {entries.head:.2f} head entries, "
            f"{entries.draws:.2f} draws",
        ),
    ]
    if cask.hint_bytes:
        rows.append(
            ("hints", _bytes(cask.hint_bytes), f"{cask.hint_bytes_per_position:,.0f} bytes per recorded position")
        )
    rows += [
        (
            "entries",
            f"{_scaled(cask.positions * (entries.head + entries.draws))}",
            f"{_scaled(cask.positions * entries.head)} of heads, {_scaled(cask.positions * entries.draws)} draws",
        ),
        ("documents", f"{cask.documents:,}", f"table of documents {_bytes(cask.table_bytes)}"),
        (
            "shards",
            f"{cask.shards:,}",
            f"{_bytes(cask.record_bytes / cask.shards)} and {cask.shard_tokens:,.0f} tokens each; one entry file each, "
            f"index {_bytes(cask.index_bytes)}",
        ),
        ("a shard's work", _duration(made.chunk_seconds), "of one replica; a kill loses at most the open shards"),
        ("frontend", _work(made.frontend_core_days, "core"), "tokenizing, feeding, publishing"),
    ]
    if (failures := made.failures) is not None:
        rows.append(
            (
                "failures",
                f"{failures.expected:,.0f}",
                f"each loses {failures.lost_gpu_seconds / HOUR:.2f} GPU-hours of work and "
                f"{failures.restart_gpu_seconds / HOUR:.2f} of restart; {failures.slowdown - 1:.2%} more time",
            )
        )
    if (fleet := made.fleet) is not None:
        rows += [
            (
                f"with {counted(fleet.gpus, 'GPU')}",
                f"{fleet.days:,.1f} days" if fleet.days >= 1 else _duration(fleet.days * DAY),
                f"{counted(fleet.replicas, 'replica')}, {fleet.tokens_per_second:,.0f} tokens/s, "
                f"{fleet.frontend_cores:,.1f} frontend cores busy",
            ),
            (
                "network",
                f"{_bytes(fleet.written_bytes_per_second)}/s written",
                f"{_bytes(fleet.text_bytes_per_second)}/s of text read",
            ),
        ]
    if made.price is not None:
        rows.append(("money", _number_text(made.price), "of the teacher's time alone, at the price given"))
    return rows


def _basis_row(each: Any) -> tuple[str, str, str, str]:
    value = each.value if isinstance(each.value, str) else f"{each.value:,.6g}"
    return each.name, value, each.kind, each.source


def _number_text(value: float) -> str:
    """Whole, or of three digits: 57,682, 57.7, 0.0715."""
    return f"{value:.3g}" if value < 99.95 else f"{value:,.0f}"


def _scaled(value: float) -> str:
    """Three digits and a decimal prefix: 40.5 T."""
    power = 0
    while abs(value) >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}".rstrip()


def _bytes(value: float) -> str:
    scaled = _scaled(value)
    return f"{scaled}B" if scaled[-1].isalpha() else f"{scaled} B"


def _work(days: float, of: str) -> str:
    """Of GPUs or cores, in a unit of which it is more than 0."""
    if days >= _FEWEST_DAYS:
        return f"{days:,.0f} {of}-days"
    seconds = days * DAY
    if seconds >= HOUR:
        return f"{seconds / HOUR:,.1f} {of}-hours"
    return f"{_number_text(seconds)} {of}-seconds"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} minutes" if seconds < 2 * HOUR else f"{seconds / HOUR:,.1f} hours"
