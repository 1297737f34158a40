"""Options that training commands have in common: the numbers of a run, where its data is kept, what is saved."""

from pathlib import Path
from typing import Annotated

import typer

from logitcask_consumer.cli.common import nonempty_path

SeqLenOption = Annotated[int, typer.Option("--seq-len", help="Tokens of a training sequence.")]
OptimizerOption = Annotated[
    str, typer.Option("--optimizer", help="adamw, muon (and AdamW for what is no matrix) or adafactor.")
]
SchedulerOption = Annotated[
    str, typer.Option("--scheduler", help="Of the learning rate after its rise: cosine, wsd, linear or constant.")
]
DecayOption = Annotated[float, typer.Option("--decay", help="Share of the steps over which wsd falls, at the end.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Share of the steps with rising learning rate.")]
MinLrRatioOption = Annotated[
    float, typer.Option("--min-lr-ratio", help="Learning rate at the end, as a share of the peak, where it falls.")
]
WeightDecayOption = Annotated[float, typer.Option("--weight-decay", help="Of the optimizer.")]
MaxGradNormOption = Annotated[float, typer.Option("--max-grad-norm", help="Gradients are clipped to it.")]
GradientCheckpointingOption = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Recompute activations: slower, less memory.")
]
SaveStepsOption = Annotated[int, typer.Option("--save-steps", help="A checkpoint every so many steps.")]
SaveDtypeOption = Annotated[
    str, typer.Option("--save-dtype", help="Of the saved student's weights: float32, bfloat16 or float16.")
]
SaveQuantizedOption = Annotated[
    bool,
    typer.Option(
        "--save-quantized",
        help="Save quantised weights as torchao's, instead of the numbers that they stand for.",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Local folder for shards of casks in object stores.", parser=nonempty_path, metavar="PATH"
    ),
]
