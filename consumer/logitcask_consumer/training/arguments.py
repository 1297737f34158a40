"""What the trainer is told of a run."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_args

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.data.vocabulary import ExtraIds
from logitcask_consumer.processes import fresh_accelerator_state, processes
from logitcask_consumer.training.optimization import optimization_arguments


@dataclass
class DistillConfig(TrainingArguments):
    """Transformers' arguments of a training run, with those of distillation; other defaults are said below."""

    loss: str = "forward_kl"
    """A registered loss with its parameters, or a weighted mix; docs/losses.md has all."""
    ce_weight: float = 0.0
    """Share of the cross-entropy with the realised tokens, 0 to 1."""
    extra_ids: ExtraIds = "keep"
    """A student's ids beyond the teacher's: `keep` them in its softmax, or `mask` them; see `vocabulary`."""
    block_rows: int | None = None
    """Rows of logits held at a time; None chooses 64 MiB, 256 at least."""
    router_loss: float | None = None
    """Times which the load balancing loss of a student's experts is added, 0 for never; None: as its config says."""
    muon: bool = False
    """Muon for the matrices of the layers; all else has AdamW, whatever `optim` says. See `optimization`."""
    decay_share: float | None = None
    """Share of the steps over which a schedule of `warmup_stable_decay` falls; None: `lr_scheduler_kwargs` says it."""
    shard_student: bool = False
    """Spread parameters, gradients and optimizer over the processes (FSDP2), instead of a copy on each (DDP)."""
    sequences_per_step: int | None = None
    """Sequences of an optimizer step over all processes, where they are fewer than its micro-batches have room for."""
    resolved: dict[str, Any] | None = None
    """What else the run was decided to be, for trackers and the run document; JSON types."""
    run_document: dict[str, Any] | None = None
    """What the run document says besides, for trackers: casks, teacher, student, held-out documents; JSON types."""
    remove_unused_columns: bool = False
    """The batch holds more than the model's forward takes."""
    logging_nan_inf_filter: bool = False
    """A NaN must show, and stop the run."""
    ddp_find_unused_parameters: bool | None = False
    """Body and head use every parameter."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, and what transformers offers but the trainer would not do.

        Raises:
            TrainConfigError: names the arguments, and what to do instead.
        """
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.shard_student:
            require_processes()
        faults = [f"{name}: {instead}" for name, instead in _NOT_DONE.items() if self._is_changed(name)]
        if self.extra_ids not in get_args(ExtraIds):
            faults.append(f"extra_ids must be {' or '.join(get_args(ExtraIds))}, got {self.extra_ids!r}")
        if not 0.0 <= self.ce_weight <= 1.0:
            faults.append(f"ce_weight must lie between 0 and 1, got {self.ce_weight}")
        if self.decay_share is not None and not 0.0 < self.decay_share <= 1.0:
            faults.append(f"decay_share must be above 0 and at most 1, got {self.decay_share}")
        if self.muon and self.shard_student:
            faults.append("muon reads whole matrices, and shard_student spreads them; leave one of them out")
        if self.block_rows is not None and self.block_rows < 1:
            faults.append(f"block_rows must be at least 1, got {self.block_rows}")
        if self.sequences_per_step is not None and self.sequences_per_step < 1:
            faults.append(f"sequences_per_step must be at least 1, got {self.sequences_per_step}")
        if faults:
            raise TrainConfigError("; ".join(faults))

    def _is_changed(self, name: str) -> bool:
        """Whether an argument of transformers, where this version has it, is not at its default."""
        argument = type(self).__dataclass_fields__.get(name)
        if argument is None:
            return False
        default = argument.default
        if argument.default_factory is not MISSING:
            default = argument.default_factory()
        return bool(getattr(self, name) != default)


_NOT_DONE: Final = {
    "label_smoothing_factor": "the target is the teacher's distribution; mix in cross-entropy with ce_weight",
    "fsdp": "say shard_student=True, which needs no accelerator, and whose checkpoints any number of processes goes on "
    "with",
    "data_seed": "the order of the data follows from seed",
    "dataloader_drop_last": "every sequence is trained, also those of a last, smaller step",
    "group_by_length": "sequences are packed to one length",
    "train_sampling_strategy": "the order of the data follows from seed and step, so that a run can be resumed",
    "auto_find_batch_size": "the steps of a run are fixed; lower per_device_train_batch_size and raise "
    "gradient_accumulation_steps, which changes nothing else",
    "include_for_metrics": "an evaluation keeps no predictions; it returns the loss and the method's metrics",
    "batch_eval_metrics": "an evaluation keeps no predictions; it returns the loss and the method's metrics",
}
"""Arguments of transformers that would change nothing, and what to do instead."""


def require_processes() -> None:
    """Refuse to shard a student where there is nothing to spread it over, or where accelerate would shard it as well.

    Raises:
        TrainConfigError: says how to start the run instead.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise TrainConfigError(
            "accelerate was told to shard the student (distributed_type: FSDP), which --fsdp does. Use a configuration "
            "with distributed_type: MULTI_GPU, without fsdp_config"
        )
    if (count := processes().num_processes) < 2:
        raise TrainConfigError(
            f"--fsdp spreads a student over the processes of a run, and this one has {count}. Start it with `torchrun "
            "--nproc-per-node=N --no-python logitcask train ... --fsdp`, N at least 2; or leave --fsdp out, also to go "
            "on with a run that was begun with it"
        )


def training_arguments(
    config: TrainConfig, checkpoints: Path, *, sequences: int, evaluation: Mapping[str, Any] = MappingProxyType({})
) -> DistillConfig:
    """The arguments of the trainer for a run.

    Args:
        config: the run.
        checkpoints: folder of its checkpoints.
        sequences: those of an optimizer step.
        evaluation: from `evaluation_arguments`, where it is measured on held-out documents.
    """
    count = fresh_accelerator_state().num_processes
    micro, accumulation = config.micro_shape(sequences, count)
    bfloat16 = config.precision == "bfloat16" or (
        config.precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )
    return DistillConfig(
        output_dir=str(checkpoints),
        loss=config.loss,
        ce_weight=config.ce_weight,
        extra_ids=config.extra_ids,
        block_rows=config.block_rows,
        router_loss=config.router_loss,
        shard_student=config.fsdp,
        sequences_per_step=sequences,
        resolved=config.as_dict()
        | {
            "overlap": config.context,
            "batch_tokens": sequences * config.seq_len,
            "micro_sequences": micro,
            "accumulation": accumulation,
            "processes": count,
            "precision": "bfloat16" if bfloat16 else "float32",
        },
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        **optimization_arguments(config),
        seed=config.seed,
        bf16=bfloat16,
        use_cpu=not torch.accelerator.is_available(),
        **_activation_checkpointing(config.gradient_checkpointing),
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=config.keep_checkpoints,
        logging_strategy="steps",
        logging_steps=config.logging_steps,
        dataloader_num_workers=config.workers,
        average_tokens_across_devices=True,
        accelerator_config={"use_configured_state": True},  # see `processes`
        disable_tqdm=True,  # our own bar
        report_to=list(config.report_to) or "none",
        run_name=config.output.absolute().name,
        **evaluation,
    )


def evaluation_arguments(config: TrainConfig, *, metric: str, seq_len: int, begins: bool) -> dict[str, Any]:
    """The arguments of the trainer for evaluations.

    Args:
        config: the run.
        metric: by which students are compared; smaller is better.
        seq_len: slots of a held-out sequence.
        begins: whether the run begins, with an evaluation before the first step.
    """
    return {
        "eval_strategy": "steps",
        "eval_steps": EVALUATED_SHARE if config.eval_every is None else config.eval_every,
        "eval_on_start": begins,
        "per_device_eval_batch_size": max(1, config.micro_tokens // seq_len),
        "metric_for_best_model": metric,
        "greater_is_better": False,
    }


EVALUATED_SHARE: Final = 0.1
"""Of the steps of a run between evaluations, where their number was not given."""


def _activation_checkpointing(on: bool) -> dict[str, Any]:
    """Transformers renamed the argument after 5.19; the old name warns in the new versions."""
    if not on:
        return {}
    names = {f.name for f in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": True}


def require_trackers(names: tuple[str, ...]) -> None:
    """Raise TrainConfigError where a tracker is not known, or not installed, or stands beside `all` or `none`."""
    for name in names:
        if name in ("all", "none"):
            if len(names) > 1:
                raise TrainConfigError(
                    f"report_to: {name} stands alone, got {', '.join(names)}; name the trackers that are meant"
                )
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise TrainConfigError(
                f"report_to: there is no tracker {name!r}; there are {', '.join(INTEGRATION_TO_CALLBACK)}"
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise TrainConfigError(f"report_to: {name} cannot be used here: {reason}") from error
