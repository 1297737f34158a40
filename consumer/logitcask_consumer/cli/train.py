"""`logitcask train`: a student from casks, without the teacher."""

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
    SaveDtypeOption,
    SaveQuantizedOption,
    SaveStepsOption,
    SchedulerOption,
    SeqLenOption,
    WarmupOption,
    WeightDecayOption,
)

app = typer.Typer(help="Train a student from a cask, without the teacher.", add_completion=False)


@app.command()
def train(
    cask: Annotated[
        list[str],
        typer.Option(
            "--cask",
            help="Folder or s3:// URL of a cask to train on; may be given several times. Casks of several teachers "
            "need the weight of their positions, and may have a loss each: casks/a:0.7 casks/b:0.3:reverse_kl.",
            show_default=False,
        ),
    ],
    student: Annotated[
        str,
        typer.Option(
            "--student",
            help="from-teacher:layers=10 (or layer numbers; by=importance, heads=, mlp= and hidden= too, after a comma "
            "each), a model folder or Hub id, or a config.json; docs/students.md.",
            show_default=False,
            parser=nonempty_text,
            metavar="TEXT",
        ),
    ],
    output: Annotated[Path, output_option("Folder for the trained student.")],
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher",
            help="The teacher's folder or Hub id, for weights (from-teacher) or tokenizer; given again for the "
            "tokenizers of other teachers.",
            parser=nonempty_path,
            metavar="PATH",
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss", help="A loss, or a mix of them: '0.9*forward_kl + 0.1*js:beta=0.5'; docs/losses.md has all."
        ),
    ] = "forward_kl",
    ce_weight: Annotated[float, typer.Option("--ce-weight", help="Share of cross-entropy with the real tokens.")] = 0.0,
    hints: Annotated[
        str | None,
        typer.Option(
            "--hints",
            help="Losses on the teacher's hidden states that the cask has, added to --loss: "
            "'pkd:map=uniform@1.0 + cosine@0.5'; docs/training-hints.md.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help="record, or dense: the teacher's whole distribution, from last hidden states and --teacher's head.",
        ),
    ] = "record",
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Which positions count, and how much: 'assistant_only * entropy_top:keep=0.2'; docs/training.md.",
        ),
    ] = None,
    extra_ids: Annotated[
        str,
        typer.Option(
            "--extra-ids",
            help="Ids that the student has and the teacher has not: keep them in its softmax, or mask them.",
        ),
    ] = "keep",
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the casks.")] = 2.0,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimizer steps, instead of epochs.")] = None,
    seq_len: SeqLenOption = 512,
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap", help="Context tokens of later windows of a document; default: seq-len/8, at most 64."
        ),
    ] = None,
    packing: Annotated[
        str, typer.Option("--packing", help="best_fit: several documents to a sequence; or none.")
    ] = "best_fit",
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", help="Tokens per optimizer step; default: for about 400 steps.")
    ] = None,
    micro_tokens: Annotated[int, typer.Option("--micro-tokens", help="Tokens per forward pass of a process.")] = 8192,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 5e-4,
    optimizer: OptimizerOption = "adamw",
    scheduler: SchedulerOption = "cosine",
    decay: DecayOption = 0.2,
    warmup: WarmupOption = 0.05,
    min_lr_ratio: MinLrRatioOption = 0.1,
    weight_decay: WeightDecayOption = 0.01,
    max_grad_norm: MaxGradNormOption = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of initialisation, packing, order and dropout.")] = 0,
    cache: CacheOption = None,
    cache_bytes: Annotated[
        int | None, typer.Option("--cache-bytes", help="Most bytes of each such cask to keep there (32 GiB).")
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            "--lora",
            help="Train adapters only: rank=16,alpha=32 and, after a comma each, dropout=0, targets=q_proj+v_proj "
            "(default all-linear) or kind=dora.",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            help="Train and save a student whose layers have int4 (int4:group=32) or fp8 weights; docs/students.md.",
        ),
    ] = None,
    save_quantized: SaveQuantizedOption = False,
    merge: Annotated[bool, typer.Option("--merge", help="Save the student with its adapters merged into it.")] = False,
    save_dtype: SaveDtypeOption = "float32",
    router_loss: Annotated[
        float | None,
        typer.Option(
            "--router-loss",
            help="Times which a mixture of experts' load balancing loss is added, 0 for never; default: as the "
            "student's config says.",
        ),
    ] = None,
    freeze_head: Annotated[bool, typer.Option("--freeze-head", help="Leave the output embedding as it is.")] = False,
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp", help="Spread the student over the processes of torchrun (FSDP2), instead of a copy on each."
        ),
    ] = False,
    precision: Annotated[str, typer.Option("--precision", help="auto, float32 or bfloat16.")] = "auto",
    gradient_checkpointing: GradientCheckpointingOption = False,
    save_steps: SaveStepsOption = 100,
    keep_checkpoints: Annotated[int, typer.Option("--keep-checkpoints", help="Older ones are removed.")] = 2,
    logging_steps: Annotated[int, typer.Option("--logging-steps", help="Metrics every so many steps.")] = 1,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read data.")] = 0,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            "--report-to", help="Trackers: tensorboard, wandb, trackio, or others of transformers; separated by commas."
        ),
    ] = None,
    eval_cask: Annotated[
        list[str] | None,
        typer.Option(
            "--eval-cask",
            help="Folder or s3:// URL of a held-out cask: the student is measured on it while it trains; may be given "
            "several times.",
        ),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", help="Steps between evaluations; default: a tenth of the run.")
    ] = None,
    eval_documents: Annotated[
        int | None,
        typer.Option("--eval-documents", help="Documents of the held-out casks to measure on; default: all."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="End training after so many evaluations in a row without improvement."),
    ] = None,
    min_improvement: Annotated[
        float,
        typer.Option("--min-improvement", help="Nats of held-out KL that count as an improvement for --patience."),
    ] = 0.0,
    load_best: Annotated[
        bool,
        typer.Option("--load-best", help="Save the student with the lowest held-out KL, not that of the last step."),
    ] = False,
    config_file: ConfigOption = None,
    resume: Annotated[
        str, typer.Option("--resume", help="auto: continue an interrupted run; never; or a checkpoint's folder.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a student from casks; the same command continues an interrupted run."""
    # All other options are settings of the run, by the same name; those of a file have been read by now.
    settings: dict[str, Any] = {**locals()}
    for name in ("cask", "teacher", "report_to", "eval_cask", "config_file", "as_json"):
        del settings[name]
    quiet_transformers()
    from logitcask_consumer.config import TrainConfig, TrainConfigError
    from logitcask_consumer.processes import leave_processes, processes
    from logitcask_consumer.training.progress_bar import best_text
    from logitcask_consumer.training.run import train as run

    try:
        config = TrainConfig(
            casks=tuple(cask),
            teacher=teacher[0] if teacher else None,
            other_teachers=tuple(teacher[1:]) if teacher else (),
            report_to=tuple(name.strip() for names in report_to or () for name in names.split(",")),
            eval_casks=tuple(eval_cask or ()),
            **settings,
        )
    except TrainConfigError as error:
        raise typer.BadParameter(str(error)) from error
    speaks = processes().is_main_process
    console = messages(quiet=not speaks)
    result = run(config, say=console.print)
    leave_processes()
    if as_json and speaks:
        document: dict[str, Any] = {
            "output": str(result.output),
            "initial": str(result.initial) if result.initial else None,
            "resumed_from": str(result.resumed_from) if result.resumed_from else None,
            "already_finished": result.already_finished,
            "stopped_at": result.stopped_at,
            "run": result.run,
        }
        print_json(document)
        return
    if result.stopped_at is not None:
        return
    # A run that was finished by an older version has its last line of metrics only.
    outcome = result.run["result"]
    closing = outcome.get("closing", {"steps": 1, **outcome["last"]})
    names = [name for name in closing if name.partition("/")[0] in ("kl", "kd", "ce", "hint")]
    shown = "  ".join(f"{name} {closing[name]:.3f}" for name in names)
    chosen = best_text(outcome.get("held_out"), saved=outcome.get("student_step"), steps=outcome["steps"])
    over = "the last step" if closing["steps"] == 1 else f"mean of the last {closing['steps']} steps"
    console.print(
        f"trained student: {result.output}  ({shown} nats in training, {over}{chosen}; "
        "`logitcask report` measures on held-out documents)"
    )
