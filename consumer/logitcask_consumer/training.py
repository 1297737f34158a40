"""A whole training run: casks and a student in, a Hugging Face folder out; resumable at any point."""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcask_consumer.adapters import LoraSpec, freeze_head
from logitcask_consumer.callbacks import LogWhenSaving, MetricsLog, ProgressBar, read_metrics
from logitcask_consumer.checkpoints import (
    CHECKPOINTS_NAME,
    INITIAL_NAME,
    METRICS_NAME,
    choose_checkpoint,
    read_run,
    require_same_run,
    write_run,
)
from logitcask_consumer.checks import check_student
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.objective import ChunkObjective
from logitcask_consumer.cross_tokenizer.run import CrossTokenizerRun, require_same_tokenizer
from logitcask_consumer.data import CaskDataset, open_casks, share_note, trained_share
from logitcask_consumer.losses import Objective, check_head
from logitcask_consumer.processes import processes
from logitcask_consumer.students import StudentSpec, load_model, load_tokenizer
from logitcask_consumer.trainer import DistillTrainer
from logitcask_consumer.weights import StoredAnswers, Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.remote_store import is_url

Say = Callable[[str], None]


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


def train(config: TrainConfig, *, say: Say = lambda message: None) -> TrainResult:
    """Train a student, or continue where an earlier call was interrupted.

    Args:
        config: the run.
        say: receives messages for people.

    Raises:
        CaskError: a cask cannot be opened, is damaged, or belongs to another tokenizer, teacher or spec.
        ModelError: student or teacher cannot be loaded, or its vocabulary is not the teacher's.
        LossMismatchError: the loss does not fit the cask's capture mode.
        IdentityMismatchError: the student has another tokenizer, and the loss compares token ids.
        NothingAlignedError: no document can be aligned with a student's own tokenizer.
        AdapterError: the adapters' description cannot be followed.
        UnknownWeightError, WeightParameterError: the weights are not understood, or do not fit the tokenizer.
        NothingTrainedError: the weights leave no position to be trained.
        RunFolderError: the output folder holds another run.
    """
    chunked = ChunkObjective.names_one(config.loss)
    if not chunked:
        Objective.parse(config.loss).with_cross_entropy(config.ce_weight)
    if config.lora is not None:
        LoraSpec.parse(config.lora)
    weights = Weights.parse(config.weights)
    spec = StudentSpec.parse(config.student)
    tokenizer = load_tokenizer(spec.tokenizer_folder(config.teacher))
    cross = CrossTokenizerRun.of(config, tokenizer) if chunked else None
    casks = open_casks(config.casks, tokenizer_fingerprint=None, cache=config.cache, cache_bytes=config.cache_bytes)
    if cross is None:
        require_same_tokenizer(casks, tokenizer)
    else:
        cross.require(casks)
    answers = StoredAnswers.of(casks)
    weights = weights.bind(tokenizer, answers)
    settings = config.binding() | ({"weights_read": read} if (read := weights.contents()) else {})
    described = [_describe(cask) for cask in casks]
    checkpoint = choose_checkpoint(config)
    before = read_run(config.output)
    if before is not None:
        require_same_run(before, config.output, settings, described)
        if before["status"] == "finished":
            say(f"{config.output} is finished; nothing to do")
            return _result(config, spec, before, None, already_finished=True)
    own = processes()
    own.wait_for_everyone()  # every process has read the folder's state before one changes it
    dataset = _dataset(config, casks, weights) if cross is None else cross.dataset(casks, say)
    if isinstance(dataset, CaskDataset):
        share = share_note(trained_share(dataset, seed=config.seed))
        for note in [*weights.notes(answers), *([share] if share else [])]:
            say(note)
    model = _student(config, spec, checkpoint)
    if cross is None:
        check_student(model, dataset.manifest, config.packing)
    else:
        cross.check(model)
    content = {
        "logitcask": importlib.metadata.version("logitcask"),
        "casks": described,
        # For whoever asks what was trained on; not compared, so a cask may move while a run is interrupted.
        "places": [str(place) if is_url(place) else str(Path(place).absolute()) for place in config.casks],
        "settings": settings,
        "student": {"spec": config.student, "parameters": model.num_parameters()},
    }
    if own.is_main_process:
        write_run(config.output, "running", content)
        if checkpoint is None and spec.folder is None:
            model.save_pretrained(config.output / INITIAL_NAME)
            tokenizer.save_pretrained(config.output / INITIAL_NAME)
    if config.lora is not None:
        base = spec.folder or config.output / INITIAL_NAME
        model = LoraSpec.parse(config.lora).applied(model, base=base, seed=config.seed)
        check_head(model)
    if config.freeze_head:
        freeze_head(model)
    say(
        f"{dataset.num_documents:,} documents, {dataset.num_positions:,} positions in {len(dataset):,} sequences of "
        f"{config.seq_len} ({dataset.fill:.1%} full); student of {model.num_parameters():,} parameters"
        + ("" if (trained := _trained(model)) == model.num_parameters() else f", {trained:,} of them trained")
        + (f"; continuing from {checkpoint.name}" if checkpoint else "")
    )
    content["result"] = _run(config, model, dataset, tokenizer, checkpoint, cross)
    if own.is_main_process:
        write_run(config.output, "finished", content)
    return _result(config, spec, {"status": "finished", **content}, checkpoint, already_finished=False)


def _student(config: TrainConfig, spec: StudentSpec, checkpoint: Path | None) -> Any:
    """The student as training starts, or continues, from; of adapters the base, which no checkpoint holds."""
    if checkpoint is None:
        return spec.build(config.teacher, seed=config.seed)
    if config.lora is None:
        return load_model(checkpoint)
    return load_model(spec.folder or config.output / INITIAL_NAME)


def _trained(model: Any) -> int:
    """Parameters that training changes."""
    return int(model.num_parameters(only_trainable=True))


def _dataset(config: TrainConfig, casks: list[Cask], weights: Weights) -> CaskDataset:
    dataset = CaskDataset(
        casks,
        seq_len=config.seq_len,
        overlap=config.context,
        packing=config.packing,
        seed=config.seed,
        weights=weights,
    )
    Objective.parse(config.loss).require(dataset.manifest.capture)
    return dataset


def _run(
    config: TrainConfig,
    model: Any,
    dataset: CaskDataset | CrossTokenizerDataset,
    tokenizer: Any,
    checkpoint: Path | None,
    cross: CrossTokenizerRun | None,
) -> dict[str, Any]:
    """Train and save the student; returns the summary that goes into the run document."""
    progress, metrics = ProgressBar(), MetricsLog(config.output / METRICS_NAME)
    checkpoints, callbacks = config.output / CHECKPOINTS_NAME, [LogWhenSaving(), metrics, progress]
    trainer: DistillTrainer
    if isinstance(dataset, CaskDataset):
        trainer = DistillTrainer(
            model, dataset, config, checkpoints=checkpoints, tokenizer=tokenizer, callbacks=callbacks
        )
    else:
        assert cross is not None, "it made the dataset"
        trainer = cross.trainer(model, dataset, checkpoints, callbacks)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(config.output))
    finally:
        progress.close()
        metrics.close()
    lines = read_metrics(config.output / METRICS_NAME)
    return {
        "steps": trainer.state.global_step,
        "positions": sum(line["positions"] for line in lines),
        "seconds_of_last_call": time.monotonic() - started,
        "first": lines[0],
        "last": lines[-1],
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
    config: TrainConfig, spec: StudentSpec, run: dict[str, Any], checkpoint: Path | None, *, already_finished: bool
) -> TrainResult:
    saved = config.output / INITIAL_NAME
    return TrainResult(
        output=config.output,
        initial=saved if saved.is_dir() else spec.folder,
        run=run,
        resumed_from=checkpoint,
        already_finished=already_finished,
    )
