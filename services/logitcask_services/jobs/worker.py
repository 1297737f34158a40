"""The thread that owns the teacher: loads it, takes the oldest queued extraction, runs it, and says how it ended."""

import logging
import threading
from collections.abc import Callable
from typing import Literal

from logitcask_schemas.errors import CaskError, IdentityMismatchError, LogitcaskError
from logitcask_services.jobs.context import JobContext, teacher_document
from logitcask_services.jobs.room import EndedWhileWaitingError, until_written
from logitcask_services.jobs.run import ExtractionRun
from logitcask_services.jobs.states import IllegalTransitionError
from logitcask_services.jobs.suspicion import Suspicion
from logitcask_services.jobs.tables import ExtractionRow
from logitcask_services.jobs.teacher import Teacher, TeacherDiedError

logger = logging.getLogger(__name__)
IDLE_SECONDS = 5.0
Reason = tuple[str, str]


class Worker(threading.Thread):
    """queued -> in_progress -> finalizing -> completed, one extraction at a time."""

    def __init__(self, context: JobContext) -> None:
        super().__init__(name="logitcask-worker", daemon=True)
        self._context = context
        self._suspicion = Suspicion()

    def run(self) -> None:
        """Work until the service stops or the teacher is given up."""
        context, signals = self._context, self._context.signals
        try:
            while not signals.stopping.is_set():
                seen = signals.changes
                teacher = context.host.ensure()
                if teacher is None:
                    break
                if not self._step(teacher):
                    signals.wait(seen, IDLE_SECONDS)
        except EndedWhileWaitingError:
            logger.info("stopped while the disk was full; the next start goes on")
        except Exception as error:
            logger.exception("the working thread ended")
            context.crashed(f"the working thread ended: {error}")
        finally:
            context.host.close()
        if context.host.given_up and context.host.facts is None:
            context.crashed(context.host.reason)  # it never was a teacher: nothing to wait for

    def _step(self, teacher: Teacher) -> bool:
        store, identity = self._context.extractions, teacher_document(teacher.engine.identity)
        row = store.next_in("queued", identity)
        if row is None:
            self._explain_others(teacher)
            return False
        try:
            self._persist(lambda: store.step(row.id, "in_progress"))
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
            run = ExtractionRun(self._context, row, teacher.engine, self._suspicion)
            self._finish(row, run)
        except TeacherDiedError as error:
            assert run is not None  # only a run talks to the teacher
            self._died(row, run, error)
        except EndedWhileWaitingError:
            self._ended(row)
        except IllegalTransitionError as error:
            logger.info("%s", error)  # cancelled between the last document and the end
            self._ended(row)
        except (LogitcaskError, OSError) as error:
            self._fail(row, error)
        finally:
            if run is not None:
                run.close()

    def _finish(self, row: ExtractionRow, run: ExtractionRun) -> None:
        store = self._context.extractions
        outcome = run.go()
        if outcome == "ended":
            self._ended(row)
        elif run.failure is not None:
            failure = run.failure
            reason = ("document_failed", f"line {failure.line}: {failure.message}; on_error is `fail`")
            self._persist(lambda: store.fail_on_document(row.id, failure, reason))
            self._context.folders.drop_token_store(row.id)
        else:
            self._persist(lambda: store.step(row.id, "finalizing"))
            run.fold_index()
            self._end(row, "completed", None)

    def _ended(self, row: ExtractionRow) -> None:
        """The run was told to end: by a cancel, or because the service stops (then the next start goes on)."""
        if self._context.extractions.get(row.id).status == "cancelling":
            self._end(row, "cancelled", None)

    def _died(self, row: ExtractionRow, run: ExtractionRun, error: TeacherDiedError) -> None:
        run.close()  # what was captured is published before the death is counted
        host = self._context.host
        host.died(error)
        self._persist(
            lambda: self._context.extractions.record_death(row.id, run.open_chunks, host.reason, given_up=host.given_up)
        )

    def _fail(self, row: ExtractionRow, error: Exception) -> None:
        logger.error("extraction %s failed: %s", row.id, error)
        match error:
            case IdentityMismatchError():
                code = "cask_mismatch"
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
        self._context.folders.drop_token_store(row.id)

    def _persist(self, work: Callable[[], object]) -> None:
        context = self._context
        until_written(work, poll_seconds=context.settings.pause_poll_seconds, stopping=context.signals.stopping)

    def _explain_others(self, teacher: Teacher) -> None:
        """Say why extractions that were prepared for another teacher stay queued."""
        identity = teacher.engine.identity
        for row in self._context.extractions.queued_for_others(teacher_document(identity)):
            theirs = row.teacher or {}
            differing = sorted(name for name, value in teacher_document(identity).items() if theirs.get(name) != value)
            message = (
                f"prepared for the teacher {theirs.get('model')!r}, this service runs {identity.model!r} "
                f"(different: {', '.join(differing)}); start the service with that teacher, or cancel"
            )
            self._context.extractions.set_waiting(row.id, ("other_teacher", message))
