"""The thread that owns the teacher: loads it, takes the oldest queued extraction, runs it, and says how it ended."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_schemas.errors import (
    CaptureSpecError,
    CaskError,
    CaskVersionError,
    IdentityMismatchError,
    LogitcaskError,
)
from logitcask_schemas.terminal import counted
from logitcask_services.jobs.context import JobContext, teacher_document
from logitcask_services.jobs.database.extractions import TOKENS
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.extraction import IllegalTransitionError
from logitcask_services.jobs.run import ExtractionRun
from logitcask_services.jobs.teacher import Suspicion, Teacher, TeacherDiedError
from logitcask_services.jobs.waiting import (
    Reason,
    Schedule,
    SetAsideError,
    StoppedWhileWaitingError,
    passing_fault,
    retry_until_written,
    unforeseen,
)
from logitcask_services.jobs.watchdog import Watchdog

logger = logging.getLogger(__name__)
IDLE_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""A run that is under way waits so long with the teacher idle before others go first."""


class Worker(threading.Thread):
    """queued -> in_progress -> finalizing -> completed, one extraction at a time."""

    def __init__(self, context: JobContext, watchdog: Watchdog) -> None:
        super().__init__(name="logitcask-worker", daemon=True)
        self._context = context
        self._watchdog = watchdog
        self._suspicion = Suspicion()
        self._set_aside = Schedule(context.settings.pause_poll_seconds)
        """Extractions that wait for something of their own."""

    def run(self) -> None:
        """Work until the service stops or the teacher is given up."""
        context, signals = self._context, self._context.signals
        try:
            while not signals.stopping.is_set():
                seen = signals.changes
                teacher = context.teacher.ensure()
                if teacher is None:
                    break
                if not self._step_or_wait(teacher) and not self._score(teacher, seen):
                    signals.wait(seen, self._set_aside.seconds_to_next(IDLE_SECONDS))
        except StoppedWhileWaitingError:
            logger.info("stopped while it waited; the next start goes on")
        except Exception as error:
            logger.exception("the working thread ended")
            context.crashed(f"the working thread ended: {error}")
        finally:
            context.teacher.close()
            context.scoring.close()
        if context.teacher.given_up:
            # Whoever watches over the process starts it anew; what is queued stays queued.
            context.crashed(context.teacher.reason, teacher_failed=context.teacher.facts is not None)

    def _score(self, teacher: Teacher, seen: int) -> bool:
        """Score what callers wait for until something else changed; False where nobody waits."""
        signals, until = self._context.signals, time.monotonic() + self._set_aside.seconds_to_next(IDLE_SECONDS)
        try:
            return self._context.scoring.alone(
                teacher.engine,
                ends=lambda: signals.stopping.is_set() or signals.changes != seen or time.monotonic() > until,
            )
        except TeacherDiedError as error:
            self._context.teacher.died(error)
            return True

    def _step_or_wait(self, teacher: Teacher) -> bool:
        """One extraction; False where there is none to run, or the job database cannot be used now."""
        try:
            return self._step(teacher)
        except (OSError, OperationalError, PoolTimeoutError) as error:
            if (reason := passing_fault(error)) is None:
                raise
            logger.warning("paused: %s", reason[1])
            return False

    def _step(self, teacher: Teacher) -> bool:
        row = self._next(teacher)
        if row is None:
            self._explain_others(teacher)
            return False
        try:
            identity = teacher_document(teacher.engine.identity)
            self._persist(lambda: self._context.extractions.begin(row.id, identity))
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled at the last moment
            return True
        self._context.progress.begin(row.id)
        try:
            self._run(row, teacher)
        finally:
            self._context.progress.end()
        return True

    def _run(self, row: ExtractionRow, teacher: Teacher) -> None:
        run: ExtractionRun | None = None
        try:
            run = ExtractionRun(
                self._context,
                row,
                teacher.engine,
                self._suspicion,
                gives_way=lambda seconds: self._gives_way(teacher, row, seconds, started=run is not None),
            )
            self._watchdog.run_now = run
            # Only now is what it waited for over: a try that fails again shows its reason throughout.
            self._persist(lambda: self._context.extractions.set_waiting(row.id, None))
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
        except Exception as error:  # one extraction that nobody foresaw must not end the service, nor its every start
            logger.exception("extraction %s failed", row.id)
            self._end(row, "failed", unforeseen(error))
        else:
            self._set_aside.forget(row.id)
        finally:
            self._watchdog.run_now = None
            if run is not None:
                run.close()

    def _finish(self, row: ExtractionRow, run: ExtractionRun) -> None:
        store = self._context.extractions
        outcome = run.go()
        if outcome == "ended":
            if run.set_aside is not None:
                raise SetAsideError(run.set_aside)
            self._ended(row)
        elif run.failure is not None:
            failure = run.failure
            reason = ("document_failed", f"line {failure.line}: {failure.message}; on_error is `fail`")
            self._persist(lambda: self._context.chunks.fail_on_document(row.id, failure, reason))
        else:
            self._persist(lambda: store.step(row.id, "finalizing"))
            run.fold_index()
            now = store.get(row.id)
            if now.captured_documents + now.present_documents:
                self._end(row, "completed", None)
            else:
                documents = counted(now.documents, "document")
                message = f"none of the {documents} could be captured; `/errors` says why for each"
                self._end(row, "failed", ("nothing_captured", message))

    def _ended(self, row: ExtractionRow) -> None:
        """The run was told to end: by a cancel, or because the service stops (then the next start goes on)."""
        status = self._context.extractions.get(row.id).status
        if status == "cancelling":
            self._end(row, "cancelled", None)
        elif status == "cancelled":  # noted by the watchdog, while the teacher was deep in its work
            self._context.folders.drop_token_store(row.id)

    def _died(self, row: ExtractionRow, run: ExtractionRun, error: TeacherDiedError) -> None:
        run.close()  # what was captured is published before the death is counted
        supervisor = self._context.teacher
        supervisor.died(error)
        self._persist(lambda: self._context.chunks.record_death(row.id, run.open_chunks, supervisor.reason))

    def _fail(self, row: ExtractionRow, error: Exception) -> None:
        logger.error("extraction %s failed: %s", row.id, error)
        match error:
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

    def _end(
        self, row: ExtractionRow, status: Literal["completed", "failed", "cancelled"], reason: Reason | None
    ) -> None:
        self._persist(lambda: self._context.extractions.finish(row.id, status, reason=reason))
        if status != "failed":  # a failed one may be resumed
            self._context.folders.drop_token_store(row.id)

    def _persist(self, work: Callable[[], object]) -> None:
        context = self._context
        retry_until_written(work, poll_seconds=context.settings.pause_poll_seconds, stopping=context.signals.stopping)

    # -- extractions that wait for something of their own --------------------------------------------------------

    def _next(self, teacher: Teacher) -> ExtractionRow | None:
        """The oldest queued extraction of this teacher whose time has come."""
        queued = self._context.extractions.queued_for(teacher.engine.identity)
        return next((row for row in queued if self._set_aside.is_due(row.id)), None)

    def _gives_way(self, teacher: Teacher, row: ExtractionRow, seconds: float, *, started: bool) -> bool:
        """Whether a run that waits lets others go first: at once before it began, later with some patience."""
        if started and seconds < PATIENCE_SECONDS:
            return False
        try:
            other = self._next(teacher)
        except (OperationalError, PoolTimeoutError):
            return False  # it waits for the database, as all others would
        return other is not None and other.id != row.id

    def _put_aside(self, row: ExtractionRow, reason: Reason) -> None:
        """Back into the queue with its reason; tried again later, ever more rarely."""
        logger.warning("extraction %s waits, others go first: %s", row.id, reason[1])
        try:
            self._persist(lambda: self._context.extractions.put_aside(row.id, reason))
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled meanwhile
            self._ended(row)
            return
        self._set_aside.put(row.id)

    def _explain_others(self, teacher: Teacher) -> None:
        """Say why extractions whose tokens are another teacher's stay queued."""
        present = teacher.engine.identity
        for row in self._context.extractions.queued_for_others(present):
            theirs = row.teacher or {}
            differing = [name for name in TOKENS if theirs.get(name) != getattr(present, name)]
            message = (
                f"its tokens were made for the teacher {theirs.get('model')!r}, this service runs {present.model!r}, "
                f"which has other ones (different: {', '.join(differing)}); start the service with that teacher, or "
                "cancel and submit again"
            )
            self._context.extractions.set_waiting(row.id, ("other_teacher", message))
