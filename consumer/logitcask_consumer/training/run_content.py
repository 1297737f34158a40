"""What a run is, its document (casks, settings, student, phases, held-out documents), and what it came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskGroup, Phase
from logitcask_consumer.held_out.documents import HeldOutDocuments
from logitcask_consumer.run_document import INITIAL_NAME, RunFolderError, earlier_runs
from logitcask_consumer.student.students import StudentSpec
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.terminal import installed_version


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPhase:
    """A phase of a run: what it trains on, and which of the run's steps it makes."""

    groups: tuple[CaskGroup, ...]
    """One for each of the shares of `steps`."""
    steps: Phase
    binding: dict[str, Any]
    """What a resumption of the phase must share with it besides casks and settings; JSON types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContent:
    """What is known of a run before its student is made; JSON types."""

    casks: list[dict[str, Any]]
    """What identifies their content."""
    places: list[str]
    """For whoever asks what was trained on; not compared, so a cask may move while a run is interrupted."""
    settings: dict[str, Any]
    """What a resumption must share with the run."""
    phases: list[dict[str, Any]]
    """Those that the run's document has; none of a run without phases."""

    def document(
        self,
        config: TrainConfig,
        spec: StudentSpec,
        *,
        resolved: dict[str, Any] | None,
        batch_tokens: int,
        parameters: int,
        phase: TrainPhase | None,
        held_out: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The run document but for its status and result.

        Args:
            config: the run.
            spec: its student.
            resolved: what the settings came to; not compared.
            batch_tokens: slots of an optimizer step, over all processes.
            parameters: of the student.
            phase: the phase that is made; None for all of the run.
            held_out: from `describe_held_out`.
        """
        content: dict[str, Any] = {
            "logitcask": installed_version(),
            "casks": self.casks,
            "places": self.places,
            "settings": self.settings,
            "resolved": resolved,
            "batch_tokens": batch_tokens,
            "student": {"spec": config.student, "revision": spec.revision, "parameters": parameters},
            "earlier": earlier_runs(spec.origin(config.teacher)),
        }
        if held_out is not None:
            content["held_out"] = held_out
        if phase is not None:
            steps = {"first": phase.steps.first, "stop": phase.steps.stop}
            others = [part for part in self.phases if part["first"] < phase.steps.first]
            begun = {**steps, "settings": self.settings, "casks": self.casks, "places": self.places}
            content["phases"] = [*others, begun]
            # Whoever asks what was trained on means all phases.
            content["casks"] = [cask for part in content["phases"] for cask in part["casks"]]
            content["places"] = [place for part in content["phases"] for place in part["places"]]
        return content


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

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        spec: StudentSpec,
        run: dict[str, Any],
        checkpoint: Path | None,
        *,
        already_finished: bool = False,
        stopped_at: int | None = None,
    ) -> Self:
        """The result of a run whose folder is as it stands now.

        Args:
            config: the run.
            spec: its student.
            run: its document.
            checkpoint: which the call continued from.
            already_finished: whether nothing was done.
            stopped_at: step after which a signal ended the call.
        """
        saved = config.output / INITIAL_NAME
        return cls(
            output=config.output,
            initial=saved if saved.is_dir() else spec.first_folder,
            run=run,
            resumed_from=checkpoint,
            already_finished=already_finished,
            stopped_at=stopped_at,
        )


def phases_of(run: dict[str, Any] | None, phase: TrainPhase | None) -> list[dict[str, Any]]:
    """What the run document says of the phases up to this one.

    Raises:
        RunFolderError: the folder's run is of another kind.
    """
    phases: list[dict[str, Any]] = (run or {}).get("phases", [])
    if run is not None and bool(phases) != (phase is not None):
        kinds = ("`logitcask rounds`", "`logitcask train`")
        made, now = kinds if phases else kinds[::-1]
        raise RunFolderError(f"the output folder holds a run of {made}, not of {now}. Use another output folder")
    return phases


def describe_cask(cask: Cask) -> dict[str, Any]:
    """What identifies a cask's content, without its path."""
    return {
        "identity": cask.manifest.identity_digest(),
        "teacher": cask.manifest.teacher.model_dump(mode="json"),
        "capture": cask.manifest.capture.canonical(),
        "shards": sorted(entry.name for entry in cask.entries),
        "documents": len(cask),
        "positions": cask.num_positions,
    }


def place_of(cask: Cask) -> str:
    """Where a cask lies: its URL, or the whole path of its folder."""
    return cask.place if is_url(cask.place) else str(Path(cask.place).absolute())


def describe_held_out(documents: HeldOutDocuments, reading: dict[str, Any], positions: int) -> dict[str, Any]:
    """What a run is measured on while it trains.

    Args:
        documents: the held-out ones.
        reading: how the student reads them, from `Reading.describe`.
        positions: how many are measured.
    """
    return {
        "casks": [describe_cask(cask) for cask in documents.casks],
        "places": [place_of(cask) for cask in documents.casks],
        "documents": len(documents.numbers_N),
        "positions": positions,
        "reading": reading,
        "metric": documents.metric,
    }


def for_trackers(document: dict[str, Any]) -> dict[str, Any]:
    """A run document as trackers are told it: without `resolved`, which they are told beside, and shards by number."""
    told: dict[str, Any] = _with_shards_counted({name: value for name, value in document.items() if name != "resolved"})
    return told


def _with_shards_counted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: len(part) if name == "shards" else _with_shards_counted(part) for name, part in value.items()}
    return [_with_shards_counted(part) for part in value] if isinstance(value, list) else value
