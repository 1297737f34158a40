"""What transformers is told of a run."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.processes import fresh_accelerator_state


def training_arguments(config: TrainConfig, checkpoints: Path, *, sequences: int) -> TrainingArguments:
    """The arguments of transformers that a run of ours needs; `sequences` are those of an optimizer step."""
    micro, accumulation = config.micro_shape(sequences, fresh_accelerator_state().num_processes)
    bfloat16 = config.precision == "bfloat16" or (
        config.precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        warmup_steps=config.warmup,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_lr_ratio},
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta2=0.95,
        seed=config.seed,
        bf16=bfloat16,
        use_cpu=not torch.accelerator.is_available(),
        **_activation_checkpointing(config.gradient_checkpointing),
        save_strategy="steps",
        save_steps=config.save_steps,
        logging_strategy="steps",
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # a NaN must show, and stop the run
        remove_unused_columns=False,  # the batch holds more than the model's forward takes
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,  # body and head use every parameter
        accelerator_config={"use_configured_state": True},  # see `processes`
        disable_tqdm=True,  # our own bar
        report_to=list(config.report_to) or "none",
    )


def _activation_checkpointing(wanted: bool) -> dict[str, Any]:
    """Transformers renamed the argument after 5.19; the old name warns in the new versions."""
    if not wanted:
        return {}
    names = {f.name for f in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": True}


def require_trackers(names: tuple[str, ...]) -> None:
    """Raise TrainConfigError where a tracker is not known, or not installed."""
    for name in names:
        if name in ("all", "none"):
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
