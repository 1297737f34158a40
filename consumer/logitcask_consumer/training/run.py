"""A whole training run: casks and a student in, a Hugging Face folder out; resumable at any point."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskGroup, Phase, SequenceDataset, open_groups
from logitcask_consumer.processes import processes
from logitcask_consumer.run_document import (
    CHECKPOINTS_NAME,
    INITIAL_NAME,
    METRICS_NAME,
    RUN_NAME,
    RunFolderError,
    earlier_runs,
    explained_writes,
    latest_checkpoint,
    read_run,
    require_finished,
    require_unused,
    write_run,
)
from logitcask_consumer.student.adapters import LoraSpec
from logitcask_consumer.student.checks import check_context
from logitcask_consumer.student.loading import load_tokenizer
from logitcask_consumer.student.router_loss import router_note
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.arguments import require_processes, require_trackers, training_arguments
from logitcask_consumer.training.callbacks import (
    LogWhenSaving,
    MetricsLog,
    ProgressBar,
    StopWhenAsked,
    closing_mean,
    read_metrics,
)
from logitcask_consumer.training.checkpoints import (
    choose_checkpoint,
    partial_folder,
    read_state,
    require_same_batch,
    require_same_run,
)
from logitcask_consumer.training.choose_method import choose_method, method_class
from logitcask_consumer.training.finished_student import require_saved_alike, save_student
from logitcask_consumer.training.out_of_memory import memory_advice
from logitcask_consumer.training.run_lock import hold_run
from logitcask_consumer.training.starting_student import starting_student, trained_part
from logitcask_consumer.training.stop_signals import StoppedEarly, StopSignals
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import find_model
from logitcask_schemas.terminal import counted, installed_version

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPhase:
    """A phase of a run: what it trains on, and which of the run's steps it makes."""

    groups: tuple[CaskGroup, ...]
    """One for each of the shares of `steps`."""
    steps: Phase
    binding: dict[str, Any]
    """What a resumption of the phase must share with it besides casks and settings; JSON types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    output: Path
    """Hugging Face folder of the trained student."""
    initial: Path | None
    """Folder of the student before training, where it was saved or existed."""
    run: dict[str, Any]
    """The run document (logitcask.json)."""
    resumed_from: Path | None
    """Checkpoint that this call continued from."""
    already_finished: bool
    """The run had been finished before; nothing was done."""
    stopped_at: int | None = None
    """Step after which a signal ended this call, which is saved; None where the run finished."""


def train(config: TrainConfig, *, say: Say = lambda message: None) -> TrainResult:
    """Train a student, or continue where an earlier call was interrupted.

    SIGTERM and SIGINT end the call after the step that is being made, with a checkpoint; the result says so.

    Args:
        config: the run.
        say: receives messages for people.

    Raises:
        CaskError: a cask cannot be opened, is damaged, or belongs to another tokenizer, teacher or spec.
        ModelError: student or teacher cannot be loaded, its vocabulary is not the teacher's, or its context is too
            short.
        LossMismatchError: the loss does not fit the cask's capture mode.
        HintMismatchError, LayerMapError: hint losses do not fit the cask's hints, or the student.
        IdentityMismatchError: the student has another tokenizer, and the loss compares token ids.
        NothingAlignedError: no document can be aligned with a student's own tokenizer.
        AdapterError: the adapters' description cannot be followed.
        UnknownWeightError, WeightParameterError: the weights are not understood, or do not fit the tokenizer.
        NothingTrainedError: the weights leave no position to be trained.
        TrainConfigError: a tracker is unknown or not installed; or one process shall share the student (`fsdp`).
        RunFolderError: the output folder holds another run, or cannot be made or written.
        RunBusyError: another run writes into the output folder.
        RunWriteError: the disk is full, or broken.
        MemoryShortError: a step needs more memory than there is.
    """
    for loss in dict.fromkeys([config.loss, *(source.loss or config.loss for source in config.sources)]):
        method_class(loss).check_config(replace(config, loss=loss))
    if config.lora is not None:
        LoraSpec.parse(config.lora)
    if config.fsdp:
        require_processes()
    require_trackers(config.report_to)
    require_unused(config.output)
    before = read_run(config.output)
    spec = StudentSpec.parse(config.student, revision=(before or {}).get("student", {}).get("revision"))
    if config.teacher is not None:
        config = replace(config, teacher=find_model(config.teacher).folder)
    config = replace(config, other_teachers=tuple(find_model(other).folder for other in config.other_teachers))
    teachers = [(folder, "teacher") for folder in (config.teacher, *config.other_teachers)]
    for folder, what in ((spec.folder, "student"), *teachers):
        if folder is not None:
            if not folder.is_dir():
                raise ModelError(f"{what} folder {folder} does not exist; a Hugging Face model folder is needed")
            require_finished(folder)
    finished = before is not None and before["status"] == "finished"
    with StopSignals() as stop:
        try:
            # What is finished is read only, perhaps from where nothing can be written.
            with nullcontext() if finished else hold_run(config.output):
                return _train(config, spec, stop, say)
        except StoppedEarly:
            say("stopped before the first step; nothing is lost")
            last = choose_checkpoint(config)
            return _result(config, spec, read_run(config.output) or {}, last, stopped_at=_steps(last))


def train_phase(config: TrainConfig, phase: TrainPhase, stop: StopSignals, *, say: Say) -> TrainResult:
    """Make the steps of one phase of a run, or what is left of them, and a checkpoint; after the last the student.

    Optimizer, schedule and step go on from the phase before. The caller holds the folder (`run_lock.hold_run`).

    Args:
        config: of the run, the same in all phases but for `casks`; `max_steps` is that of all phases.
        phase: the phase. All phases before it have been made.
        stop: ends the call after the step that is being made, as in `train`.
        say: receives messages for people.

    Raises:
        RunFolderError: the phases before it have not been made.
        StoppedEarly: a signal came before the first step.
        Others as `train`.
    """
    before = read_run(config.output)
    spec = StudentSpec.parse(config.student, revision=(before or {}).get("student", {}).get("revision"))
    checkpoint = latest_checkpoint(config.output)
    if before is not None and before["status"] == "finished":
        return _result(config, spec, before, None, already_finished=True)
    steps = _steps(checkpoint)
    if steps < phase.steps.first:
        raise RunFolderError(
            f"{config.output}: a phase begins at step {phase.steps.first}, the last checkpoint is of step {steps}. "
            "Checkpoints were removed; use another output folder"
        )
    if before is not None and steps >= phase.steps.stop and steps < (config.max_steps or 0):
        return _result(config, spec, before, checkpoint)
    return _train(config, spec, stop, say, phase)


def _train(
    config: TrainConfig, spec: StudentSpec, stop: StopSignals, say: Say, phase: TrainPhase | None = None
) -> TrainResult:
    """As `train`, in a folder that no other run writes into."""
    tokenizer = load_tokenizer(spec.tokenizer_folder(config.teacher))
    if phase is None:
        groups = open_groups(config.sources, loss=config.loss, cache=config.cache, cache_bytes=config.cache_bytes)
    else:
        groups = list(phase.groups)
    if len(groups) == 1:
        config = replace(config, loss=groups[0].loss)
    casks = [cask for group in groups for cask in group.casks]
    method = choose_method(config, groups, tokenizer).bound(casks)
    settings = config.binding() | method.binding() | ({} if phase is None else phase.binding)
    described = [_describe(cask) for cask in casks]
    # For whoever asks what was trained on; not compared, so a cask may move while a run is interrupted.
    places = [cask.place if is_url(cask.place) else str(Path(cask.place).absolute()) for cask in casks]
    checkpoint = choose_checkpoint(config)
    before = read_run(config.output)
    phases = _phases(before, phase)
    begun = before if phase is None else next((part for part in phases if part["first"] == phase.steps.first), None)
    if begun is not None:
        require_same_run(begun, config.output, settings, described)
    if before is not None:
        if before["status"] == "finished":
            require_saved_alike(before, config)
            say(f"{config.output} is finished; nothing to do")
            return _result(config, spec, before, None, already_finished=True)
    elif checkpoint is not None and checkpoint.is_relative_to(config.output):
        raise RunFolderError(f"{config.output} holds checkpoints without {RUN_NAME}; use another output folder")
    own = processes()
    own.wait_for_everyone()  # every process has read the folder's state before one changes it
    dataset = method.dataset(
        casks, seq_len=config.seq_len, overlap=config.context, packing=config.packing, seed=config.seed
    )
    sequences = _sequences_per_step(config, dataset, before)
    if checkpoint is not None and phase is None:
        require_same_batch(checkpoint, steps=-(-len(dataset) // sequences))
    model = starting_student(config, spec, checkpoint, casks, tokenizer)
    check_context(model, config.seq_len)
    method.check(model, dataset)
    method = method.prepared(dataset, config.output, say)
    args = training_arguments(config, config.output / CHECKPOINTS_NAME, sequences=sequences)
    content: dict[str, Any] = {
        "logitcask": installed_version(),
        "casks": described,
        "places": places,
        "settings": settings,
        "resolved": args.resolved,  # what the settings came to; not compared either
        "batch_tokens": sequences * config.seq_len,
        "student": {"spec": config.student, "revision": spec.revision, "parameters": model.num_parameters()},
        "earlier": earlier_runs(spec.folder or (config.teacher if spec.parts is not None else None)),
    }
    if phase is not None:
        steps = {"first": phase.steps.first, "stop": phase.steps.stop}
        others = [part for part in phases if part["first"] < phase.steps.first]
        content["phases"] = [*others, {**steps, "settings": settings, "casks": described, "places": places}]
        # Whoever asks what was trained on means all phases.
        content["casks"] = [cask for part in content["phases"] for cask in part["casks"]]
        content["places"] = [place for part in content["phases"] for place in part["places"]]
    if own.is_main_process:
        partial_folder(config.output)
        if checkpoint is None and spec.folder is None:
            advice = "Free space and give the same command again"
            with explained_writes(config.output / INITIAL_NAME, advice):
                model.save_pretrained(config.output / INITIAL_NAME)
                tokenizer.save_pretrained(config.output / INITIAL_NAME)
        write_run(config.output, "running", content)
    model = trained_part(model, config, spec)
    say(
        f"{counted(dataset.num_documents, 'document')}, {counted(dataset.num_positions, 'position')} in "
        f"{counted(len(dataset), 'sequence')} of {config.seq_len} ({dataset.fill:.1%} full); "
        f"student of {model.num_parameters():,} parameters"
        + ("" if (trained := _trained(model)) == model.num_parameters() else f", {trained:,} of them trained")
        + (f"; continuing from {checkpoint.name}" if checkpoint else "")
    )
    trainer = DistillTrainer(
        model,
        args,
        dataset,
        processing_class=tokenizer,
        method=method,
        phase=None if phase is None else phase.steps,
    )
    # Not before: shares of a phase belong to the method's.
    for note in filter(None, [*method.notes(dataset, model), router_note(model, config.router_loss)]):
        say(note)
    trainer.stop_requested = lambda: stop.requested
    with memory_advice(config, micro_sequences=args.per_device_train_batch_size):
        result = _run(trainer, config, checkpoint, stop)
    running = {"status": "running", **content}
    if result is None:
        if trainer.phase_done():
            return _result(config, spec, running, checkpoint)
        done, total = trainer.state.global_step, trainer.state.max_steps
        say(f"stopped after step {done:,} of {total:,}, which is saved; the same command goes on from there")
        return _result(config, spec, running, checkpoint, stopped_at=done)
    content["result"] = result
    if own.is_main_process:
        write_run(config.output, "finished", content)
    own.wait_for_everyone()  # whoever calls again finds it finished, in every process
    return _result(config, spec, {**running, **content, "status": "finished"}, checkpoint)


def _phases(before: dict[str, Any] | None, phase: TrainPhase | None) -> list[dict[str, Any]]:
    """What the run document says of the phases up to this one.

    Raises:
        RunFolderError: the folder's run is of another kind.
    """
    phases: list[dict[str, Any]] = (before or {}).get("phases", [])
    if before is not None and bool(phases) != (phase is not None):
        kinds = ("`logitcask rounds`", "`logitcask train`")
        made, now = kinds if phases else kinds[::-1]
        raise RunFolderError(f"the output folder holds a run of {made}, not of {now}. Use another output folder")
    return phases


def _sequences_per_step(config: TrainConfig, dataset: SequenceDataset[Any], before: dict[str, Any] | None) -> int:
    """Those of the run that goes on, whatever its number of processes is now; else those of one that begins."""
    if before is not None and "batch_tokens" in before:
        return int(before["batch_tokens"]) // config.seq_len
    return config.step_sequences(processes().num_processes, slots=len(dataset) * dataset.seq_len)


def _trained(model: Any) -> int:
    """Parameters that training changes."""
    return int(model.num_parameters(only_trainable=True))


def _run(
    trainer: DistillTrainer, config: TrainConfig, checkpoint: Path | None, stop: StopSignals
) -> dict[str, Any] | None:
    """Train and save the student; returns the summary that goes into the run document, None where it was stopped."""
    output = config.output
    progress, metrics = ProgressBar(), MetricsLog(output / METRICS_NAME)
    for callback in (
        LogWhenSaving(),
        metrics,
        progress,
        StopWhenAsked(lambda: trainer.phase_done() or trainer.stop_agreed()),
    ):
        trainer.add_callback(callback)
    started = time.monotonic()
    try:
        stop.training_begins()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < trainer.state.max_steps:
            return None
        save_student(trainer, output, merge=config.merge, dtype=config.save_dtype)
    finally:
        progress.close()
        metrics.close()
    lines = read_metrics(output / METRICS_NAME)
    return {
        "steps": trainer.state.global_step,
        "positions": sum(line["positions"] for line in lines),
        "seconds_of_last_call": time.monotonic() - started,
        "first": lines[0],
        "last": lines[-1],
        "closing": closing_mean(lines),
    }


def _describe(cask: Cask) -> dict[str, Any]:
    """What identifies a cask's content, without its path."""
    return {
        "identity": cask.manifest.identity_digest(),
        "teacher": cask.manifest.teacher.model_dump(mode="json"),
        "capture": cask.manifest.capture.canonical(),
        "shards": sorted(entry.name for entry in cask.entries),
        "documents": len(cask),
        "positions": cask.num_positions,
    }


def _result(
    config: TrainConfig,
    spec: StudentSpec,
    run: dict[str, Any],
    checkpoint: Path | None,
    *,
    already_finished: bool = False,
    stopped_at: int | None = None,
) -> TrainResult:
    saved = config.output / INITIAL_NAME
    return TrainResult(
        output=config.output,
        initial=saved if saved.is_dir() else spec.folder,
        run=run,
        resumed_from=checkpoint,
        already_finished=already_finished,
        stopped_at=stopped_at,
    )


def _steps(checkpoint: Path | None) -> int:
    """Optimizer steps that a checkpoint was made after."""
    return 0 if checkpoint is None else int(read_state(checkpoint)["global_step"])
