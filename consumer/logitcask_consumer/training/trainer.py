"""DistillTrainer: transformers.Trainer with the loss of a `Method`, through the LM head in blocks of rows."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from logitcask_consumer.data import EMPTY, MixedDataset, Phase, PhaseSampler, SequenceDataset, StepSampler
from logitcask_consumer.methods import BatchLoss, Evaluator, Method, MixtureMethod, TokenMethod
from logitcask_consumer.methods.tokens import require_tokenizer
from logitcask_consumer.student.forward import attach
from logitcask_consumer.student.sharding import gather_nothing, shard_student
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.checkpointing import CheckpointingTrainer
from logitcask_consumer.training.optimization import decay_steps, muon_for
from logitcask_consumer.training.stop_signals import leave_signals_to_the_trainer
from logitcask_schemas.errors import LogitcaskError


class NotFiniteError(LogitcaskError, ArithmeticError):
    """The loss became NaN or infinite."""


class DistillTrainer(CheckpointingTrainer):
    """Trains a student on a dataset over casks.

    The loss of an optimizer step is the sum over all its micro-batches on all processes, divided by what they count
    together, so neither accumulation nor the number of processes changes it. What a step trains follows from seed and
    step alone, and so does its dropout, with the process and the micro-batch: a resumed run needs no more than weights,
    optimizer, schedule and step, and nothing that DataLoader workers draw can change it.
    """

    # compute_loss divides by what the whole step counts already.
    loss_is_scaled_for_ga = True
    stop_requested: Callable[[], bool] = staticmethod(lambda: False)
    """Whether this process was asked to end the run; see `stop_agreed`."""
    _stops: Tensor | None = None
    _seeded: tuple[int, int] = (-1, 0)

    def __init__(
        self,
        model: Any,
        args: DistillConfig,
        train_dataset: SequenceDataset[Any],
        eval_dataset: SequenceDataset[Any] | dict[str, SequenceDataset[Any]] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        *,
        method: Method | None = None,
        evaluator: Evaluator | None = None,
        phase: Phase | None = None,
    ) -> None:
        """Prepare training.

        Args:
            model: a causal LM; its forward learns to yield losses (see `student.forward`).
            args: the run.
            train_dataset: what to train on.
            eval_dataset: what `evaluate` measures on, or several by name.
            processing_class: the tokenizer, saved beside the weights.
            callbacks: besides those of transformers.
            optimizers: optimizer and schedule, where `args` is not to choose them.
            method: what makes a loss of the dataset's batches; None is a `TokenMethod` as `args` says.
            evaluator: what `evaluate` measures; None: the method's loss and metrics.
            phase: the steps of the run whose dataset this is; None: all of them. A run in phases has `max_steps`,
                and one process; after a phase it is saved, and continued from there with the next dataset.

        Raises:
            UnknownLossError, LossParameterError, LossMismatchError: the loss is unknown or does not fit the cask.
            NothingTrainedError: the dataset's weights leave no position to be trained.
            IdentityMismatchError, ModelError: the student does not fit the records, see `Method.check`, or its
                tokenizer is not the teacher's.
            TypeError: `args` is no `DistillConfig`, or the dataset needs a method that was not given.
        """
        if not isinstance(args, DistillConfig):
            raise TypeError(
                f"args must be a DistillConfig, which takes all TrainingArguments, got {type(args).__name__}"
            )
        evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in (train_dataset, *(evaluated if evaluator is None else [])):
            if isinstance(dataset, MixedDataset) and not isinstance(method, MixtureMethod):
                raise TypeError("a MixedDataset needs the method that made it: method=MixtureMethod(...)")
            if isinstance(method, MixtureMethod) and dataset is not None and not isinstance(dataset, MixedDataset):
                raise TypeError(f"a MixtureMethod needs a MixedDataset, also to evaluate; got {type(dataset).__name__}")
        if method is None and processing_class is not None:
            require_tokenizer(train_dataset.casks[0], processing_class)
        self.phase = phase
        if phase is not None and isinstance(train_dataset, MixedDataset):
            train_dataset.shares = phase.shares
        self.method = method or _token_method(args, processing_class)
        self.evaluator: Evaluator = evaluator or self.method
        attach(model, router_loss=args.router_loss)
        self.batch_loss = self.method.on(model, train_dataset)
        with kept_use_cache(model):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                data_collator=cast("Any", self.batch_loss.collator),
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        # Not before: some attention works on the device only that transformers has moved the model to.
        self.method.check(model, train_dataset)
        if args.shard_student:
            shard_student(model, bfloat16=args.bf16)
            # It is what DDP would be wrapped around.
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        self.remove_callback(PrinterCallback)
        # Older versions of transformers ask this flag instead of `loss_is_scaled_for_ga`.
        self.model_accepts_loss_kwargs = True
        self._sums: Tensor | None = None
        """Sums that metrics are made of, since the last log; on the device, so that no step waits for them."""
        self._since = time.monotonic()
        self._evaluated: BatchLoss | None = None
        self._measured: list[Tensor] = []
        """Of each batch of an evaluation: loss, what it counts, and sums."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As transformers, with Muon where `args` says so."""
        args: Any = self.args
        if self.optimizer is None and args.muon:
            student: Any = self.model
            self.optimizer = muon_for(student, args, self.get_decay_parameter_names(student))
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As transformers, which has to be told over how many steps a schedule falls, where it is stable before."""
        args: Any = self.args
        if args.decay_share is not None:
            warmup = args.get_warmup_steps(num_training_steps)
            steps = decay_steps(args.decay_share, steps=num_training_steps, warmup=warmup)
            args.lr_scheduler_kwargs = {**(args.lr_scheduler_kwargs or {}), "num_decay_steps": steps}
        return super().create_scheduler(num_training_steps, optimizer)

    @property
    def progress(self) -> float:
        """Part of the run done, 0 to 1."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch, already divided by what the whole optimizer step counts."""
        value = self.batch_loss.value(model, inputs, self.progress)
        if model.training:
            self._sums = value.sums if self._sums is None else self._sums + value.sums
        total = self.batch_loss.counted(inputs) if num_items_in_batch is None else num_items_in_batch
        # DDP averages gradients over processes; the divisor of training counts the positions of all of them. A step
        # without a trained position has the loss 0, and gradients of 0.
        processes = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = value.loss * torch.where(total > 0, processes / total, 0.0).to(value.loss.dtype)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """What all micro-batches of an optimizer step count, over all processes; a float64 scalar."""
        counted = [self.batch_loss.counted(batch).to(device) for batch in batch_samples]
        # A run that was interrupted after its last step has no batch left.
        return self._over_processes(sum(counted, torch.zeros((), dtype=torch.float64, device=device)))

    def _over_processes(self, own: Tensor) -> Tensor:
        """Sum of a scalar over all processes. It takes along whether any of them was asked to stop."""
        both = torch.stack([own, own.new_tensor(float(self.stop_requested()))])
        gathered: Tensor = self.accelerator.gather(both[None])
        total: Tensor
        total, self._stops = gathered.sum(0)
        return total

    def phase_done(self) -> bool:
        """Whether the steps of the phase have been made."""
        return self.phase is not None and self.state.global_step >= self.phase.stop

    def stop_agreed(self) -> bool:
        """Whether the run ends after this step: all processes say the same, by what they told each other before it."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested()
        return self._stops is not None and bool(self._stops > 0)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process' micro-batches. Nothing of accelerate wraps it: `training_step` moves a batch to the device."""
        dataset, args = cast("SequenceDataset[Any]", self.train_dataset), cast("DistillConfig", self.args)
        if self.phase is not None:
            phase_sampler = PhaseSampler(
                [part.sources for part in dataset.parts] if isinstance(dataset, MixedDataset) else [dataset.sources],
                self.phase,
                seed=args.seed,
                sequences=args.sequences_per_step
                or args.per_device_train_batch_size * args.gradient_accumulation_steps,
                micro=args.per_device_train_batch_size,
                accumulation=args.gradient_accumulation_steps,
                steps_in_all=args.max_steps,
            )
            return self._loader(dataset, phase_sampler, self.data_collator, persistent=True)
        processes = self.accelerator.num_processes
        each_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        sampler = StepSampler(
            dataset.sources,
            seed=args.seed,
            sequences=args.sequences_per_step or each_step,
            micro=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            processes=processes,
            process=self.accelerator.process_index,
            steps_done=lambda: self.state.global_step,
            steps_in_all=lambda: self.state.max_steps,
        )
        return self._loader(dataset, sampler, self.data_collator, persistent=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This process' batches of a dataset, or of one of the trainer's by its name; each sequence once.

        Raises:
            ValueError: there is no dataset.
        """
        own_datasets: Any = self.eval_dataset
        dataset = own_datasets if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = own_datasets[dataset]
        if dataset is None:
            raise ValueError("DistillTrainer: evaluation requires an eval_dataset")
        size, processes = self.args.eval_batch_size, self.accelerator.num_processes
        batches = [list(range(at, min(at + size, len(dataset)))) for at in range(0, len(dataset), size)]
        # As many for every process: what shards a model talks in each forward.
        batches += [[EMPTY]] * (-len(batches) % processes)
        of_process = batches[self.accelerator.process_index :: processes]
        return self._loader(dataset, of_process, self.evaluator.on(self.model, dataset).collator, persistent=False)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As `get_eval_dataloader`, for `predict`."""
        return self.get_eval_dataloader(test_dataset)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Measure one batch, for `evaluation_loop`; no predictions are kept."""
        del prediction_loss_only, ignore_keys
        assert self._evaluated is not None, "evaluation_loop sets it"
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            value = self._evaluated.value(model, batch, self.progress)
        both = torch.stack(
            [value.loss.detach().to(torch.float64), self._evaluated.counted(batch).to(value.loss.device)]
        )
        self._measured.append(torch.cat([both, value.sums]))
        return None, None, None

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As transformers; the loss is the mean over what the dataset counts, and the evaluator's metrics are there."""
        began = time.monotonic()
        self._evaluated, self._measured = self.evaluator.on(self.model, dataloader.dataset), []
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        gather_nothing(self.model)
        total = self.accelerator.reduce(torch.stack(self._measured).sum(0), reduction="sum")
        loss, counted, *sums = total.tolist()
        metrics = {"loss": loss / counted if counted else 0.0, **self._evaluated.metrics(sums)}
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._evaluated, self._measured = None, []
        self._since += time.monotonic() - began  # no part of the throughput of training
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _loader(
        self, dataset: SequenceDataset[Any], batches: Any, collator: Any, *, persistent: bool
    ) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator(),  # what it draws is not drawn from the generator of dropout
        )

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As transformers, with generators that are seeded for this micro-batch."""
        step, micro = self._seeded
        self._seeded = (step, micro + 1) if step == self.state.global_step else (self.state.global_step, 0)
        key = (self.args.seed, *self._seeded, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add means over what was trained (nats) and throughput since the last log.

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
        assert self._sums is not None, "a loss is logged after a step"
        sums, now = self.accelerator.reduce(self._sums, reduction="sum").tolist(), time.monotonic()
        more = self.batch_loss.metrics(sums)
        more["tokens_per_second"] = self.batch_loss.read(sums) / max(now - self._since, 1e-9)
        self._sums, self._since = None, now
        renamed = {"learning_rate": "lr"}
        return {renamed.get(name, name): value for name, value in logs.items()} | more


def _token_method(args: DistillConfig, tokenizer: Any) -> Method:
    return TokenMethod(
        loss=args.loss,
        ce_weight=args.ce_weight,
        extra_ids=args.extra_ids,
        block_rows=args.block_rows,
        tokenizer=tokenizer,
    )


@contextmanager
def kept_use_cache(model: Any) -> Iterator[None]:
    """Transformers would turn the cache off in the config that is saved; training's forward asks for none anyway."""
    before = getattr(model.config, "use_cache", None)
    yield
    if before is not None:
        model.config.use_cache = before


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
