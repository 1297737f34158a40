"""What to keep of a teacher's distributions, as options that commands have alike, and the capture spec they make."""

from typing import Annotated, Any

import typer

from logitcask_schemas.api.requests import CarrierName, LossOn, Overflow
from logitcask_schemas.record.capture_spec import CaptureMode, Entropy, LogprobCodec, Sampler
from logitcask_services.cli.request_options import capture_of, hints_of

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


def capture_fields(
    *,
    pin: list[int] | None,
    temperature: list[float] | None,
    codec: LogprobCodec | None,
    tail_logprobs: bool,
    held_out: bool,
    hints: str | None,
    **fields: Any,
) -> dict[str, Any]:
    """The fields of a capture spec as its options were given. Raises BadParameter where they make none.

    Args:
        pin: of `--pin`.
        temperature: of `--temperature`.
        codec: of `--codec`.
        tail_logprobs: of `--tail-logprobs`.
        held_out: of `--held-out`.
        hints: of `--hints`.
        fields: those that are named as in the spec; None: not given.
    """
    return capture_of(
        {
            **fields,
            "pinned_ids": pin or None,
            "temperatures": temperature or None,
            "logprob_codec": codec,
            "tail_logprobs": tail_logprobs or held_out or None,
            "hints": hints_of(hints),
        }
    )
