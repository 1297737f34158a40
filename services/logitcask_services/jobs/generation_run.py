"""One run of one generation: stage by stage what the teacher is asked, and the corpora at the end."""

from collections.abc import Callable

from logitcask_schemas.api.objects import Failure
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.generator import Generator, TeacherResult
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.generation_corpora import write_corpora
from logitcask_services.jobs.generation_work import GenerationWork
from logitcask_services.jobs.guests import Guests
from logitcask_services.jobs.job_run import Ending, Outcome
from logitcask_services.jobs.setbacks import Suspicion
from logitcask_services.jobs.stage_run import StageRun
from logitcask_services.jobs.teacher_streams import TeacherStreams
from logitcask_services.jobs.waiting import Reason, Waiter


class GenerationRun:
    """Use once: `go`, then `close`."""

    def __init__(
        self,
        context: JobContext,
        row: GenerationRow,
        generator: Generator,
        tokenizer: DocumentTokenizer,
        suspicion: Suspicion,
        gives_way: Callable[[float], bool],
        guests: Guests | None = None,
    ) -> None:
        """`guests`: whom the teacher serves between chunks; None: nobody can be, or nobody comes."""
        self._context = context
        self._row = row
        self._generator = generator
        self._guests = guests
        self._waiter = Waiter(
            (context.folders.state,),
            floor=context.settings.disk_floor_bytes,
            poll_seconds=context.settings.pause_poll_seconds,
            ends=lambda seconds: context.signals.stopping.wait(seconds) or context.signals.ends(row.id),
            set_waiting=lambda reason: context.generations.set_waiting(row.id, reason),
            gives_way=gives_way,
        )
        self._work = GenerationWork(
            context, row, tokenizer, generator.max_model_len, ends=lambda: context.signals.ends(row.id)
        )
        self._streams = TeacherStreams[TeacherResult](
            row.id, suspicion, heartbeat=context.heartbeat, progressed=context.teacher.progressed
        )
        self._stage_run: StageRun | None = None
        """Of the stage that is under way, or of the last one."""
        self._failure: Failure | None = None

    @property
    def job_id(self) -> str:
        """Whose run it is."""
        return self._row.id

    @property
    def set_aside(self) -> Reason | None:
        """Why the run gave way to others, where it did."""
        return self._waiter.set_aside

    def go(self) -> Outcome:
        """Answer every request of every stage. Raises TeacherDiedError, OSError, RecipeError, AnswersDamagedError."""
        if (failure := self._waiter.run(self._bad_line)) is not None:
            self._failure = failure
            return "document_failed"
        for stage in self._work.pipeline.stages():
            if self._context.signals.ends(self._row.id):
                return "ended"
            self._stage_run = StageRun(
                self._context,
                self._row,
                stage,
                answers=self._work.answers,
                generator=self._generator,
                streams=self._streams,
                waiter=self._waiter,
                guests=self._guests,
            )
            self._stage_run.go()
            if (failure := self._stage_run.failure) is not None:
                self._failure = failure
                return "document_failed"
        return "ended" if self._context.signals.ends(self._row.id) else "done"

    def finalize(self) -> Ending | None:
        """Write the corpora of kept rows and begin the extractions that follow, in one transaction."""
        return self._waiter.run(lambda: write_corpora(self._context, self._row, self._work))

    def record_failure(self) -> None:
        """The generation ends with the row that failed."""
        assert self._failure is not None  # go said so
        reason = ("row_failed", f"line {self._failure.line}: {self._failure.message}; on_error is `fail`")
        self._context.generations.fail_on_row(self._row.id, self._failure, reason)

    def record_death(self, reason: str) -> None:
        """The teacher died with the open chunks in work."""
        stage, chunks = (None, []) if self._stage_run is None else (self._stage_run.number, self._stage_run.open_chunks)
        self._context.generations.record_death(self._row.id, stage, chunks, reason)

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: the teacher hangs, and this process is about to end."""
        if self._stage_run is not None:
            self._stage_run.note_hang(reason)
        self.record_death(reason)

    def note_cancelled(self) -> None:
        """Called from the watchdog's thread: the generation was cancelled, and the teacher is deep in its work."""
        if self._context.generations.get(self._row.id).status == "cancelling":
            self._context.generations.finish(self._row.id, "cancelled")

    def close(self) -> None:
        """Nothing is open beside files, which each write closes."""

    def _bad_line(self) -> Failure | None:
        """The first line that gives no row, where on_error is `fail`."""
        return self._work.first_bad_line() if self._row.request.on_error == "fail" else None
