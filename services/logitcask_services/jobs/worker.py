"""The thread that owns the teacher: loads it, takes the first queued job, runs it, and says how it ended."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_schemas.errors import (
    CaptureSpecError,
    CaskError,
    CaskVersionError,
    IdentityMismatchError,
    LogitcaskError,
)
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.generation.errors import AnswersMisplacedError, RecipeError
from logitcask_services.jobs.answer_files import AnswersDamagedError
from logitcask_services.jobs.context import JobContext, teacher_document
from logitcask_services.jobs.database.extractions import TOKENS, ExtractionStore
from logitcask_services.jobs.database.generations import WEIGHTS, GenerationStore
from logitcask_services.jobs.database.jobs import queue_key
from logitcask_services.jobs.database.tables import ExtractionRow, GenerationRow, JobRow
from logitcask_services.jobs.extraction import IllegalTransitionError
from logitcask_services.jobs.extraction_run import ExtractionRun
from logitcask_services.jobs.generation_run import GenerationRun
from logitcask_services.jobs.guests import ScoringGuests
from logitcask_services.jobs.job_run import JobRun
from logitcask_services.jobs.teacher import Role, Suspicion, Teacher, TeacherDiedError
from logitcask_services.jobs.waiting import (
    Reason,
    Schedule,
    SetAsideError,
    StoppedWhileWaitingError,
    damage_of_database,
    passing_fault,
    retry_until_written,
    unforeseen,
)
from logitcask_services.jobs.watchdog import Watchdog

logger = logging.getLogger(__name__)
T = TypeVar("T")
IDLE_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""A run that is under way waits so long with the teacher idle before others go first."""


MOST_BEFORE_SWITCH = 4
"""So many jobs of the role that is loaded go before an older one for which the teacher must be loaded anew."""


class Worker(threading.Thread):
    """queued -> in_progress -> finalizing -> completed, one job at a time."""

    def __init__(self, context: JobContext, watchdog: Watchdog) -> None:
        super().__init__(name="logitcask-worker", daemon=True)
        self._context = context
        self._watchdog = watchdog
        self._suspicion = Suspicion()
        self._set_aside = Schedule(context.settings.pause_poll_seconds)
        """Jobs that wait for something of their own."""
        self._passed = 0
        """Jobs that went before an older one of another role."""

    def run(self) -> None:
        """Work until the service stops or the teacher is given up."""
        context, signals = self._context, self._context.signals
        try:
            while not signals.stopping.is_set():
                seen = signals.changes
                teacher = context.teacher.ensure(self._first_role())
                if teacher is None:
                    break
                if not self._step_or_wait(teacher) and not self._score(seen):
                    signals.wait(seen, self._set_aside.seconds_to_next(IDLE_SECONDS))
        except StoppedWhileWaitingError:
            logger.info("stopped while it waited; the next start goes on")
        except Exception as error:
            logger.exception("the working thread ended")
            context.crashed(damage_of_database(error) or f"the working thread ended: {error}")
        finally:
            context.teacher.close()
            context.scoring.close()
        if context.teacher.given_up:
            # Whoever watches over the process starts it anew; what is queued stays queued.
            context.crashed(context.teacher.reason, teacher_failed=context.teacher.facts is not None)

    def _score(self, seen: int) -> bool:
        """Score what callers wait for until something else changed; False where nobody waits."""
        if not self._context.scoring.is_waited_for:
            return False
        ready = self._context.teacher.ensure("capture")
        if ready is None:
            return False
        assert ready.engine is not None  # its role was asked for
        signals, until = self._context.signals, time.monotonic() + self._set_aside.seconds_to_next(IDLE_SECONDS)
        try:
            return self._context.scoring.alone(
                ready.engine,
                ends=lambda: signals.stopping.is_set() or signals.changes != seen or time.monotonic() > until,
            )
        except TeacherDiedError as error:
            self._context.teacher.died(error)
            return True

    def _step_or_wait(self, teacher: Teacher) -> bool:
        """One job; False where there is none to run, or the job database cannot be used now."""
        try:
            return self._step(teacher)
        except (OSError, OperationalError, PoolTimeoutError) as error:
            if (reason := passing_fault(error)) is None:
                raise
            logger.warning("paused: %s", reason[1])
            return False

    def _first_role(self) -> Role | None:
        """For the first load: what the first job needs; None once a teacher was loaded, or nothing waits."""
        context = self._context
        if context.teacher.loads:
            return None
        try:
            queued = (*context.extractions.in_status("queued"), *context.generations.in_status("queued"))
        except (OperationalError, PoolTimeoutError):
            return None
        return role_of(min(queued, key=queue_key)) if queued else None

    def _step(self, teacher: Teacher) -> bool:
        if self._context.signals.queue_paused:
            return False
        row = self._choose(teacher)
        if row is None:
            self._explain_others(teacher)
            return False
        ready = self._context.teacher.ensure(role_of(row), hints_of(row, teacher))
        if ready is None:
            return False
        try:
            identity = teacher_document(ready.identity)
            self._persist(lambda: self._store(row).begin(row.id, identity))
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled at the last moment
            return True
        self._context.progress.begin(row.id)
        if ready.engine is None:
            self._context.scoring.blocked_by = row.id
        try:
            self._run(row, ready)
        finally:
            self._context.scoring.blocked_by = None
            self._context.progress.end()
        return True

    def _store(self, row: JobRow) -> ExtractionStore | GenerationStore:
        return self._context.extractions if isinstance(row, ExtractionRow) else self._context.generations

    def _begin(self, row: JobRow, teacher: Teacher, gives_way: Callable[[float], bool]) -> JobRun:
        if isinstance(row, ExtractionRow):
            assert teacher.engine is not None  # its role was asked for
            return ExtractionRun(self._context, row, teacher.engine, self._suspicion, gives_way)
        assert isinstance(row, GenerationRow)
        assert teacher.generator is not None
        guests = None if teacher.engine is None else ScoringGuests(self._context, teacher.engine)
        return GenerationRun(
            self._context, row, teacher.generator, teacher.tokenizer, self._suspicion, gives_way, guests
        )

    def _run(self, row: JobRow, teacher: Teacher) -> None:
        run: JobRun | None = None
        try:
            run = self._begin(
                row, teacher, lambda seconds: self._gives_way(teacher, row, seconds, started=run is not None)
            )
            self._watchdog.run_now = run
            # Only now is what it waited for over: a try that fails again shows its reason throughout.
            self._persist(lambda: self._store(row).set_waiting(row.id, None))
            self._finish(row, run)
        except TeacherDiedError as error:
            assert run is not None  # only a run talks to the teacher
            self._died(run, error)
        except SetAsideError as error:
            self._put_aside(row, error.reason)
        except StoppedWhileWaitingError:
            self._ended(row)
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled between the last document and the end
            self._ended(row)
        except (LogitcaskError, OSError, OperationalError, PoolTimeoutError) as error:
            if (reason := passing_fault(error)) is not None:
                self._put_aside(row, reason)
            elif isinstance(error, OperationalError | PoolTimeoutError):
                raise
            else:
                self._fail(row, error)
        except SQLAlchemyError:
            raise
        except Exception as error:  # one job that nobody foresaw must not end the service, nor its every start
            logger.exception("%s failed", row.id)
            self._end(row, "failed", unforeseen(error))
        else:
            self._set_aside.forget(row.id)
        finally:
            self._watchdog.run_now = None
            if run is not None:
                run.close()

    def _finish(self, row: JobRow, run: JobRun) -> None:
        outcome = run.go()
        if outcome == "ended":
            if run.set_aside is not None:
                raise SetAsideError(run.set_aside)
            self._ended(row)
        elif outcome == "document_failed":
            self._persist(run.record_failure)
        else:
            self._persist(lambda: self._store(row).step(row.id, "finalizing"))
            if (ending := run.finalize()) is not None:
                self._end(row, *ending)

    def _ended(self, row: JobRow) -> None:
        """The run was told to end: by a cancel or a pause, or because the service stops (the next start goes on)."""
        requeue = not self._context.signals.stopping.is_set()
        left: JobRow = self._persist(lambda: self._store(row).leave(row.id, requeue=requeue))
        if left.status == "cancelled":  # now, or by the watchdog while the teacher was deep in its work
            self._context.folders.drop_token_store(row.id)

    def _died(self, run: JobRun, error: TeacherDiedError) -> None:
        run.close()  # what was done is published before the death is counted
        supervisor = self._context.teacher
        supervisor.died(error)
        self._persist(lambda: run.record_death(supervisor.reason))

    def _fail(self, row: JobRow, error: Exception) -> None:
        logger.error("%s failed: %s", row.id, error)
        match error:
            case RecipeError():
                code = "recipe_invalid"
            case AnswersDamagedError():
                code = "answers_damaged"
            case AnswersMisplacedError():
                code = "answers_misplaced"
            case IdentityMismatchError():
                code = "cask_mismatch"
            case CaskVersionError():
                code = "cask_version"
            case CaptureSpecError():
                code = "capture_invalid"
            case CaskError():
                code = "cask_unusable"
            case OSError():
                code = "io_error"
            case _:
                code = "internal"
        self._end(row, "failed", (code, str(error)))

    def _end(self, row: JobRow, status: Literal["completed", "failed", "cancelled"], reason: Reason | None) -> None:
        self._persist(lambda: self._store(row).finish(row.id, status, reason=reason))
        if status != "failed":  # a failed one may be resumed
            self._context.folders.drop_token_store(row.id)

    def _persist(self, work: Callable[[], T]) -> T:
        context = self._context
        return retry_until_written(
            work, poll_seconds=context.settings.pause_poll_seconds, stopping=context.signals.stopping
        )

    # -- jobs that wait for something of their own ---------------------------------------------------------------

    def _due(self, teacher: Teacher) -> list[JobRow]:
        """Queued jobs of this teacher whose time has come, in the order of the queue."""
        identity = teacher.identity
        queued: list[JobRow] = [
            *self._context.extractions.queued_for(identity),
            *self._context.generations.queued_for(identity),
        ]
        return sorted((row for row in queued if self._set_aside.is_due(row.id)), key=queue_key)

    def _choose(self, teacher: Teacher) -> JobRow | None:
        """The next job: the first, or a few of its equals for which the teacher need not be loaded anew before it."""
        due = self._due(teacher)
        ready = next((row for row in due if role_of(row) in teacher.parts), None)
        if not due or ready is due[0]:
            self._passed = 0
            return ready
        if ready is not None and ready.priority == due[0].priority and self._passed < MOST_BEFORE_SWITCH:
            self._passed += 1
            return ready
        self._passed = 0
        return due[0]

    def _gives_way(self, teacher: Teacher, row: JobRow, seconds: float, *, started: bool) -> bool:
        """Whether a run that waits lets others go first: at once before it began, later with some patience."""
        if started and seconds < PATIENCE_SECONDS:
            return False
        try:
            return any(other.id != row.id for other in self._due(teacher))
        except (OperationalError, PoolTimeoutError):
            return False  # it waits for the database, as all others would

    def _put_aside(self, row: JobRow, reason: Reason) -> None:
        """Back into the queue with its reason; tried again later, ever more rarely."""
        logger.warning("%s waits, others go first: %s", row.id, reason[1])
        try:
            self._persist(lambda: self._store(row).put_aside(row.id, reason))
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled meanwhile
            self._ended(row)
            return
        self._set_aside.put(row.id)

    def _explain_others(self, teacher: Teacher) -> None:
        """Say why jobs that belong to another teacher stay queued."""
        present = teacher.identity
        for row in self._context.extractions.queued_for_others(present):
            self._explain(row, present, TOKENS, "its tokens were made for", "cancel and submit again")
        for begun in self._context.generations.queued_for_others(present):
            self._explain(begun, present, WEIGHTS, "it was begun by", "cancel and generate again")

    def _explain(
        self, row: JobRow, present: TeacherIdentity, members: tuple[str, ...], bound: str, advice: str
    ) -> None:
        theirs = row.teacher or {}
        differing = [name for name in members if theirs.get(name) != getattr(present, name)]
        message = (
            f"{bound} the teacher {theirs.get('model')!r}, this service runs {present.model!r}, which is another one "
            f"(different: {', '.join(differing)}); start the service with that teacher, or {advice}"
        )
        self._store(row).set_waiting(row.id, ("other_teacher", message))


def role_of(row: JobRow) -> Role:
    """What the teacher must be loaded for."""
    return "generate" if isinstance(row, GenerationRow) else "capture"


def hints_of(row: JobRow, teacher: Teacher) -> HintSpec | None:
    """The hints that a job asks for, as the teacher counts layers; None where the run will say what is wrong."""
    if not isinstance(row, ExtractionRow):
        return None
    try:
        return resolve_hints(row.request.capture, teacher.hint_shape).hints
    except CaptureSpecError:
        return None
