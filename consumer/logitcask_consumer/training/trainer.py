"""DistillTrainer: transformers.Trainer with the loss on sparse targets, through the LM head in chunks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import Batch, CaskDataset, Collator, StepSampler, target_of, trained_share
from logitcask_consumer.data.vocabulary import StudentVocabulary
from logitcask_consumer.losses import Objective
from logitcask_consumer.processes import processes, raise_together
from logitcask_consumer.run_document import PARTIAL_NAME, RunWriteError, explained_writes
from logitcask_consumer.student.forward import DistillTask, attach
from logitcask_consumer.training.arguments import training_arguments
from logitcask_consumer.training.checkpoints import partial_folder, publish_checkpoint
from logitcask_consumer.training.stop_signals import leave_signals_to_the_trainer
from logitcask_schemas.errors import LogitcaskError


class NotFiniteError(LogitcaskError, ArithmeticError):
    """The loss became NaN or infinite."""


class DistillTrainer(Trainer):
    """Trains a student on a CaskDataset.

    The loss of an optimizer step is the weighted mean over all trained positions of all its micro-batches on all
    processes, so neither accumulation nor the number of processes changes it. What a step trains follows from seed and
    step alone, and so does its dropout, with the process and the micro-batch: a resumed run needs no more than weights,
    optimizer, schedule and step, and nothing that DataLoader workers draw can change it.
    """

    # compute_loss divides by the weights of the whole step already.
    loss_is_scaled_for_ga = True
    stop_requested: Callable[[], bool] = staticmethod(lambda: False)
    """Whether this process was asked to end the run; see `stop_agreed`."""
    _stops: Tensor | None = None
    _seeded: tuple[int, int] = (-1, 0)

    def __init__(
        self,
        model: Any,
        dataset: CaskDataset,
        config: TrainConfig,
        *,
        checkpoints: Path,
        tokenizer: Any,
        callbacks: list[TrainerCallback] | None = None,
        sequences_per_step: int | None = None,
    ) -> None:
        """Prepare training.

        Args:
            model: a causal LM; its forward learns to yield losses (see `student_forward`).
            dataset: what to train on.
            config: the run.
            checkpoints: folder for checkpoints.
            tokenizer: saved beside the weights.
            callbacks: besides those of transformers.
            sequences_per_step: of a run that goes on; None chooses them as for one that begins.

        Raises:
            UnknownLossError, LossParameterError, LossMismatchError: the loss is unknown or does not fit the cask.
            NothingTrainedError: the dataset's weights leave no position to be trained.
            TrainConfigError: the batch does not divide among the processes.
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
        vocabulary = StudentVocabulary.of(model, dataset.manifest.teacher.vocab_size)
        self._width = vocabulary.masked_width(config.extra_ids)
        self.sequences_per_step = sequences_per_step or config.step_sequences(
            processes().num_processes, slots=len(dataset) * dataset.seq_len
        )
        with kept_use_cache(model):
            super().__init__(
                model=model,
                args=training_arguments(config, checkpoints, sequences=self.sequences_per_step),
                train_dataset=dataset,
                data_collator=cast("Any", Collator(seq_len=dataset.seq_len, vocabulary=vocabulary)),
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
            width=self._width,
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
        return self._over_processes(
            torch.stack([self._total_weight(batch).to(device) for batch in batch_samples]).sum()
        )

    def _over_processes(self, own: Tensor) -> Tensor:
        """Sum of a scalar over all processes. It takes along whether any of them was asked to stop."""
        both = torch.stack([own, own.new_tensor(float(self.stop_requested()))])
        gathered: Tensor = self.accelerator.gather(both[None])
        total: Tensor
        total, self._stops = gathered.sum(0)
        return total

    def stop_agreed(self) -> bool:
        """Whether the run ends after this step: all processes say the same, by what they told each other before it."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested()
        return self._stops is not None and bool(self._stops > 0)

    def _total_weight(self, batch: Batch) -> Tensor:
        return self.weights.total(batch["weights"], batch["slots"], batch["input_ids"].shape[1])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process' micro-batches. Nothing of accelerate wraps it: `training_step` moves a batch to the device."""
        dataset = cast("CaskDataset", self.train_dataset)
        sampler = StepSampler(
            dataset.sequences_per_group,
            seed=self.distill_config.seed,
            sequences=self.sequences_per_step,
            micro=self.args.per_device_train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            processes=self.accelerator.num_processes,
            process=self.accelerator.process_index,
            steps_done=lambda: self.state.global_step,
        )
        workers = self.distill_config.workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # what it draws is not drawn from the generator of dropout
        )

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As transformers, with generators that are seeded for this micro-batch."""
        step, micro = self._seeded
        self._seeded = (step, micro + 1) if step == self.state.global_step else (self.state.global_step, 0)
        key = (self.distill_config.seed, *self._seeded, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

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

    @property
    def _checkpoints(self) -> Path:
        return Path(str(self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes a checkpoint to: no folder of a checkpoint's name is ever incomplete."""
        return str(self._checkpoints / PARTIAL_NAME)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers, in a folder that gets the checkpoint's name when all processes have written to it.

        Raises:
            RunWriteError: on every process, where one could not write. The checkpoints before it are untouched.
        """
        folder = self._checkpoints
        partial, problem = folder / PARTIAL_NAME, None
        name = f"checkpoint-{self.state.global_step}"
        advice = "Free space and give the same command again; it continues from the last checkpoint"
        if self.args.should_save:
            partial_folder(folder)
        self.accelerator.wait_for_everyone()
        try:
            with explained_writes(folder / name, advice):
                super()._save_checkpoint(model, trial)
        except RunWriteError as error:
            problem = error
        try:
            raise_together(problem)
            if self.args.should_save:
                with explained_writes(folder / name, advice):
                    publish_checkpoint(partial / name, keep=self.distill_config.keep_checkpoints)
        except RunWriteError:
            if self.args.should_save:
                partial_folder(folder)  # what was written of it takes room
            raise

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As transformers, without the pickled arguments it leaves beside the weights."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)


@contextmanager
def kept_use_cache(model: Any) -> Iterator[None]:
    """Transformers would turn the cache off in the config that is saved; training's forward asks for none anyway."""
    before = getattr(model.config, "use_cache", None)
    yield
    if before is not None:
        model.config.use_cache = before


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
