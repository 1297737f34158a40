"""The thread that turns submitted extractions into token stores and plans, so that the teacher never waits for it."""

import logging
import threading
from typing import Literal

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.errors import CaptureSpecError, LogitcaskError, ModelError
from logitcask_schemas.terminal import counted
from logitcask_services.corpora.document_names import DocumentNames
from logitcask_services.corpora.prepare import DocumentLimits, PreparationStoppedError, Prepared, prepare
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.jobs.context import JobContext, facts_document
from logitcask_services.jobs.database.log import JobLog
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.extraction import IllegalTransitionError, planned_chunks
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.jobs.teacher_names import TeacherNameError
from logitcask_services.jobs.waiting import (
    Schedule,
    SetAsideError,
    StoppedWhileWaitingError,
    Waiter,
    damage_of_database,
    passing_fault,
    unforeseen,
)
from logitcask_services.tracing import span

logger = logging.getLogger(__name__)
IDLE_SECONDS = 5.0
SMALL_BYTES = 64 << 20
"""A corpus up to this size is prepared by either thread, a larger one by one of them only."""
MAX_LISTED = 10_000
"""Lines of one corpus that are listed one by one, as far as the list's file has room."""


class CorpusDamagedError(LogitcaskError, ValueError):
    """The file of a corpus is not what was uploaded."""


class Claims:
    """Which extractions are being prepared, so that two threads never prepare one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()

    def take(self, extraction_id: str) -> bool:
        """Whether the extraction was free; it is the caller's then."""
        with self._lock:
            if extraction_id in self._held:
                return False
            self._held.add(extraction_id)
            return True

    def release(self, extraction_id: str) -> None:
        """Let it go."""
        with self._lock:
            self._held.discard(extraction_id)


class Preparer(threading.Thread):
    """validating -> queued, one extraction after another, once the teacher's facts are known."""

    def __init__(self, context: JobContext, claims: Claims, *, lane: Literal["all", "small"]) -> None:
        super().__init__(name=f"logitcask-preparer-{lane}", daemon=True)
        self._context = context
        self._claims = claims
        self._lane = lane
        self._set_aside = Schedule(context.settings.pause_poll_seconds)

    def run(self) -> None:
        """Work until the service stops."""
        signals = self._context.signals
        try:
            while not signals.stopping.is_set():
                seen = signals.changes
                if not self._step_or_wait():
                    signals.wait(seen, self._set_aside.seconds_to_next(IDLE_SECONDS))
        except Exception as error:
            logger.exception("the preparing thread ended")
            self._context.crashed(damage_of_database(error) or f"the preparing thread ended: {error}")

    def _step_or_wait(self) -> bool:
        """One extraction; False where there is none, or the job database cannot be used now."""
        try:
            return self._step()
        except (OSError, OperationalError, PoolTimeoutError) as error:
            if (reason := passing_fault(error)) is None:
                raise
            logger.warning("waiting: %s", reason[1])
            return False

    def _step(self) -> bool:
        self._context.database.require_in_place()  # told in the log even where there is nothing to do
        store = self._context.extractions
        for row in (*store.in_status("cancelling"), *store.in_status("pausing")):
            # One that the worker has is the worker's to end, one that is being prepared that thread's.
            if _was_validating(row) and self._claim(row):
                try:
                    store.leave(row.id)
                    self._context.folders.drop_token_store(row.id)
                finally:
                    self._claims.release(row.id)
                return True
        for row in self._due():
            if (facts := self._facts_of(row)) is not None and self._claim(row):
                try:
                    with span("logitcask.prepare", job=row.id):
                        self._prepare(row, facts)
                    self._set_aside.forget(row.id)
                except SetAsideError as error:
                    logger.warning("preparation of %s waits, others go first: %s", row.id, error)
                    self._set_aside.put(row.id)
                except (PreparationStoppedError, StoppedWhileWaitingError):
                    logger.info("preparation of %s was stopped", row.id)
                except IllegalTransitionError as error:
                    logger.info("%s", error)  # cancelled at the last moment
                finally:
                    self._claims.release(row.id)
                return True
        return False

    def _facts_of(self, row: ExtractionRow) -> TeacherFacts | None:
        """Of its teacher; None before that is loaded for the first time, or where it cannot be used now."""
        try:
            return self._context.facts_of(row.request.teacher)
        except (ModelError, TeacherNameError) as error:
            self._context.extractions.set_waiting(row.id, ("teacher_unusable", str(error)))
            return None

    def _claim(self, row: ExtractionRow) -> bool:
        """Claim a row that is as it was listed: the other thread may have claimed it, and been done, in between."""
        if not self._claims.take(row.id):
            return False
        try:
            if self._context.extractions.get(row.id).status == row.status:
                return True
        except BaseException:
            self._claims.release(row.id)
            raise
        self._claims.release(row.id)
        return False

    def _due(self) -> list[ExtractionRow]:
        """What this thread may prepare now, in its order: the oldest first, or the smallest."""
        waiting = self._context.extractions.to_prepare()
        if self._lane == "small":
            waiting = sorted((entry for entry in waiting if entry[1] <= SMALL_BYTES), key=lambda entry: entry[1])
        return [row for row, _ in waiting if self._set_aside.is_due(row.id)]

    def _gives_way(self, row: ExtractionRow) -> bool:
        """Whether others are there that may not wait for the same thing, such as a corpus whose file is gone."""
        try:
            return any(other.id != row.id for other in self._due())
        except (OperationalError, PoolTimeoutError):
            return False  # it waits for the database, as all others would

    def _prepare(self, row: ExtractionRow, facts: TeacherFacts) -> None:
        """Validating -> queued, or failed where the request, the corpus or its lines are at fault."""
        context = self._context
        if (reason := _request_fault(row, facts)) is not None:
            context.extractions.step(row.id, "failed", reason=reason, level="error")
            return
        waiter, bad_lines = self._waiter(row), BadLines(context.log, row)
        prepared = self._write_store(row, facts, waiter, bad_lines)
        if prepared is None:
            return
        if row.request.on_error == "fail" and prepared.bad_lines:
            context.folders.drop_token_store(row.id)
            context.chunks.save_failed_preparation(row.id, prepared, _bad_lines_reason(prepared, bad_lines.first))
            return
        if not prepared.documents:
            context.chunks.save_failed_preparation(row.id, prepared, _nothing_reason(prepared, bad_lines.first))
            return
        folder, hints = context.folders.token_store(row.id), row.request.capture.hints
        budget = context.settings.chunk_positions
        plan = waiter.run(lambda: planned_chunks(TokenStore(folder).offsets_D1, hints, facts.hint_shape, budget))
        waiter.run(lambda: context.chunks.save_preparation(row.id, prepared, facts_document(facts), plan))

    def _waiter(self, row: ExtractionRow) -> Waiter:
        context, settings = self._context, self._context.settings
        return Waiter(
            (context.folders.state,),
            floor=settings.disk_floor_bytes,
            poll_seconds=settings.pause_poll_seconds,
            ends=lambda seconds: context.signals.stopping.wait(seconds) or context.signals.ends_preparation(row.id),
            set_waiting=lambda reason: context.extractions.set_waiting(row.id, reason),
            gives_way=lambda seconds: self._gives_way(row),
        )

    def _write_store(
        self, row: ExtractionRow, facts: TeacherFacts, waiter: Waiter, bad_lines: "BadLines"
    ) -> Prepared | None:
        """What became of the corpus, whose token store is written then; None where the extraction failed over it."""
        context = self._context
        uploaded = context.corpora.get(row.corpus_id)
        corpus = context.storage.path(uploaded.sha256)
        limits = DocumentLimits(
            vocab_size=facts.vocab_size,
            max_length=row.request.max_length or facts.max_model_len,
            window=facts.max_model_len,
            loss_on=row.request.loss_on,
            overflow=row.request.overflow,
            max_line_bytes=context.settings.max_line_bytes,
        )

        def write_store() -> Prepared:
            bad_lines.begin()
            if (size := corpus.stat().st_size) != uploaded.bytes:
                raise CorpusDamagedError(
                    f"{corpus} has {size} bytes, {uploaded.bytes} were uploaded: it was changed since. Upload the "
                    "corpus again, which puts it right, and resume the extraction"
                )
            with DocumentNames(context.folders.document_names(row.id)) as names:
                prepared = prepare(
                    corpus,
                    context.folders.token_store(row.id),
                    facts.tokenizer,
                    limits,
                    report=bad_lines.add,
                    stopped=lambda: context.signals.ends_preparation(row.id),
                    named=names.add,
                )
                names.finish()
            return prepared

        try:
            prepared = waiter.run(write_store)
            if bad_lines.unlisted:
                waiter.run(bad_lines.note_unlisted)
        except LogitcaskError as error:
            reason = "corpus_unreadable", str(error)
        except (StoppedWhileWaitingError, PreparationStoppedError, OSError, SQLAlchemyError):
            raise
        except Exception as error:  # one corpus that nobody foresaw must not end the service, nor each of its starts
            logger.exception("the preparation of %s failed", row.id)
            reason = unforeseen(error)
        else:
            return prepared
        context.extractions.step(row.id, "failed", reason=reason, level="error")
        return None


class BadLines:
    """The bad lines of one preparation: the first `MAX_LISTED`, as far as they fit, are listed; others are counted."""

    def __init__(self, log: JobLog, row: ExtractionRow) -> None:
        self._log = log
        self._row = row
        self._listed = 0
        self.unlisted = 0
        """Lines that are bad or skipped and not listed."""
        self._first_unlisted = 0
        """Number of the first of them."""
        self.first: Failure | None = None
        """The first bad one; a line that was too long is none."""

    def begin(self) -> None:
        """Forget those of an earlier attempt, here and in the list."""
        self._listed = self.unlisted = 0
        self.first = None
        self._log.clear_bad_lines(self._row)

    def add(self, bad: list[Failure]) -> None:
        """Take up more lines, in the order of the corpus."""
        if self.first is None and bad and bad[0].code != "too_long":
            self.first = bad[0]
        rows = [] if self.unlisted else bad[: MAX_LISTED - self._listed]
        listed = self._log.list_bad_lines(self._row, rows) if rows else 0
        if not self.unlisted and listed < len(bad):
            self._first_unlisted = bad[listed].line
        self._listed, self.unlisted = self._listed + listed, self.unlisted + len(bad) - listed

    def note_unlisted(self) -> None:
        """Say at the end of the list how many it leaves out."""
        message = (
            f"from here on {self.unlisted} more lines are bad or skipped and are not listed: the first {self._listed} "
            "are. Mend those and submit the corpus again, or look at a part of it with `logitcask submit --dry-run`"
        )
        failure = Failure(stage="corpus", line=self._first_unlisted, code="not_listed", message=message, custom_id=None)
        self._log.note_unlisted(self._row, failure)


def _was_validating(row: ExtractionRow) -> bool:
    """Whether it was being prepared, rather than captured, when it was asked to end."""
    entered = row.timestamps
    return all(entered["validating"] >= entered.get(status, 0.0) for status in ("queued", "in_progress"))


def _request_fault(row: ExtractionRow, facts: TeacherFacts) -> tuple[str, str] | None:
    """What in the request this teacher cannot do; None where it can do all of it."""
    max_length = row.request.max_length or facts.max_model_len
    if max_length > facts.max_model_len:
        return (
            "max_length",
            f"max_length {max_length} is more than the teacher's context of {facts.max_model_len} tokens",
        )
    try:
        row.request.capture.require_vocabulary(facts.vocab_size)
    except CaptureSpecError as error:
        return "pinned_ids", str(error)
    try:
        resolve_hints(row.request.capture, facts.hint_shape)
    except CaptureSpecError as error:
        return "hints", str(error)
    return None


def _nothing_reason(prepared: Prepared, first_bad: Failure | None) -> tuple[str, str]:
    first = f"; the first bad one: line {first_bad.line}: {first_bad.message}" if first_bad else ""
    return (
        "nothing_captured",
        f"none of the {counted(prepared.lines, 'line')} gives a document ({prepared.bad_lines} bad, "
        f"{prepared.skipped_lines} skipped as too long){first}. Is it the right file? Mend it and submit it again",
    )


def _bad_lines_reason(prepared: Prepared, first_bad: Failure | None) -> tuple[str, str]:
    first = f"; the first: line {first_bad.line}: {first_bad.message}" if first_bad else ""
    are = "is" if prepared.bad_lines == 1 else "are"
    return (
        "bad_lines",
        f"{prepared.bad_lines} of {counted(prepared.lines, 'line')} {are} bad and on_error is `fail`{first}. "
        "Mend them, or submit with on_error `skip`",
    )
