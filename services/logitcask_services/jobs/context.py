"""What the job threads share: folders, database, teacher, signals, and the settings that govern work."""

from dataclasses import dataclass
from typing import Any, Protocol

from logitcask_schemas.record.identity import Accept, TeacherIdentity
from logitcask_services.corpora.uploads import CorpusStorage
from logitcask_services.folders import ServiceFolders
from logitcask_services.jobs.database.corpora import CorpusRegistry
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.log import ExtractionLog
from logitcask_services.jobs.live import Heartbeat, LiveProgress, Signals
from logitcask_services.jobs.teacher import TeacherHost


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """Settings of preparation and capture, see `ServiceSettings`."""

    max_line_bytes: int
    disk_floor_bytes: int
    chunk_positions: int | None
    pause_poll_seconds: float
    accept_teacher: tuple[Accept, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """The shared parts of one service."""

    folders: ServiceFolders
    storage: CorpusStorage
    corpora: CorpusRegistry
    extractions: ExtractionStore
    log: ExtractionLog
    host: TeacherHost
    signals: Signals
    progress: LiveProgress
    settings: WorkSettings
    heartbeat: Heartbeat
    """Of the teacher, while a run waits for it."""
    crashed: "Crashed"
    """Called when a thread ends for good; the service must end then."""


class Crashed(Protocol):
    """Ends the service."""

    def __call__(self, reason: str, *, teacher_failed: bool = False) -> None:
        """Why; and whether it is the teacher that cannot go on, which a new process may."""
        ...


def teacher_document(identity: TeacherIdentity) -> dict[str, Any]:
    """The identity as it is stored with an extraction."""
    return identity.model_dump(mode="json")
