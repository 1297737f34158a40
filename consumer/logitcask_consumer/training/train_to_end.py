"""The steps of a run, from a trainer that is ready to a saved student, and what is logged on the way."""

import time
from pathlib import Path
from typing import Any

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.run_document import CHECKPOINTS_NAME, HELD_OUT_NAME, METRICS_NAME
from logitcask_consumer.training.best_checkpoint import Evaluations, KeepBest
from logitcask_consumer.training.callbacks import (
    HeldOutLog,
    LogWhenSaving,
    MetricsLog,
    StopWhenAsked,
    metrics_summary,
)
from logitcask_consumer.training.checkpoints import read_state
from logitcask_consumer.training.finished_student import save_student
from logitcask_consumer.training.progress_bar import ProgressBar
from logitcask_consumer.training.stop_signals import StopSignals
from logitcask_consumer.training.trainer import DistillTrainer


def train_to_end(
    trainer: DistillTrainer, config: TrainConfig, checkpoint: Path | None, stop: StopSignals, *, metric: str | None
) -> dict[str, Any] | None:
    """Make the steps that are left and save the student.

    Args:
        trainer: of the run.
        config: the run.
        checkpoint: which it goes on from; None where it begins.
        stop: ends it after the step that is being made.
        metric: by which its evaluations are compared; None where there are none.

    Returns:
        The summary that goes into the run document; None where the run was stopped, or its phase is done.

    Raises:
        RunWriteError: the disk is full, or broken.
        StoppedEarly: a signal came before the first step.
    """
    output = config.output
    progress, metrics = ProgressBar(metric=metric), MetricsLog(output / METRICS_NAME)
    evaluations_log = HeldOutLog(output / HELD_OUT_NAME)
    callbacks: list[Any] = [LogWhenSaving(), metrics, progress]
    if metric is not None:
        keep_best = KeepBest(metric, patience=config.patience, min_improvement=config.min_improvement)
        callbacks += [evaluations_log, keep_best]
    callbacks.append(StopWhenAsked(lambda: trainer.phase_done() or trainer.stop_agreed()))
    for callback in callbacks:
        trainer.add_callback(callback)
    started, ended = time.monotonic(), checkpoint is not None and _ended_early(read_state(checkpoint), config, metric)
    try:
        stop.training_begins()
        if ended and checkpoint is not None:  # only the student of a run that patience has ended is still to be saved
            trainer.stand_at(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state: Any = trainer.state
        early = _ended_early({"log_history": state.log_history}, config, metric)
        if state.global_step < state.max_steps and not early:
            return None
        held_out = None if metric is None else Evaluations.of(state.log_history, metric)
        student_step = state.global_step
        if config.load_best and held_out is not None and held_out.best is not None:
            student_step = held_out.best[0]
        if student_step != state.global_step:
            trainer.take_student(output / CHECKPOINTS_NAME / f"checkpoint-{student_step}")
        save_student(trainer, config)
    finally:
        for callback in (progress, metrics, evaluations_log):
            callback.close()
    summary = {
        "steps": state.global_step,
        "student_step": student_step,
        "seconds_of_last_call": time.monotonic() - started,
        **metrics_summary(output / METRICS_NAME),
    }
    if held_out is not None and metric is not None:
        summary["held_out"] = held_out.as_dict(metric) | {"ended_early": state.global_step < state.max_steps}
    return summary


def _ended_early(state: dict[str, Any], config: TrainConfig, metric: str | None) -> bool:
    """Whether the evaluations of a trainer's state have used up the run's patience."""
    if metric is None:
        return False
    return Evaluations.of(state["log_history"], metric).are_exhausted(config.patience, config.min_improvement)
