"""How the trainer writes checkpoints, goes on from them, and saves the student, whole or spread over processes.

A checkpoint of a whole student is a Hugging Face folder with optimizer and schedule beside it. One of a spread student
has a part of both, and of hints' projections, from each process (`student.sharded_state`), with config and tokenizer; a
run of either kind goes on from either. The saved student is a Hugging Face folder always.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState

from logitcask_consumer.hints.checkpoints import (
    hints_apart,
    learned_projections,
    load_projections,
    save_projections,
    without_hints,
)
from logitcask_consumer.processes import raise_together
from logitcask_consumer.run_document import PARTIAL_NAME, RunFolderError, RunWriteError, explained_writes
from logitcask_consumer.student.adapters import ADAPTER_NAME
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.sharded_state import (
    has_shards,
    load_optimizer,
    load_student,
    save_shards,
    spread_optimizer,
    spread_student,
    whole_student,
)
from logitcask_consumer.student.sharding import is_sharded
from logitcask_consumer.training.checkpoints import partial_folder, publish_checkpoint


class CheckpointingTrainer(Trainer):
    """transformers.Trainer, whose checkpoints are complete or not there, and serve any number of processes."""

    @property
    def _checkpoints(self) -> Path:
        return Path(str(self.args.output_dir))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers, without its warning of arguments that a run may go on with others of."""
        with _without_comparison():
            return super().train(*args, **kwargs)

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
                if self.args.should_save and not is_sharded(self.model):
                    save_projections(learned_projections(self.model), partial / name)
                self._name_best(partial / name, folder / name)
        except RunWriteError as error:
            problem = error
        try:
            raise_together(problem)
            if self.args.should_save:
                with explained_writes(folder / name, advice):
                    best = self.state.best_model_checkpoint
                    # By its name: the run's folder may have been moved since.
                    kept = None if best is None else folder / Path(best).name
                    publish_checkpoint(partial / name, keep=self.args.save_total_limit, best=kept)
        except RunWriteError:
            if self.args.should_save:
                partial_folder(folder)  # what was written of it takes room
            raise

    def _name_best(self, partial: Path, final: Path) -> None:
        """Where the checkpoint being written is the best so far, the state names it by the name that it will have."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == partial:
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(partial / "trainer_state.json"))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers; a spread student is gathered by the first process, but not for a checkpoint."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:
            self._save(output_dir, whole_student(self.model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As transformers; of a spread student with its weights, each process its part."""
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_shards(self.model, _plain(self.optimizer), Path(output_dir))
        # After the parts: who cannot write these must not leave the others waiting for its part.
        if self.args.should_save:
            student: Any = self.model
            for saved in (student.config, student.generation_config, self.processing_class):
                if saved is not None:
                    saved.save_pretrained(output_dir)
            schedule: Any = self.lr_scheduler
            torch.save(schedule.state_dict(), Path(output_dir, _SCHEDULE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As transformers, also where student or checkpoint are spread, and with the learned projections of hints.

        Raises:
            RunFolderError: the checkpoint is not complete, or lacks weights or the projections.
            ModelError: it cannot be loaded.
        """
        checkpoint = Path(resume_from_checkpoint)
        if has_shards(checkpoint):
            load_student(self.model, checkpoint)
            return
        with hints_apart(self.model):
            if is_sharded(self.model):
                spread_student(self.model, load_model(checkpoint).state_dict())
            elif (checkpoint / ADAPTER_NAME).is_file():
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                _take_weights(self.model if model is None else model, checkpoint)
        load_projections(self.model, checkpoint)

    def take_student(self, checkpoint: Path) -> None:
        """Give the student the weights of a checkpoint of its run; optimizer, schedule and step stay as they are.

        Raises:
            RunFolderError: the checkpoint is gone, or not complete.
        """
        if not checkpoint.is_dir():
            raise RunFolderError(f"{checkpoint} is gone: something else has removed it. Train in another output folder")
        self._load_from_checkpoint(str(checkpoint))

    def stand_at(self, checkpoint: Path) -> None:
        """Be where a run was that ended with a checkpoint: its state and its student, without a step."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.take_student(checkpoint)

    def _load_best_model(self) -> None:
        """As transformers does with adapters; whole students as they are loaded everywhere here."""
        best = str(self.state.best_model_checkpoint)
        if is_sharded(self.model) or not (Path(best) / ADAPTER_NAME).is_file():
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers, also where student or checkpoint are spread.

        Raises:
            RunFolderError: the checkpoint is not complete.
        """
        spread = is_sharded(self.model)
        if checkpoint is None or not (spread or has_shards(Path(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if has_shards(Path(checkpoint)):
            load_optimizer(self.model, _plain(self.optimizer), Path(checkpoint))
        else:
            spread_optimizer(_plain(self.optimizer), _read(Path(checkpoint, _OPTIMIZER)))
        schedule: Any = self.lr_scheduler
        schedule.load_state_dict(_read(Path(checkpoint, _SCHEDULE)))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As transformers, without the projections of hints, and the pickled arguments it leaves beside the weights."""
        own_dict = None if state_dict is None else without_hints(state_dict)
        with hints_apart(self.model):
            super()._save(output_dir, own_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)


_OPTIMIZER, _SCHEDULE = "optimizer.pt", "scheduler.pt"
"""As transformers names them."""


@contextmanager
def _without_comparison() -> Iterator[None]:
    """Transformers warns where a run goes on in other micro-batches, or with steps saved or logged at others.

    Here the first follows from the number of processes, and changes no step; the others are what was asked for.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "The following arguments do not match the ones in the `trainer_state.json`" not in record.getMessage()

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)


def _take_weights(model: Any, checkpoint: Path) -> None:
    """Give a whole student the weights of a checkpoint.

    Not by `load_state_dict` of the file, as transformers does: a family may keep its experts in one tensor in memory
    and each for itself in the file, and those would stay what they were.

    Raises:
        RunFolderError: the checkpoint lacks a weight of the student.
        ModelError: it cannot be loaded.
    """
    lacking = set(model.load_state_dict(load_model(checkpoint).state_dict(), strict=False).missing_keys)
    if names := sorted(lacking & {name for name, _ in model.named_parameters()}):
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise RunFolderError(
            f"{checkpoint} lacks {names[0]}{others} of {type(model).__name__}: it is of another student. Name another "
            "checkpoint (--resume)"
        )


def _plain(optimizer: Any) -> Any:
    """The optimizer within that of accelerate."""
    return getattr(optimizer, "optimizer", optimizer)


def _read(path: Path) -> dict[str, Any]:
    """What torch has saved, on the CPU."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
