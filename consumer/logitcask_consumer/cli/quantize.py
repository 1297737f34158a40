"""`logitcask quantize`: a model with quantised layers without training, to measure what training in that form gains."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from logitcask_consumer.cli.common import messages, nonempty_path, output_option, quiet_transformers
from logitcask_consumer.cli.training_options import SaveDtypeOption, SaveQuantizedOption

app = typer.Typer(help="Quantise a model's layers without training.", add_completion=False)


@app.command()
def quantize(
    model: Annotated[
        Path,
        typer.Argument(
            help="Folder of a causal LM, such as a student or a checkpoint.",
            show_default=False,
            parser=nonempty_path,
            metavar="MODEL",
        ),
    ],
    output: Annotated[Path, output_option("Folder for the quantised model.")],
    scheme: Annotated[
        str, typer.Option("--scheme", help="int4, int4:group=64 or fp8, as `logitcask train --quantize` takes it.")
    ] = "int4",
    save_quantized: SaveQuantizedOption = False,
    save_dtype: SaveDtypeOption = "float32",
) -> None:
    """Round the weights of a model's layers to int4 or fp8 and save it: post-training quantisation."""
    quiet_transformers()
    from logitcask_consumer.config import SaveDtype
    from logitcask_consumer.student.quantization import read_scheme
    from logitcask_consumer.training.finished_student import quantized_copy

    if save_dtype not in get_args(SaveDtype):
        raise typer.BadParameter(f"--save-dtype must be {' or '.join(get_args(SaveDtype))}, got {save_dtype!r}")
    if save_quantized and save_dtype != "float32":
        raise typer.BadParameter("--save-quantized keeps float32 beside the integers: leave --save-dtype out")
    rounding = read_scheme(scheme, command="logitcask quantize")
    note = quantized_copy(model, output, scheme=rounding, dtype=save_dtype, stored=save_quantized)  # type: ignore[arg-type]  # checked
    messages().print(f"{output}: {note}")
