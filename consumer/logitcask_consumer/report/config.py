"""What a report is asked for, all models of a run among it; what is refused before anything is opened."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from logitcask_consumer.run_document import CHECKPOINTS_NAME, RUN_NAME, checkpoints_in, read_run
from logitcask_consumer.tasks.perturbations import Perturbation
from logitcask_schemas.cask.publication import cask_around
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.model_source import find_model

DRAFT_LENGTH = 4
"""Drafted tokens of a speculative step, unless others are asked for."""


class ReportError(LogitcaskError, ValueError):
    """A report cannot be made of what was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What to report on."""

    casks: tuple[Path, ...]
    """Held-out casks."""
    models: tuple[tuple[str, Path], ...]
    """Label and folder of each model, or repository of the Hub, in the order in which they are shown."""
    train_logs: tuple[tuple[str, Path], ...] = ()
    """Label and output folder of training runs, for the loss curve."""
    output: Path
    """Folder for report.md, report.html, report.json and the plots."""
    seq_len: int | None = None
    """Tokens of a window; None takes, for each model, the longest document, at most `LONGEST` and what it can take."""
    batch_tokens: int = 4096
    """Slots per forward pass."""
    seed: int = 0
    """Of the bootstrap, and of perturbations."""
    teacher: Path | None = None
    """The teacher's folder, of which the tokenizer is read: for models with a tokenizer of their own, and bits per byte
    of all."""
    token_scores: bool = False
    """Whether to write each model's KL at each position, for `logitcask view`; see `report.token_scores`."""
    other_teachers: tuple[Path, ...] = ()
    """Folders of further teachers, for casks with their tokenizers."""
    draft_lengths: tuple[int, ...] = (DRAFT_LENGTH,)
    """Tokens that a student drafts for a step of speculative decoding."""
    runs: tuple[tuple[str, Path], ...] = ()
    """Label and output folder of training runs all of whose checkpoints are measured, behind `models`."""
    control: str | None = None
    """Train the last model's control, too: `ce`, the same run with cross-entropy; see `report.control`."""
    generate: int = 0
    """Let the models write after the prompts of so many held-out documents; see `report.texts`."""
    speed: bool = False
    """Measure what models, and the teacher where its weights are there, cost on this machine; see `report.cost`."""
    cards: tuple[str, ...] = ()
    """Labels of models that get a README.md in their folder; see `report.model_card`."""
    tasks: tuple[Path, ...] = ()
    """Task files of lm-evaluation-harness, or folders of them, that models, and the teacher where its weights are
    there, are asked; see `report.task_scores`."""
    perturb: tuple[Perturbation, ...] = ()
    """Changes under which the questions of the tasks are asked again."""
    task_code: bool = False
    """Whether to run the Python that task files name."""


def check_config(config: ReportConfig) -> None:
    """Refuse what can be refused before anything is opened. Raises ReportError."""
    if config.seed < 0:
        raise ReportError(f"seed must be at least 0, got {config.seed}")
    labels = [label for label, _ in config.models]
    if not labels:
        raise ReportError("no model to report on; name at least one as label=folder")
    if len(set(labels)) != len(labels):
        raise ReportError(f"labels must differ, got {', '.join(labels)}")
    if "teacher" in labels:
        raise ReportError("the label 'teacher' is that of the teacher's own column; give the model another")
    for label in labels:
        if not label.isprintable():
            raise ReportError(f"label {label!r}: expected a name of one line that can be printed; give it another")
    if config.generate < 0:
        raise ReportError(f"the number of texts to generate must be at least 0, got {config.generate}")
    if config.perturb and not config.tasks:
        raise ReportError("--perturb changes the questions of tasks; name some with --tasks, or leave it out")
    if wrong := [length for length in config.draft_lengths if length < 1]:
        raise ReportError(f"draft lengths must be at least 1, got {wrong[0]}")


def with_folders(config: ReportConfig) -> ReportConfig:
    """Repositories of the Hub as the folders they are downloaded to. Raises ModelError."""
    teacher = config.teacher and find_model(config.teacher).folder
    others = tuple(find_model(other).folder for other in config.other_teachers)
    models = tuple((label, find_model(folder).folder) for label, folder in config.models)
    return replace(config, teacher=teacher, other_teachers=others, models=models)


def with_checkpoints(config: ReportConfig) -> ReportConfig:
    """The report with the models of its runs behind those that were named one by one.

    Raises:
        ReportError: a folder holds no run, or a run without any model yet.
        RunFolderError: a run document is damaged.
    """
    checkpoints = [model for label, folder in config.runs for model in models_of_run(label, folder)]
    return replace(config, models=(*config.models, *checkpoints), runs=())


def models_of_run(label: str, folder: Path) -> list[tuple[str, Path]]:
    """Label and folder of each complete checkpoint, as LABEL@STEP, in order, and of the student of a finished run.

    The checkpoint that a finished run's student is of, mostly that of its last step, is left out.

    Raises:
        ReportError: the folder holds no run, or nothing that could be measured.
        RunFolderError: the run document is damaged.
    """
    run = read_run(folder)
    if run is None:
        raise ReportError(f"{folder} holds no training run ({RUN_NAME}); name the output folder of `logitcask train`")
    finished = run["status"] == "finished"
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in checkpoints_in(folder / CHECKPOINTS_NAME)
        if (path / "trainer_state.json").is_file()
    }
    if finished:
        steps.pop(run["result"].get("student_step", run["result"]["steps"]), None)
    models = [(f"{label}@{step}", path) for step, path in steps.items()]
    if finished:
        models.append((label, folder))
    if not models:
        raise ReportError(f"{folder} holds a training run without a checkpoint yet; wait for its first (--save-steps)")
    return models


def require_writable(output: Path) -> None:
    """Refuse a folder that cannot be made or written before anything is measured for nothing; makes nothing.

    Raises:
        ReportError: it cannot, or lies in a cask.
    """
    if (cask := cask_around(output)) is not None:
        raise ReportError(f"--output {output}: lies in the cask {cask}, which holds nothing else; name another folder")
    standing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    with explained_output(output), tempfile.TemporaryFile(dir=standing):
        pass


@contextmanager
def explained_output(output: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence. Raises ReportError."""
    try:
        yield
    except OSError as error:
        reason = f"{output} is a file" if output.is_file() else error.strerror
        raise ReportError(
            f"the folder {output} of the report cannot be made or written: {reason}. Free space, or name another "
            "folder (--output)"
        ) from error
