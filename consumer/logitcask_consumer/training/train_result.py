"""What a call of `train` came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.run_document import INITIAL_NAME
from logitcask_consumer.student.students import StudentSpec


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
            initial=saved if saved.is_dir() else spec.folder,
            run=run,
            resumed_from=checkpoint,
            already_finished=already_finished,
            stopped_at=stopped_at,
        )
