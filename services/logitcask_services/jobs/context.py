"""What the threads of one service share: folders, database, teacher, signals, and the settings."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.corpora.packed import UnpackLimits
from logitcask_services.corpora.upload_parts import PartStorage
from logitcask_services.corpora.uploads import CorpusStorage
from logitcask_services.folders import ServiceFolders
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.database.corpora import CorpusRegistry
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.generations import GenerationStore
from logitcask_services.jobs.database.jobs import AnyJobs
from logitcask_services.jobs.database.log import JobLog
from logitcask_services.jobs.database.queue import JobQueue
from logitcask_services.jobs.database.removal import JobRemoval
from logitcask_services.jobs.database.uploads import UploadStore
from logitcask_services.jobs.demonstration_corpora import DemonstrationCorpora
from logitcask_services.jobs.failure_files import FailureFiles
from logitcask_services.jobs.live import Heartbeat, LiveProgress, Signals
from logitcask_services.jobs.loaded_teacher import LoadHinted, Role, Teacher, TeacherFacts
from logitcask_services.jobs.measures import Measures
from logitcask_services.jobs.roster import OneTeacher, Roster
from logitcask_services.jobs.scoring import Scoring
from logitcask_services.jobs.scoring_call import ScoringLimits
from logitcask_services.jobs.teacher import TeacherSupervisor
from logitcask_services.jobs.teacher_names import CANNOT, TeacherNameError, name_of_model
from logitcask_services.settings import ServiceSettings

logger = logging.getLogger(__name__)
FAILED: Final = 1
"""Exit code of a service that cannot go on, its teacher aside."""
TEACHER_FAILED: Final = 4
"""Exit code of a process that ends because of its teacher; a new process may do better."""


class JobContext:
    """Made once for a service, which adds the threads.

    Args:
        settings: Where and how.
        load: Loads the teacher for a role; called in a thread of its own, again after each death and for another role.
            Where there are several, or students: who they are.
        load_hinted: The same for hints, for engines that settle their layers when they start; None: there are no such.
    """

    def __init__(
        self, settings: ServiceSettings, load: Callable[[Role], Teacher] | Roster, load_hinted: LoadHinted | None = None
    ) -> None:
        self.settings = settings
        self.folders = ServiceFolders(settings.cask_root, settings.state_dir, single_writer=settings.single_writer)
        self.database = Database(settings.state_dir)
        self.signals = Signals()
        limits = UnpackLimits(
            max_bytes=settings.max_unpacked_bytes,
            max_ratio=settings.max_unpack_ratio,
            floor_bytes=settings.disk_floor_bytes,
        )
        self.storage = CorpusStorage(self.folders.corpora, limits)
        self.demonstrations = DemonstrationCorpora(settings.max_demonstration_bytes, settings.max_line_bytes)
        self.parts = PartStorage(self.folders.uploads)
        self.corpora = CorpusRegistry(self.database)
        self.uploads = UploadStore(self.database)
        self.extractions = ExtractionStore(self.database, self.signals.changed)
        self.generations = GenerationStore(self.database, self.signals.changed)
        self.jobs = AnyJobs(self.database, self.signals.changed)
        self.removal = JobRemoval(self.database)
        self.queue = JobQueue(self.database, self.signals.changed)
        self.chunks = ChunkStore(self.database, self.signals.changed)
        self.failures = FailureFiles(self.folders.failures)
        self.log = JobLog(self.database, self.failures)
        self.progress = LiveProgress()
        self.measures = Measures()
        self.heartbeat = Heartbeat()
        """Of the teacher, while a run waits for it."""
        self.roster: Roster = (
            OneTeacher(load, load_hinted, name=name_of_model(settings.teacher), engine=settings.engine)
            if callable(load)
            else load
        )
        self.teacher = TeacherSupervisor(
            self.roster,
            restarts=settings.engine_restarts,
            backoff_seconds=settings.engine_backoff_seconds,
            stopping=self.signals.stopping,
            ready=lambda: self.signals.changed(""),
        )
        self.scoring = Scoring(
            wake=lambda: self.signals.changed(""),
            heartbeat=self.heartbeat,
            progressed=self.teacher.progressed,
            dying=self.teacher.dying,
            limits=ScoringLimits(
                request_sequences=settings.score_request_sequences,
                request_tokens=settings.score_request_tokens,
                waiting_tokens=settings.score_waiting_tokens,
            ),
        )
        self.pausing = threading.Lock()
        """Held while the database and the signals are told of a pause, or of its end, so that they agree."""
        self.crash: str | None = None
        """Why the service must end, once it must."""
        self.exit_code = 0
        self.on_crash: Callable[[], None] | None = None

    def teacher_name(self, asked: str | None) -> str:
        """The teacher that a request means: the one it names, or the first."""
        return self.roster.names[0] if asked is None else asked

    def require_teacher(self, asked: str | None, role: Role) -> None:
        """Raise TeacherNameError where the teacher that a request means cannot be asked for this."""
        name = self.teacher_name(asked)
        self.roster.require(name, role)
        if (lack := self.teacher.setbacks.lack_of(name, role)) is not None:
            raise TeacherNameError(CANNOT[role], lack)

    def facts_of(self, asked: str | None) -> TeacherFacts | None:
        """What is known of the teacher that a request means; None: nothing before it is loaded for the first time.

        Raises TeacherNameError, or ModelError where its folder is no model.
        """
        return self.teacher.facts_of(self.teacher_name(asked))

    def crashed(self, reason: str, *, teacher_failed: bool = False) -> None:
        """End the service, because a thread cannot go on; or because the teacher cannot, which a new process may."""
        self.crash, self.exit_code = reason, TEACHER_FAILED if teacher_failed else FAILED
        logger.critical("%s", reason)
        if self.on_crash is not None:
            self.on_crash()


def facts_document(facts: TeacherFacts) -> dict[str, Any]:
    """Who a job was prepared for: the identity, or as much of it as is known before the teacher is loaded."""
    if facts.identity is not None:
        return teacher_document(facts.identity)
    known = ("model", "vocab_size", "tokenizer_fingerprint", "template_hash")
    return {name: getattr(facts, name) for name in known}


def teacher_document(identity: TeacherIdentity) -> dict[str, Any]:
    """The identity as it is stored with a job."""
    return identity.model_dump(mode="json")
