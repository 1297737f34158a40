"""Training runs as models of a report: every checkpoint that is kept, then the trained student."""

from dataclasses import replace
from pathlib import Path

from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.run_document import CHECKPOINTS_NAME, RUN_NAME, checkpoints_in, read_run


def with_checkpoints(config: ReportConfig) -> ReportConfig:
    """The report with the models of its runs behind those that were named one by one.

    Raises:
        ReportError: a folder holds no run, or a run without any model yet.
        RunFolderError: a run document is damaged.
    """
    found = [model for label, folder in config.runs for model in models_of_run(label, folder)]
    return replace(config, models=(*config.models, *found), runs=())


def models_of_run(label: str, folder: Path) -> list[tuple[str, Path]]:
    """Label and folder of each complete checkpoint, as LABEL@STEP, in order, and of the student of a finished run.

    The checkpoint of a finished run's last step is left out: it is the student.

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
        steps.pop(run["result"]["steps"], None)
    models = [(f"{label}@{step}", path) for step, path in steps.items()]
    if finished:
        models.append((label, folder))
    if not models:
        raise ReportError(f"{folder} holds a training run without a checkpoint yet; wait for its first (--save-steps)")
    return models
