"""A whole training run: casks and a student in, a Hugging Face folder out; resumable at any point."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import SequenceDataset, open_groups
from logitcask_consumer.held_out.documents import HeldOutDocuments
from logitcask_consumer.held_out.measuring import HeldOutEvaluator
from logitcask_consumer.held_out.overlap import overlap_notes
from logitcask_consumer.processes import processes
from logitcask_consumer.run_document import (
    CHECKPOINTS_NAME,
    INITIAL_NAME,
    RUN_NAME,
    RunFolderError,
    explained_writes,
    latest_checkpoint,
    read_run,
    require_finished,
    require_unused,
    share_weights,
    write_run,
)
from logitcask_consumer.student.adapters import LoraSpec
from logitcask_consumer.student.checks import check_context
from logitcask_consumer.student.loading import load_tokenizer
from logitcask_consumer.student.quantization import quantization_note, read_scheme
from logitcask_consumer.student.router_loss import router_note
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.arguments import (
    evaluation_arguments,
    require_processes,
    require_trackers,
    training_arguments,
)
from logitcask_consumer.training.checkpoints import (
    choose_checkpoint,
    partial_folder,
    require_evaluations_of,
    require_same_batch,
    require_same_run,
    steps_of,
)
from logitcask_consumer.training.choose_method import choose_method, method_class
from logitcask_consumer.training.finished_student import require_saved_alike
from logitcask_consumer.training.out_of_memory import memory_advice
from logitcask_consumer.training.run_content import (
    RunContent,
    TrainPhase,
    TrainResult,
    describe_cask,
    describe_held_out,
    for_trackers,
    phases_of,
    place_of,
)
from logitcask_consumer.training.run_lock import hold_run
from logitcask_consumer.training.starting_student import starting_student, trained_part
from logitcask_consumer.training.stop_signals import StoppedEarly, StopSignals
from logitcask_consumer.training.train_to_end import train_to_end
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import find_model
from logitcask_schemas.terminal import counted

Say = Callable[[str], None]


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
        QuantizationError: the quantisation is unknown, or does not fit the student.
        MissingExtraError: it, or adapters, need what is not installed.
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
    if config.quantize is not None:
        read_scheme(config.quantize)
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
            return TrainResult.of(config, spec, read_run(config.output) or {}, last, stopped_at=steps_of(last))


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
        return TrainResult.of(config, spec, before, None, already_finished=True)
    steps = steps_of(checkpoint)
    if steps < phase.steps.first:
        raise RunFolderError(
            f"{config.output}: a phase begins at step {phase.steps.first}, the last checkpoint is of step {steps}. "
            "Checkpoints were removed; use another output folder"
        )
    if before is not None and steps >= phase.steps.stop and steps < (config.max_steps or 0):
        return TrainResult.of(config, spec, before, checkpoint)
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
    held_out = _open_held_out(config, tokenizer)
    if held_out is not None:
        settings["held_out"] = held_out.binding()
    checkpoint = choose_checkpoint(config)
    before = read_run(config.output)
    content = RunContent(
        casks=[describe_cask(cask) for cask in casks],
        places=[place_of(cask) for cask in casks],
        settings=settings,
        phases=phases_of(before, phase),
    )
    begun = before
    if phase is not None:
        begun = next((part for part in content.phases if part["first"] == phase.steps.first), None)
    if begun is not None:
        require_same_run(begun, config.output, settings, content.casks)
    if before is not None:
        if before["status"] == "finished":
            require_saved_alike(before, config)
            say(f"{config.output} is finished; nothing to do")
            return TrainResult.of(config, spec, before, None, already_finished=True)
    elif checkpoint is not None and checkpoint.is_relative_to(config.output):
        raise RunFolderError(f"{config.output} holds checkpoints without {RUN_NAME}; use another output folder")
    if held_out is not None and checkpoint is not None:
        require_evaluations_of(config.output, checkpoint)
    notes = [] if held_out is None else overlap_notes(held_out, casks, spec.origin(config.teacher))
    team = processes()
    team.wait_for_everyone()  # every process has read the folder's state before one changes it
    dataset = method.dataset(
        casks, seq_len=config.seq_len, overlap=config.context, packing=config.packing, seed=config.seed
    )
    sequences = _sequences_per_step(config, dataset, before)
    if checkpoint is not None and phase is None:
        require_same_batch(checkpoint, steps=-(-len(dataset) // sequences))
    model = starting_student(config, spec, checkpoint, casks, tokenizer, say)
    check_context(model, config.seq_len)
    method.check(model, dataset)
    method = method.prepared(dataset, config.output, say)
    evaluated, evaluation, measured = None, dict[str, Any](), None
    if held_out is not None:
        reading = held_out.reading(model, config.packing)
        evaluated = held_out.dataset(reading)
        measured = describe_held_out(held_out, reading.describe(evaluated), evaluated.num_positions)
        evaluation = evaluation_arguments(
            config, metric=held_out.metric, seq_len=reading.seq_len, begins=checkpoint is None
        )
    args = training_arguments(config, config.output / CHECKPOINTS_NAME, sequences=sequences, evaluation=evaluation)
    document = content.document(
        config,
        spec,
        resolved=args.resolved,
        batch_tokens=sequences * config.seq_len,
        parameters=model.num_parameters(),
        phase=phase,
        held_out=measured,
    )
    args.run_document = for_trackers(document)
    if team.is_main_process:
        partial_folder(config.output)
        if checkpoint is None and spec.first_folder is None:
            advice = "Free space and give the same command again"
            with explained_writes(config.output / INITIAL_NAME, advice):
                model.save_pretrained(config.output / INITIAL_NAME)
                tokenizer.save_pretrained(config.output / INITIAL_NAME)
                share_weights(config.output / INITIAL_NAME)
        write_run(config.output, "running", document)
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
        evaluated,
        processing_class=tokenizer,
        method=method,
        evaluator=None
        if held_out is None
        else HeldOutEvaluator(extra_ids=config.extra_ids, block_rows=config.block_rows),
        phase=None if phase is None else phase.steps,
    )
    # Not before: shares of a phase belong to the method's.
    rounding = None if config.quantize is None else quantization_note(model, read_scheme(config.quantize))
    for note in filter(None, [*method.notes(dataset, model), router_note(model, config.router_loss), rounding, *notes]):
        say(note)
    if evaluated is not None:
        every = "every tenth of the run" if config.eval_every is None else f"every {counted(config.eval_every, 'step')}"
        say(f"measured {every} on {counted(evaluated.num_positions, 'held-out position')}")
    trainer.stop_requested = lambda: stop.requested
    with memory_advice(config, micro_sequences=args.per_device_train_batch_size, in_rounds=phase is not None):
        result = train_to_end(trainer, config, checkpoint, stop, metric=None if held_out is None else held_out.metric)
    running = {"status": "running", **document}
    if result is None:
        if trainer.phase_done():
            return TrainResult.of(config, spec, running, checkpoint)
        done, total = trainer.state.global_step, trainer.state.max_steps
        say(f"stopped after step {done:,} of {total:,}, which is saved; the same command goes on from there")
        return TrainResult.of(config, spec, running, checkpoint, stopped_at=done)
    document["result"] = result
    if team.is_main_process:
        write_run(config.output, "finished", document)
    team.wait_for_everyone()  # whoever calls again finds it finished, in every process
    return TrainResult.of(config, spec, {**running, **document, "status": "finished"}, checkpoint)


def _sequences_per_step(config: TrainConfig, dataset: SequenceDataset[Any], before: dict[str, Any] | None) -> int:
    """Those of the run that goes on, whatever its number of processes is now; else those of one that begins."""
    if before is not None and "batch_tokens" in before:
        return int(before["batch_tokens"]) // config.seq_len
    return config.step_sequences(processes().num_processes, slots=len(dataset) * dataset.seq_len)


def _trained(model: Any) -> int:
    """Parameters that training changes."""
    return int(model.num_parameters(only_trainable=True))


def _open_held_out(config: TrainConfig, tokenizer: Any) -> HeldOutDocuments | None:
    """The held-out documents of a run; None where it names none."""
    if not config.eval_casks:
        return None
    return HeldOutDocuments.open(
        config.eval_casks,
        tokenizer=tokenizer,
        documents=config.eval_documents,
        cache=config.cache,
        cache_bytes=config.cache_bytes,
    )
