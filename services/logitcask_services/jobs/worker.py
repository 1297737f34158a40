"""The thread that owns the teacher: loads it, takes the first queued job, runs it, and says how it ended."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.assignment import Assignment, hints_of, role_of
from logitcask_services.jobs.context import JobContext, teacher_document
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.generations import GenerationStore
from logitcask_services.jobs.database.tables import ExtractionRow, GenerationRow, JobRow
from logitcask_services.jobs.extraction import IllegalTransitionError
from logitcask_services.jobs.extraction_run import ExtractionRun
from logitcask_services.jobs.extraction_work import count_untold
from logitcask_services.jobs.generation_run import GenerationRun
from logitcask_services.jobs.guests import ScoringGuests
from logitcask_services.jobs.job_run import JobRun, failure_code
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.jobs.setbacks import Suspicion, TeacherDiedError
from logitcask_services.jobs.teacher_names import CANNOT, is_student
from logitcask_services.jobs.team_run import TeamRun
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
from logitcask_services.tracing import span

logger = logging.getLogger(__name__)
T = TypeVar("T")
IDLE_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""A run that is under way waits so long with the teacher idle before others go first."""
MOST_BEFORE_SWITCH = 4
"""So many jobs of the teacher and role that are loaded go before an older one that another must be loaded for."""


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
        """Jobs that went before an older one of another teacher or role."""
        self._assignment = Assignment(context)

    def run(self) -> None:
        """Work until the service stops or the teacher is given up."""
        context, signals = self._context, self._context.signals
        try:
            while not signals.stopping.is_set():
                seen = signals.changes
                teacher = self._loaded()
                if context.teacher.given_up:
                    break
                if self._step_or_wait(teacher) or self._score(seen):
                    continue
                idle = self._set_aside.seconds_to_next(IDLE_SECONDS)
                signals.wait(seen, context.teacher.setbacks.seconds_to_retry(context.teacher.name, idle))
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
            context.crashed(context.teacher.reason, teacher_failed=context.teacher.loads > 0)

    def _score(self, seen: int) -> bool:
        """Score what callers wait for until something else changed; False where nobody waits."""
        scoring, supervisor = self._context.scoring, self._context.teacher
        rest_of = supervisor.setbacks.rest_of
        if (name := scoring.wanted(supervisor.name, resting=lambda name: rest_of(name) is not None)) is None:
            return False
        ready = supervisor.ensure("capture", name=name)
        if ready is None:
            if (lack := supervisor.setbacks.lack_of(name, "capture")) is not None:
                scoring.refuse(name, "teacher_cannot_capture", lack)
            elif (fault := supervisor.fault_of(name)) is not None:
                scoring.refuse(name, "teacher_failed", f"{name} was given up: {fault}")
            return False
        scoring.serving = name
        assert ready.engine is not None  # its role was asked for
        signals, until = self._context.signals, time.monotonic() + self._set_aside.seconds_to_next(IDLE_SECONDS)
        try:
            return self._context.scoring.alone(
                ready.engine,
                ends=lambda: signals.stopping.is_set() or signals.changes != seen or time.monotonic() > until,
            )
        except TeacherDiedError as error:
            self._context.teacher.engine_died(error)
            return True

    def _step_or_wait(self, teacher: Teacher | None) -> bool:
        """One job; False where there is none to run, or the job database cannot be used now."""
        try:
            return self._step(teacher)
        except (OSError, OperationalError, PoolTimeoutError) as error:
            if (reason := passing_fault(error)) is None:
                raise
            logger.warning("waiting: %s", reason[1])
            return False

    def _loaded(self) -> Teacher | None:
        """Whoever is loaded; where nobody is, the teacher of the first job before others. None: there is none now."""
        supervisor, first = self._context.teacher, self._first()
        if first is None:
            return supervisor.ensure()
        hints, name = hints_of(first, self._assignment.facts_of(first)), self._assignment.name_of(first)
        return supervisor.ensure(role_of(first), hints, name) or supervisor.ensure()

    def _first(self) -> JobRow | None:
        """For a load: the first job that can be begun; None while a teacher is loaded, or where nothing waits."""
        context = self._context
        if context.teacher.in_memory.is_loaded or context.signals.queue_paused:
            return None
        try:
            return next((row for row in context.queue.queued() if self._assignment.hindrance(row) is None), None)
        except (OperationalError, PoolTimeoutError):
            return None

    def _step(self, teacher: Teacher | None) -> bool:
        if self._context.signals.queue_paused:
            return False
        row = None if teacher is None else self._choose(teacher)
        if row is None:
            self._explain_others()
            return False
        name = self._assignment.name_of(row)
        ready = self._context.teacher.ensure(role_of(row), hints_of(row, self._assignment.facts_of(row)), name)
        if ready is None:
            self._unloadable(row, name)
            self._explain_others()
            return (rest := self._context.teacher.setbacks.rest_of(name)) is None or rest.yields
        if self._assignment.hindrance(row) is not None:
            return True  # it turned out to be another than the one that began the job; `_explain_others` says so
        try:
            identity = teacher_document(ready.identity)
            self._persist(lambda: self._store(row).begin(row.id, identity))
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled at the last moment
            return True
        self._context.progress.begin(row.id)
        self._context.scoring.serving = name
        if ready.engine is None:
            self._context.scoring.blocked_by = row.id
        try:
            with span(f"logitcask.{role_of(row)}", job=row.id):
                self._run(row, ready)
        finally:
            self._context.scoring.blocked_by = None
            self._context.progress.end()
        return True

    def _unloadable(self, row: JobRow, name: str) -> None:
        """No waiting helps a job whose teacher cannot do it, nor a student's that was given up: it ends."""
        supervisor, role = self._context.teacher, role_of(row)
        if (lack := supervisor.setbacks.lack_of(name, role)) is not None:
            reason: Reason = CANNOT[role], lack
        elif is_student(name) and (fault := supervisor.fault_of(name)) is not None:
            reason = "student_unusable", fault
        else:
            return  # the service stops, or the job waits: what the operator lists may be put right
        logger.error("%s failed: %s", row.id, reason[1])
        try:
            self._end(row, "failed", reason)
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled at the last moment

    def _store(self, row: JobRow) -> ExtractionStore | GenerationStore:
        return self._context.extractions if isinstance(row, ExtractionRow) else self._context.generations

    def _begin(self, row: JobRow, teacher: Teacher, gives_way: Callable[[float], bool]) -> JobRun:
        if isinstance(row, ExtractionRow):
            assert teacher.engine is not None  # its role was asked for
            if teacher.team is not None:
                return TeamRun(self._context, row, teacher.engine, teacher.team, gives_way)
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
            run = self._begin(row, teacher, lambda seconds: self._gives_way(row, seconds, started=run is not None))
            self._watchdog.run_now = run
            # Only now is what it waited for over: a try that fails again shows its reason throughout.
            self._persist(lambda: self._store(row).set_waiting(row.id, None))
            self._finish(row, run)
        except TeacherDiedError as error:
            assert run is not None  # only a run talks to the teacher
            self._died(row, run, error)
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
        if self._context.signals.is_cancelled(row.id):
            self._let_go(row, cancelled=True)  # before it is told that it has ended: its counts are final then
        requeue = not self._context.signals.stopping.is_set()
        left: JobRow = self._persist(lambda: self._store(row).leave(row.id, requeue=requeue))
        if left.status == "cancelled":  # now, or by the watchdog while the teacher was deep in its work
            self._let_go(left, cancelled=True)

    def _died(self, row: JobRow, run: JobRun, error: TeacherDiedError) -> None:
        run.close()  # what was done is published before the death is counted
        supervisor = self._context.teacher
        supervisor.died(error)
        if self._context.signals.stopping.is_set():  # it was ended with the service: nobody's fault
            self._ended(row)
            return
        self._persist(lambda: run.record_death(supervisor.reason))

    def _fail(self, row: JobRow, error: Exception) -> None:
        logger.error("%s failed: %s", row.id, error)
        self._end(row, "failed", (failure_code(error), str(error)))

    def _end(self, row: JobRow, status: Literal["completed", "failed", "cancelled"], reason: Reason | None) -> None:
        ended: JobRow = self._persist(lambda: self._store(row).finish(row.id, status, reason=reason))
        if ended.status != "failed":  # a failed one may be resumed
            self._let_go(ended, cancelled=ended.status == "cancelled")

    def _let_go(self, row: JobRow, *, cancelled: bool) -> None:
        """Nobody needs the tokens of a job any more that has completed or was cancelled."""
        if cancelled and isinstance(row, ExtractionRow):
            self._persist(lambda: count_untold(self._context, row))
        self._context.folders.drop_token_store(row.id)

    def _persist(self, work: Callable[[], T]) -> T:
        context = self._context
        return retry_until_written(
            work, poll_seconds=context.settings.pause_poll_seconds, stopping=context.signals.stopping
        )

    # -- jobs that wait for something of their own ---------------------------------------------------------------

    def _due(self) -> Iterator[JobRow]:
        """Queued jobs that can be begun and whose time has come, in the order of the queue."""
        for row in self._context.queue.queued():
            if self._set_aside.is_due(row.id) and self._assignment.hindrance(row) is None:
                yield row

    def _choose(self, teacher: Teacher) -> JobRow | None:
        """The next job: the first, or a few of its equals for which the teacher need not be loaded anew before it."""
        loaded, first = self._context.teacher.name, None
        for row in self._due():
            first = first or row
            if row.priority < first.priority or self._passed >= MOST_BEFORE_SWITCH:
                break
            if role_of(row) in teacher.parts and self._assignment.name_of(row) == loaded:
                self._passed = 0 if row is first else self._passed + 1
                return row
        self._passed = 0
        return first

    def _gives_way(self, row: JobRow, seconds: float, *, started: bool) -> bool:
        """Whether a run that waits lets others go first: at once before it began, later with some patience."""
        if started and seconds < PATIENCE_SECONDS:
            return False
        try:
            return any(other.id != row.id for other in self._due())
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

    def _explain_others(self) -> None:
        """Say why jobs that cannot be begun stay queued."""
        for row in self._context.queue.queued():
            if (reason := self._assignment.hindrance(row)) is not None:
                self._store(row).set_waiting(row.id, reason)
