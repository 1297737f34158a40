"""`logitcask rounds`: on-policy distillation in rounds of sampling, capture and training."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcask_consumer.cli.common import (
    JsonOption,
    messages,
    nonempty_path,
    nonempty_text,
    output_option,
    print_json,
    quiet_transformers,
)
from logitcask_consumer.cli.options_file import ConfigOption
from logitcask_consumer.cli.training_options import (
    CacheOption,
    DecayOption,
    GradientCheckpointingOption,
    MaxGradNormOption,
    MinLrRatioOption,
    OptimizerOption,
    SaveStepsOption,
    SchedulerOption,
    SeqLenOption,
    WarmupOption,
    WeightDecayOption,
)

app = typer.Typer(help="Train a student on its own texts, in rounds with a teacher service.", add_completion=False)


@app.command()
def rounds(
    recipe: Annotated[str, typer.Option("--recipe", help="gkd, minillm, distillm or f-distill.", show_default=False)],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            help="JSON lines with `prompt`, `messages` or `input_ids`, after which the student writes.",
            show_default=False,
            parser=nonempty_path,
            metavar="PATH",
        ),
    ],
    student: Annotated[
        str,
        typer.Option(
            "--student",
            help="from-teacher:layers=10 (or a list of layer numbers), a model folder or Hub id.",
            show_default=False,
            parser=nonempty_text,
            metavar="TEXT",
        ),
    ],
    output: Annotated[Path, output_option("Folder of the run and the trained student.")],
    cask_root: Annotated[
        str,
        typer.Option(
            "--cask-root",
            help="Where the service's casks are read from here: its cask root, as a folder or URL.",
            show_default=False,
            parser=nonempty_text,
            metavar="PLACE",
        ),
    ],
    server: Annotated[
        str | None, typer.Option("--server", help="URL of the service; default LOGITCASK_SERVER, else port 8000 here.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with the key; default LOGITCASK_API_KEY, or LOGITCASK_API_KEY_FILE."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What the casks are named after: NAME.r0001; default: the output folder."),
    ] = None,
    cask: Annotated[
        list[str] | None, typer.Option("--cask", help="Fixed cask beside the student's texts; may be repeated.")
    ] = None,
    share: Annotated[
        float | None, typer.Option("--lambda", help="Share of the student's texts in every step, 0 to 1.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", help="On the student's texts, in place of the recipe's.")
    ] = None,
    fixed_loss: Annotated[
        str | None, typer.Option("--fixed-loss", help="On the fixed cask, in place of the recipe's.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="Cask to measure the student on after every phase.")
    ] = None,
    teacher_mix: Annotated[
        float,
        typer.Option("--teacher-mix", help="How likely the teacher writes a text in the student's place (minillm)."),
    ] = 0.0,
    sampler: Annotated[
        str, typer.Option("--sampler", help="Who writes the student's texts: hf (here), or service.")
    ] = "hf",
    students: Annotated[
        Path | None,
        typer.Option(
            "--students",
            help="Folder that the service was started with as --students, as it is seen from here (sampler service).",
            parser=nonempty_path,
            metavar="PATH",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            help="The teacher's folder or Hub id, for weights (from-teacher) or tokenizer.",
            parser=nonempty_path,
            metavar="PATH",
        ),
    ] = None,
    num_rounds: Annotated[int, typer.Option("--rounds", help="Rounds.")] = 3,
    steps_per_round: Annotated[int, typer.Option("--steps-per-round", help="Optimizer steps of a phase.")] = 100,
    prompts_per_round: Annotated[
        int | None, typer.Option("--prompts-per-round", help="Prompts of a round; default: all.")
    ] = None,
    texts_per_prompt: Annotated[int, typer.Option("--texts-per-prompt", help="Texts after each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens of a text.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Of the sampling.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Of the sampling; 0: all tokens.")] = 0,
    sample_batch: Annotated[int, typer.Option("--sample-batch", help="Texts that are written together.")] = 32,
    max_looping: Annotated[
        float, typer.Option("--max-looping", help="Largest share of a round's texts that may repeat themselves.")
    ] = 0.25,
    buffer: Annotated[
        int | None, typer.Option("--buffer", help="Rounds whose texts a phase trains on; default: the recipe's.")
    ] = None,
    adapt_by: Annotated[
        float | None, typer.Option("--adapt-by", help="What lambda rises by (distillm); default: 1 over the rounds.")
    ] = None,
    tau: Annotated[float | None, typer.Option("--tau", help="Threshold of the capture.")] = None,
    seq_len: SeqLenOption = 512,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", help="Tokens per optimizer step; default: 16 sequences.")
    ] = None,
    micro_tokens: Annotated[int, typer.Option("--micro-tokens", help="Tokens per forward pass.")] = 8192,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate over all phases.")] = 1e-4,
    optimizer: OptimizerOption = "adamw",
    scheduler: SchedulerOption = "cosine",
    decay: DecayOption = 0.2,
    warmup: WarmupOption = 0.05,
    min_lr_ratio: MinLrRatioOption = 0.1,
    weight_decay: WeightDecayOption = 0.01,
    max_grad_norm: MaxGradNormOption = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of sampling, initialisation, packing and order.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="Of training: auto, float32 or bfloat16.")] = "auto",
    gradient_checkpointing: GradientCheckpointingOption = False,
    save_steps: SaveStepsOption = 100,
    cache: CacheOption = None,
    patience_seconds: Annotated[
        float, typer.Option("--patience", help="Seconds to wait for a service that does not answer.")
    ] = 600.0,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample, capture, train, again and again; the same command continues an interrupted run."""
    settings: dict[str, Any] = {**locals()}
    for other in ("cask", "num_rounds", "tau", "server", "api_key_file", "config_file", "as_json"):
        del settings[other]
    quiet_transformers()
    from logitcask_consumer.config import TrainConfigError
    from logitcask_consumer.losses import LossParameterError, UnknownLossError
    from logitcask_consumer.rounds.config import RoundsConfig, RoundsConfigError
    from logitcask_consumer.rounds.driver import run_rounds
    from logitcask_consumer.rounds.recipes import RecipeError
    from logitcask_schemas.errors import CaptureSpecError

    try:
        config = RoundsConfig(
            **settings,
            casks=tuple(cask or ()),
            rounds=num_rounds,
            server=server or os.environ.get("LOGITCASK_SERVER", "http://127.0.0.1:8000"),
            api_key=_key(api_key_file),
        )
        if tau is not None:
            config = config.at_tau(tau)
    except (
        RoundsConfigError,
        RecipeError,
        TrainConfigError,
        UnknownLossError,
        LossParameterError,
        CaptureSpecError,
    ) as error:
        raise typer.BadParameter(str(error)) from error
    result = run_rounds(config, say=messages().print)
    if as_json:
        print_json(
            {"output": str(result.output), "stopped": result.stopped, "state": result.state.model_dump(mode="json")}
        )


def _key(path: Path | None) -> str | None:
    """The Bearer key of a file, else of the environment; as for `logitcask submit`."""
    from logitcask_schemas.api.key_file import KeyFileError, key_to_send

    hint = "--api-key-file"
    if path is None:
        if key := os.environ.get("LOGITCASK_API_KEY"):
            return key
        if not (named := os.environ.get("LOGITCASK_API_KEY_FILE")):
            return None
        path, hint = Path(named), "LOGITCASK_API_KEY_FILE"
    try:
        return key_to_send(path)
    except KeyFileError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error
