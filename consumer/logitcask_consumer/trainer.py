"""DistillTrainer: transformers.Trainer with the loss on sparse targets, through the LM head in chunks."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import Batch, CaskDataset, Collator, ShardBlockSampler, target_of, trained_share
from logitcask_consumer.losses import Objective
from logitcask_consumer.processes import fresh_accelerator_state
from logitcask_consumer.student_forward import DistillTask, attach
from logitcask_schemas.errors import LogitcaskError


class NotFiniteError(LogitcaskError, ArithmeticError):
    """The loss became NaN or infinite."""


def training_arguments(config: TrainConfig, checkpoints: Path, *, slots: int) -> TrainingArguments:
    """The arguments of transformers that a run of ours needs; `slots` are those of an epoch.

    Raises:
        TrainConfigError: the batch does not divide among the processes.
    """
    micro, accumulation = config.batch_shape(fresh_accelerator_state().num_processes, slots=slots)
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
        save_total_limit=config.keep_checkpoints,
        logging_strategy="steps",
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # a NaN must show, and stop the run
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_persistent_workers=config.workers > 0,
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


class DistillTrainer(Trainer):
    """Trains a student on a CaskDataset.

    The loss of an optimizer step is the weighted mean over all trained positions of all its micro-batches on all
    processes, so neither accumulation nor the number of processes changes it. Order of data, checkpoints and resumption
    are transformers', with a sampler that depends on (seed, epoch) alone.
    """

    # compute_loss divides by the weights of the whole step already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        dataset: CaskDataset,
        config: TrainConfig,
        *,
        checkpoints: Path,
        tokenizer: Any,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        """Prepare training.

        Args:
            model: a causal LM; its forward learns to yield losses (see `student_forward`).
            dataset: what to train on.
            config: the run.
            checkpoints: folder for checkpoints.
            tokenizer: saved beside the weights; its padding id fills unused slots.
            callbacks: besides those of transformers.

        Raises:
            UnknownLossError, LossParameterError, LossMismatchError: the loss is unknown or does not fit the cask.
            NothingTrainedError: the dataset's weights leave no position to be trained.
        """
        self.distill_config = config
        self.objective: Objective = Objective.parse(config.loss).with_cross_entropy(config.ce_weight)
        self.objective.require(dataset.manifest.capture)
        self.weights = dataset.weights
        trained_share(dataset, seed=config.seed)  # refused here where it is none
        capture, temperature = dataset.manifest.capture, self.objective.temperature
        self._sampled_tail = capture.mode != "topk"
        self._log_z_column = None if temperature is None else capture.temperatures.index(temperature)
        attach(model)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        super().__init__(
            model=model,
            args=training_arguments(config, checkpoints, slots=len(dataset) * dataset.seq_len),
            train_dataset=dataset,
            data_collator=cast("Any", Collator(seq_len=dataset.seq_len, pad_id=pad_id)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # Older versions of transformers ask this flag instead of `loss_is_scaled_for_ga`.
        self.model_accepts_loss_kwargs = True
        # Terms, ce, entropy, weights, trained positions, all positions, since the last log; on the device, so that no
        # step waits for them.
        self._sums = torch.zeros(len(self.objective.losses) + 5, dtype=torch.float64, device=self.args.device)
        self._since = time.monotonic()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch, already divided by the weights of the whole optimizer step."""
        batch: Batch = inputs
        task = DistillTask(
            target=target_of(batch, sampled_tail=self._sampled_tail, log_z_column=self._log_z_column),
            slots_T=batch["slots"],
            terms=self.objective.terms(self.state.global_step / max(self.state.max_steps, 1)),
            weights_T=batch["weights"],
            selection=self.weights.selection,
            chunk_rows=self.distill_config.chunk_rows,
        )
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        if model.training:
            self._count(out, batch["positions"])
        total = self._total_weight(batch) if num_items_in_batch is None else num_items_in_batch
        # DDP averages gradients over processes; the divisor of training counts the positions of all of them. A step
        # without a trained position has the loss 0, and gradients of 0.
        processes = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = out["loss"] * torch.where(total > 0, processes / total, 0.0).to(out["loss"].dtype)
        return (loss, out) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Sum of the weights of all micro-batches of an optimizer step, over all processes; a float64 scalar."""
        own = torch.stack([self._total_weight(batch).to(device) for batch in batch_samples]).sum()
        gathered: Tensor = self.accelerator.gather(own)
        return gathered.sum()

    def _total_weight(self, batch: Batch) -> Tensor:
        return self.weights.total(batch["weights"], batch["slots"], batch["input_ids"].shape[1])

    def _get_train_sampler(self, train_dataset: Any = None) -> ShardBlockSampler:
        dataset = cast("CaskDataset", self.train_dataset if train_dataset is None else train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ShardBlockSampler(dataset.sequences_per_group, seed=self.distill_config.seed, batch=batch)

    def _count(self, out: dict[str, Tensor], positions: int) -> None:
        columns_CT = torch.cat([out["terms_KT"], torch.stack([out["ce_T"], out["entropy_T"]])]).to(torch.float64)
        if out["weights_T"] is not None:
            weights_T = out["weights_T"].to(torch.float64)
            columns_CT, weight = columns_CT * weights_T, weights_T.sum()
        else:
            weight = columns_CT.new_tensor(columns_CT.shape[1])
        counts = columns_CT.new_tensor([columns_CT.shape[1], positions])
        self._sums += torch.cat([columns_CT.sum(1), weight[None], counts])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add weighted means over the trained positions (nats) and throughput since the last log.

        Raises:
            NotFiniteError: the loss is no longer a number.
        """
        if "loss" in logs:
            logs = self._with_metrics(logs)
            if not all(map(_finite, (logs["loss"], logs["ce"]))):
                raise NotFiniteError(
                    f"step {self.state.global_step}: loss {logs['loss']}, cross-entropy {logs['ce']}. Start again "
                    "with a lower learning rate or a longer warmup, in another output folder"
                )
        super().log(logs, start_time)

    def _with_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        *terms, ce, entropy, weight, trained, positions = self.accelerator.reduce(self._sums, reduction="sum").tolist()
        now, weight = time.monotonic(), weight or 1.0
        # A mix has no value of its own that means anything: its first loss is shown, and all of them beside it.
        more = {"kd": terms[0] / weight, "ce": ce / weight, "teacher_entropy": entropy / weight}
        for loss, value in zip(self.objective.losses, terms, strict=True):
            if len(terms) > 1:
                more[f"loss/{loss.spec}"] = value / weight
            if loss.kl_value:
                more["kl"] = (value - entropy) / weight
        more |= {"positions": trained, "tokens_per_second": positions / max(now - self._since, 1e-9)}
        if self.weights:
            more["trained_share"] = trained / max(positions, 1.0)
        self._sums.zero_()
        self._since = now
        renamed = {"learning_rate": "lr"}
        return {renamed.get(name, name): value for name, value in logs.items()} | more

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As transformers, without the pickled arguments it leaves beside the weights."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
