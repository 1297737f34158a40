"""What to keep of a teacher's distributions, and of a corpus: options that commands have alike, and what they make."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from logitcask_schemas.api.requests import CarrierName, LossOn, OnError, Overflow
from logitcask_schemas.record.capture_spec import CaptureMode, Entropy, LogprobCodec, Sampler
from logitcask_services.cli.request_options import capture_of, hints_of, specified

ModeOption = Annotated[CaptureMode | None, typer.Option(help="Which tokens are kept; default: threshold.")]
TauOption = Annotated[float | None, typer.Option(help="Threshold: probability above which a token is kept.")]
HeadMaxOption = Annotated[int | None, typer.Option(help="Threshold: most tokens kept exactly.")]
TailMaxOption = Annotated[int | None, typer.Option(help="Threshold: most tail draws.")]
KOption = Annotated[int | None, typer.Option(help="Topk: tokens kept.")]
EntropyOption = Annotated[
    Entropy | None, typer.Option(help="Topk: at_least, where the teacher is served elsewhere; default: exact.")
]
DrawsOption = Annotated[int | None, typer.Option(help="Sampled: draws.")]
SamplerOption = Annotated[Sampler | None, typer.Option(help="How tails are drawn; default: systematic.")]
PinOption = Annotated[list[int] | None, typer.Option(help="Token id that is always kept; may be repeated.")]
TemperatureOption = Annotated[
    list[float] | None, typer.Option(help="Also store log Z at this temperature; may be repeated.")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the draws.")]
CodecOption = Annotated[LogprobCodec | None, typer.Option(help="Of log-probabilities; default: f16.")]
TailLogprobsOption = Annotated[bool, typer.Option("--tail-logprobs", help="Also store log-probabilities of draws.")]
HeldOutOption = Annotated[
    bool,
    typer.Option("--held-out", help="For `logitcask report`: stores what unbiased figures need (as --tail-logprobs)."),
]
HintsOption = Annotated[
    str | None,
    typer.Option(help='Also keep hidden states, such as "layers=10,20,-1 of=hidden codec=i8" (docs/hints.md).'),
]
MaxLengthOption = Annotated[int | None, typer.Option(help="Most tokens of a document.")]
OverflowOption = Annotated[Overflow | None, typer.Option(help="Longer documents; default: truncate.")]
LossOnOption = Annotated[
    LossOn | None,
    typer.Option(help="Which tokens get a record: all (default), those of assistant turns, or the completion's."),
]
CarrierOption = Annotated[CarrierName | None, typer.Option(help="File format of the shards; default: arrow.")]
OnErrorOption = Annotated[OnError | None, typer.Option(help="Bad lines; default: skip.")]


def capture_fields(
    *,
    mode: ModeOption = None,
    tau: TauOption = None,
    head_max: HeadMaxOption = None,
    tail_max: TailMaxOption = None,
    k: KOption = None,
    entropy: EntropyOption = None,
    draws: DrawsOption = None,
    sampler: SamplerOption = None,
    pin: PinOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    codec: CodecOption = None,
    tail_logprobs: TailLogprobsOption = False,
    held_out: HeldOutOption = False,
    hints: HintsOption = None,
) -> dict[str, Any]:
    """The fields of a capture spec as its options were given. Raises BadParameter where they make none."""
    return capture_of(
        {
            "mode": mode,
            "tau": tau,
            "head_max": head_max,
            "tail_max": tail_max,
            "k": k,
            "entropy": entropy,
            "draws": draws,
            "sampler": sampler,
            "seed": seed,
            "pinned_ids": pin or None,
            "temperatures": temperature or None,
            "logprob_codec": codec,
            "tail_logprobs": tail_logprobs or held_out or None,
            "hints": hints_of(hints),
        }
    )


def corpus_fields(
    *,
    max_length: MaxLengthOption = None,
    overflow: OverflowOption = None,
    loss_on: LossOnOption = None,
    carrier: CarrierOption = None,
    on_error: OnErrorOption = None,
) -> dict[str, Any]:
    """The fields of a request that say what becomes of a corpus's lines, as they were given."""
    return specified(
        {"max_length": max_length, "overflow": overflow, "loss_on": loss_on, "carrier": carrier, "on_error": on_error}
    )


_MADE_OF_OPTIONS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "capture": capture_fields,
    "of_corpus": corpus_fields,
}


def with_capture_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a capture in the places of its parameters `capture` and `of_corpus`.

    It gets what `capture_fields` and `corpus_fields` make of them.
    """
    parameters = list[inspect.Parameter]()
    for parameter in inspect.signature(command).parameters.values():
        make = _MADE_OF_OPTIONS.get(parameter.name)
        options = [parameter] if make is None else inspect.signature(make).parameters.values()
        parameters += (each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        for name, make in _MADE_OF_OPTIONS.items():
            options[name] = make(**{each: options.pop(each) for each in inspect.signature(make).parameters})
        command(**options)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # which Typer reads, with the types
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
