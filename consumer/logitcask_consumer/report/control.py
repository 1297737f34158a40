"""The control of a distilled student: the same run with cross-entropy, and which share of its gap the teacher closed.

Student, documents, order, steps, schedule and seed are those of the student's run; only the loss is another one, which
does not use the teacher. So what is between the two is the teacher's doing. A run that was measured on held-out casks
is measured on them again: where it chose its student by them, or ended early, the control does so by the same rule.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskSource
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.estimates import DocumentBootstrap
from logitcask_consumer.report.evaluate import Columns
from logitcask_consumer.run_document import INITIAL_NAME, read_run
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import LogitcaskError

CONTROLS: Final = {"ce": "cross_entropy"}
"""Names of controls -> the loss of their run."""
OF_THE_TEACHER: Final = ("teacher_entropy", "teacher_confidence", "tail_mass")
"""Weights of positions that are read from the teacher's records."""
FREE: Final = ("micro_tokens", "gradient_checkpointing", "block_rows", "save_dtype", "save_quantized")
"""Settings of a run that may change when it goes on, and are taken over as they were last."""
FOLDER: Final = "control-{}"
"""In the report's folder, of each name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A run to be made, and whose control it is."""

    label: str
    student: str
    """Label of the model that it is compared with."""
    run: TrainConfig

    @classmethod
    def of(cls, config: ReportConfig) -> "Control":
        """The control of the report's last model; reads its run document and its casks, trains nothing.

        Raises:
            ReportError: there is no control of this name, no finished run made the model, or its run cannot be made
                again: in rounds, with casks of several weights or losses, or of casks that are gone or have changed.
            RunFolderError: the run document is damaged.
        """
        if config.control not in CONTROLS:
            raise ReportError(f"there is no control {config.control!r}, only {', '.join(CONTROLS)}")
        label, folder = config.models[-1]
        run = read_run(folder)
        if run is None or run["status"] != "finished":
            raise ReportError(
                f"the control of {label} cannot be trained: {folder} is not the output of a finished "
                "`logitcask train`. Name one last, or leave out --control"
            )
        return cls(
            label=f"{label} without teacher ({config.control})",
            student=label,
            run=replace(
                _same_run(label, folder, run, config.output / FOLDER.format(config.control), CONTROLS[config.control]),
                teacher=_teacher(config, run),
            ),
        )

    def trained(self, say: Callable[[str], None]) -> Path:
        """Train it, or go on where an earlier call was interrupted; the folder of the model.

        Raises:
            ReportError: a signal ended the call.
            Others as `train`.
        """
        say(f"training {self.label} for comparison, in {self.run.output}")
        result = train(self.run, say=say)
        if result.stopped_at is not None:
            raise ReportError(f"stopped while training {self.label}; the same command goes on from there")
        return result.output

    def beside_student(self, config: ReportConfig) -> ReportConfig:
        """The report with the control before the student, so that the last model stays the last."""
        models = [
            beside
            for model in config.models
            for beside in ([(self.label, self.run.output), model] if model[0] == self.student else [model])
        ]
        return replace(config, models=tuple(models))


def _same_run(label: str, folder: Path, run: dict[str, Any], output: Path, loss: str) -> TrainConfig:
    """The settings of a run with another loss, and nothing of the teacher."""

    def refused(reason: str) -> ReportError:
        return ReportError(f"the control of {label} cannot be trained: {reason}. Leave out --control")

    if "phases" in run:
        raise refused(f"{folder} was trained in rounds, on texts of its own")
    if run["places"] is None:
        raise refused(f"{folder} is of an earlier version, which does not say where its casks lie")
    settings = run["settings"]
    sources = [CaskSource.parse(written) for written in settings["casks"]]
    if any(source.weight is not None or source.loss is not None for source in sources):
        raise refused(f"{folder} was trained on casks with weights of their own")
    for place, described in zip(run["places"], run["casks"], strict=True):
        if _shards_at(place, refused) != described["shards"]:
            raise refused(f"{place} has other shards than when {label} was trained on it")
    names = {field.name for field in fields(TrainConfig)} - {"casks", "student", "output"}
    kept = {name: value for name, value in settings.items() if name in names}
    named = [name for name in OF_THE_TEACHER if name in str(settings["weights"])]
    if named:
        raise refused(f"{folder} was trained with weights that come from the teacher's records ({', '.join(named)})")
    # What changes nothing of a run but its memory, and in what its student is saved.
    free = {name: value for name, value in (run.get("resolved") or {}).items() if name in FREE}
    without_teacher = {"loss": loss, "ce_weight": 0.0, "hints": None, "target": "record"}
    held_out = run.get("held_out", {"places": [], "casks": []})
    for place, described in zip(held_out["places"], held_out["casks"], strict=True):
        if _shards_at(place, refused) != described["shards"]:
            raise refused(f"{place} has other shards than when {label} was measured on it")
    return TrainConfig(
        eval_casks=tuple(held_out["places"]),
        **{**kept, **free, **without_teacher, "batch_tokens": run["batch_tokens"]},
        casks=tuple(CaskSource(place=place) for place in run["places"]),
        student=_initial(label, folder, run),
        output=output,
    )


def _teacher(config: ReportConfig, run: dict[str, Any]) -> Path | None:
    """The folder whose tokenizer a student without its own takes: the report's teacher, or the run's if it is there."""
    if config.teacher is not None:
        return config.teacher
    teacher_of_run = (run.get("resolved") or {}).get("teacher")
    return Path(teacher_of_run) if teacher_of_run is not None and Path(teacher_of_run).is_dir() else None


def _shards_at(place: str, refused: Callable[[str], ReportError]) -> list[str]:
    """Names of a cask's shards, sorted."""
    try:
        with TemporaryDirectory(prefix="logitcask-control-") as cache:  # a URL's entries are read, and nothing kept
            return sorted(entry.name for entry in Cask.open(place, cache=Path(cache)).entries)
    except (LogitcaskError, OSError) as error:
        raise refused(f"a cask of its run cannot be read ({error})") from error


def _initial(label: str, folder: Path, run: dict[str, Any]) -> str:
    """The student before training, as `TrainConfig.student` takes it."""
    if (folder / INITIAL_NAME).is_dir():
        return str(folder / INITIAL_NAME)
    student: dict[str, Any] = run["student"]
    spec, revision = student["spec"], student.get("revision")
    if revision is not None:
        return f"{spec.partition('@')[0]}@{revision}"
    if not Path(spec).exists():
        raise ReportError(
            f"the control of {label} cannot be trained: the student before training, {spec}, is not there. Give the "
            "command where the run was begun, or leave out --control"
        )
    return str(spec)


def gap_closed(
    teacher: Columns, control: Columns, student: Columns, kinds: dict[str, str], seed: int
) -> dict[str, Any]:
    """Which share of the way from the control to the teacher the student has gone, by document bootstrap.

    (control - student) / (control - teacher), of means over the positions. The teacher's KL to itself is 0.

    Args:
        teacher: the teacher's own figures.
        control: the control's.
        student: the student's, at the same positions.
        kinds: of the metrics; a KL that is a bound gives no share.
        seed: of the bootstrap.

    Returns:
        For `kl` and `nll`: `gap`, control less teacher in nats per token, and `share`; None where the interval of the
        gap holds 0 or lies below, so that there is nothing to close.
    """
    bootstrap = DocumentBootstrap(teacher.documents_P, seed=seed)
    closed = {}
    for name in ("kl", "nll"):
        if kinds.get(name) not in ("exact", "unbiased"):
            continue
        control_P, student_P = (columns.values[name].astype("float64") for columns in (control, student))
        gap_P = control_P - teacher.values[name].astype("float64") if name == "nll" else control_P
        gap = bootstrap.mean(gap_P)
        is_gap = gap.value > 0 if gap.low is None else gap.low > 0
        share = bootstrap.ratio(control_P - student_P, gap_P).as_dict() if is_gap else None
        closed[name] = {"gap": gap.as_dict(), "share": share}
    return closed
