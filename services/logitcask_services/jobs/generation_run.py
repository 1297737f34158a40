"""One run of one generation: ask what has no answer yet, keep what comes back, write the corpora at the end."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np

from logitcask_schemas.api.objects import Failure
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.generator import GenerationResult, GenerationTask, TeacherResult, TeacherTask
from logitcask_services.engines.generator import Generator as TextGenerator
from logitcask_services.generation.errors import AnswersMisplacedError
from logitcask_services.generation.pipeline import Stage
from logitcask_services.generation.rows import Answer, Refusal
from logitcask_services.jobs.answer_files import Journal
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.generations import AnswerChunk, NewStage
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.extraction import ISOLATE_AFTER_DEATHS
from logitcask_services.jobs.generation_corpora import write_corpora
from logitcask_services.jobs.generation_work import GenerationWork
from logitcask_services.jobs.guests import Guests
from logitcask_services.jobs.run import Ending, Outcome
from logitcask_services.jobs.stage_requests import StageRequest, StageRequests
from logitcask_services.jobs.teacher import Suspicion, TeacherDiedError
from logitcask_services.jobs.waiting import Reason, Waiter

logger = logging.getLogger(__name__)
_STAGE = 1 << 40
"""A request's number within the job: that of its stage times this, plus its own."""


@dataclass(slots=True, kw_only=True)
class _OpenChunk:
    chunk: AnswerChunk
    journal: Journal
    waiting: int = 0
    fed: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        return self.fed and not self.waiting


class GenerationRun:
    """Use once: `go`, then `close`."""

    def __init__(
        self,
        context: JobContext,
        row: GenerationRow,
        generator: TextGenerator,
        tokenizer: DocumentTokenizer,
        suspicion: Suspicion,
        gives_way: Callable[[float], bool],
        guests: Guests | None = None,
    ) -> None:
        """`guests`: whom the teacher serves between chunks; None: nobody can be, or nobody comes."""
        self._context = context
        self._row = row
        self._generator = generator
        self._suspicion = suspicion
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
        self._stage: Stage | None = None
        self._requests: StageRequests | None = None
        """Those of the stage."""
        self._open: dict[int, _OpenChunk] = {}
        self._fault: Exception | None = None
        """What went wrong while the generator drew tasks; kept, so that it is not taken for the teacher's death."""
        self._failure: Failure | None = None
        self._tags: dict[int, str] = {}
        """Of requests that are with the teacher, the rows."""
        self._alone: int | None = None
        self._deaths = 0

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
            if self._ends():
                return "ended"
            self._answer(stage)
            if self._failure is not None:
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
        stage = self._stage.number if self._stage is not None else None
        self._context.generations.record_death(self._row.id, stage, list(self._open), reason)

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: the teacher hangs, and this process is about to end."""
        if self._alone is not None and self._deaths > ISOLATE_AFTER_DEATHS and self._stage is not None:
            text = f"the teacher did not come back from this request alone ({reason}); it is left out"
            number = self._alone % _STAGE
            for entry in list(self._open.values()):
                if entry.chunk.first_request <= number < entry.chunk.first_request + entry.chunk.requests:
                    entry.journal.append(number, Answer(error=("teacher_died", text)))
        self.record_death(reason)

    def note_cancelled(self) -> None:
        """Called from the watchdog's thread: the generation was cancelled, and the teacher is deep in its work."""
        if self._context.generations.get(self._row.id).status == "cancelling":
            self._context.generations.finish(self._row.id, "cancelled")

    def close(self) -> None:
        """Nothing is open beside files, which each write closes."""

    # -- one stage -----------------------------------------------------------------------------------------------

    def _bad_line(self) -> Failure | None:
        """The first line that gives no row, where on_error is `fail`."""
        return self._work.first_bad_line() if self._row.request.on_error == "fail" else None

    def _answer(self, stage: Stage) -> None:
        store = self._context.generations
        known = {entry.number: entry for entry in store.stages(self._row.id)}
        count = known[stage.number].requests if stage.number in known else self._waiter.run(stage.count)
        plan = NewStage(number=stage.number, name=stage.name, kind=stage.kind, template=stage.template, requests=count)
        self._waiter.run(lambda: store.begin_stage(self._row.id, plan))
        pending = list(self._waiter.run(lambda: store.chunks(self._row.id, stage.number)))
        for chunk in pending:
            if chunk.done:
                self._work.answers.require(stage.name, chunk.number)
        pending = [chunk for chunk in pending if not chunk.done and not self._adopt(stage, chunk)]
        self._stage = stage
        self._try_suspect(stage, pending)
        self._requests = StageRequests(stage)
        for together in self._segments(pending):
            if self._spent():
                self._leave_out(stage, together)
                continue
            if together[0].deaths >= ISOLATE_AFTER_DEATHS:
                self._one_by_one(stage, together)
            else:
                self._together(stage, deque(together))
            if self._fault is not None:
                raise self._fault
            if self._ends():
                return
        self._stage = None

    def _together(self, stage: Stage, left: deque[AnswerChunk]) -> None:
        """Chunks in one stream, or in several, with guests in between."""
        while left and not self._ends() and self._fault is None:
            self._stream(self._excused(self._tasks(stage, left)))
            if self._guests is not None and self._guests.wait():
                self._guests.serve()

    def _segments(self, chunks: Sequence[AnswerChunk]) -> Iterator[list[AnswerChunk]]:
        """Chunks to answer together: alone under suspicion, and under a budget, which is looked at before each."""
        together: list[AnswerChunk] = []
        alone = self._row.request.budget.generated_tokens is not None
        for chunk in chunks:
            if chunk.deaths >= ISOLATE_AFTER_DEATHS or alone:
                if together:
                    yield together
                yield [chunk]
                together = []
            else:
                together.append(chunk)
        if together:
            yield together

    def _spent(self) -> bool:
        budget = self._row.request.budget.generated_tokens
        return budget is not None and self._context.generations.get(self._row.id).generated_tokens >= budget

    def _leave_out(self, stage: Stage, chunks: Sequence[AnswerChunk]) -> None:
        """Chunks for which there is no budget left."""
        budget = self._row.request.budget.generated_tokens
        message = f"the budget of {budget:,} generated tokens was spent before this request; raise it to ask for more"
        for chunk in chunks:
            answers = [Answer(error=("budget_spent", message))] * chunk.requests
            self._publish(stage, chunk, answers, seconds=0.0)

    def _adopt(self, stage: Stage, chunk: AnswerChunk) -> bool:
        """Whether an earlier run published the chunk and did not live to commit it, which is done now."""
        if not self._work.answers.has(stage.name, chunk.number):
            return False
        answers = self._work.answers.read(stage.name, chunk.number)
        self._waiter.run(lambda: self._commit(stage, chunk, answers, 0.0))
        return True

    def _tasks(self, stage: Stage, chunks: deque[AnswerChunk]) -> Iterator[TeacherTask]:
        """The tasks of these chunks, which are taken off.

        Ends early where guests wait, when the run should end, or when its own work fails (see `_fault`).
        """
        requests = self._requests
        assert requests is not None
        try:
            while chunks:
                chunk = chunks.popleft()
                yield from self._tasks_of(stage, chunk, requests.of(chunk))
                if self._ends() or (self._guests is not None and self._guests.wait()):
                    return
        except Exception as error:  # noqa: BLE001 - carried around the generator and raised by the run
            self._fault = error

    def _excused(self, tasks: Iterator[TeacherTask]) -> Iterator[TeacherTask]:
        """The same. The teacher asks for them while its life is expected: the time they take is no silence of its."""
        while True:
            with self._context.heartbeat.excused():
                task = next(tasks, None)
            if task is None:
                return
            yield task

    def _tasks_of(self, stage: Stage, chunk: AnswerChunk, requests: Iterator[StageRequest]) -> Iterator[TeacherTask]:
        journal = self._waiter.run(lambda: self._work.answers.journal(stage.name, chunk.number))
        entry = self._open[chunk.number] = _OpenChunk(chunk=chunk, journal=journal)
        number = chunk.first_request - 1
        for number, (tag, make) in enumerate(requests, chunk.first_request):
            known = journal.answers.get(number)
            if known is not None and not self._is_asked_again(known):
                if known.row not in ("", tag):
                    raise AnswersMisplacedError(stage.name, number)
                if known.error is None or self._row.request.on_error == "skip":
                    continue
                self._failure = self._describe(number, *known.error)
                # Under a code with which a resumed job asks again, its other samples too.
                for other, answer in list(journal.answers.items()):
                    if answer.error is not None:
                        self._keep(entry, other, replace(answer, error=("teacher_failed", answer.error[1])))
            if self._ends():
                return
            task = make()
            if isinstance(task, Refusal):
                self._keep(entry, number, Answer(row=tag, error=(task.code, task.message)))
                continue
            entry.waiting += 1
            self._tags[number] = tag
            yield _keyed(task, stage.number * _STAGE + number)
        if number != chunk.first_request + chunk.requests - 1:  # there are fewer rows than when they were counted
            raise AnswersMisplacedError(stage.name, number + 1)
        entry.fed = True
        self._release_ready(stage)

    def _is_asked_again(self, answer: Answer) -> bool:
        """Whether a request failed in an earlier run which that ended: whoever resumes it wants another try."""
        failed = answer.error is not None and answer.error[0] != "teacher_died"
        return failed and self._row.request.on_error == "fail"

    def _stream(self, tasks: Iterator[TeacherTask]) -> None:
        """Run the generator over a stream of tasks and take what comes back."""
        results = self._generator.generate(tasks)
        try:
            while (result := self._next(results)) is not None:
                self._take(result)
                if self._ends():
                    break
        finally:
            if isinstance(results, Generator):
                results.close()
        waiting = sum(entry.waiting for entry in self._open.values())
        if waiting and self._fault is None and not self._ends():
            raise TeacherDiedError(f"the generator ended its stream without {waiting} of the requests it took")

    def _next(self, results: Iterator[TeacherResult]) -> TeacherResult | None:
        try:
            with self._context.heartbeat.expected():
                return next(results, None)
        except Exception as error:  # the protocol: a generator that raises is dead, whatever it raises
            raise TeacherDiedError(f"{type(error).__name__}: {error}") from error

    def _take(self, result: TeacherResult) -> None:
        stage = self._stage
        assert stage is not None
        assert isinstance(result.key, int)
        number = result.key % _STAGE
        entry = next(
            open_chunk
            for open_chunk in self._open.values()
            if 0 <= number - open_chunk.chunk.first_request < open_chunk.chunk.requests
        )
        answer = replace(_answer_of(result), row=self._tags.pop(number))
        self._keep(entry, number, answer)
        entry.waiting -= 1
        if answer.error is None:
            if self._suspicion.blamed:
                self._suspicion.blamed = False
                self._context.teacher.progressed()
            self._context.progress.captured(len(answer.token_ids))
        self._release_ready(stage)

    def _keep(self, entry: _OpenChunk, number: int, answer: Answer) -> None:
        with self._context.heartbeat.excused():  # a slow disk is no fault of the teacher's
            self._waiter.run(lambda: entry.journal.append(number, answer))
        if answer.error is not None and self._row.request.on_error == "fail" and self._failure is None:
            code, message = answer.error
            self._failure = self._describe(number, code, message)

    def _describe(self, number: int, code: str, message: str) -> Failure:
        row = self._stage.row_of(number) if self._stage is not None else None
        line, custom_id = (0, None) if row is None else (row.line, row.custom_id)
        return Failure(stage="generation", line=line, custom_id=custom_id, code=code, message=message)

    def _release_ready(self, stage: Stage) -> None:
        for number, entry in list(self._open.items()):
            if not entry.ready or self._failure is not None:
                continue
            chunk = entry.chunk
            numbers = range(chunk.first_request, chunk.first_request + chunk.requests)
            answers = [entry.journal.answers[at] for at in numbers]
            with self._context.heartbeat.excused():
                self._publish(stage, chunk, answers, time.monotonic() - entry.since)
            del self._open[number]
            self._context.progress.committed(sum(len(answer.token_ids) for answer in answers))
            self._context.teacher.progressed()

    def _publish(self, stage: Stage, chunk: AnswerChunk, answers: Sequence[Answer], seconds: float) -> None:
        """File, then transaction. Safe to repeat."""
        self._waiter.run(lambda: self._work.answers.publish(stage.name, chunk.number, answers))
        self._waiter.run(lambda: self._commit(stage, chunk, answers, seconds))

    def _commit(self, stage: Stage, chunk: AnswerChunk, answers: Sequence[Answer], seconds: float) -> None:
        self._context.generations.commit_chunk(
            self._row.id,
            stage.number,
            chunk,
            failed=sum(answer.error is not None for answer in answers),
            tokens=sum(len(answer.token_ids) for answer in answers),
            seconds=seconds,
        )

    def _ends(self) -> bool:
        return self._failure is not None or self._context.signals.ends(self._row.id)

    # -- requests on which the teacher dies ----------------------------------------------------------------------

    def _one_by_one(self, stage: Stage, chunks: Sequence[AnswerChunk]) -> None:
        """Every request alone with the teacher, so that it is known on which one it dies."""
        self._deaths = max(chunk.deaths for chunk in chunks)
        for task in self._tasks(stage, deque(chunks)):
            assert isinstance(task.key, int)  # our own key
            self._alone = task.key
            try:
                self._stream(iter([task]))
            except TeacherDiedError:
                self._suspicion.suspect(self._row.id, task.key)
                raise
            self._alone = None
            if self._ends():
                return

    def _try_suspect(self, stage: Stage, pending: Sequence[AnswerChunk]) -> None:
        """Give a suspected request to the fresh teacher before anything else; leave it out if that dies too."""
        suspect = self._suspicion.suspect_of(self._row.id)
        if suspect is None or suspect // _STAGE != stage.number:
            return
        self._suspicion.clear()
        number = suspect % _STAGE
        chunk = next((at for at in pending if 0 <= number - at.first_request < at.requests), None)
        if chunk is None:
            return
        _, make = next(islice(stage.requests(), number, None))
        task = make()
        if isinstance(task, Refusal):
            return
        results = self._generator.generate(iter([_keyed(task, suspect)]))
        try:
            while self._next(results) is not None:
                pass  # innocent: it is answered with its chunk
        except TeacherDiedError as error:
            text = f"the teacher died on this prompt alone, twice ({error}); it is left out"
            journal = self._work.answers.journal(stage.name, chunk.number)
            answer = Answer(error=("teacher_died", text))
            for same in _numbers_like(stage, chunk, number, task):
                if same not in journal.answers or journal.answers[same].error is not None:
                    self._waiter.run(partial(journal.append, same, answer))
            self._suspicion.blamed = True
            raise


def _numbers_like(stage: Stage, chunk: AnswerChunk, number: int, task: TeacherTask) -> Iterator[int]:
    """The requests of a chunk with the same prompt, this one and its other samples.

    To find out that the teacher dies on each of 64 samples would cost so many deaths that it is given up.
    """
    yield number
    if not isinstance(task, GenerationTask):
        return
    requests = islice(stage.requests(), chunk.first_request, chunk.first_request + chunk.requests)
    for other_number, (_, make) in enumerate(requests, chunk.first_request):
        other = make()
        if other_number == number or not isinstance(other, GenerationTask):
            continue
        if np.array_equal(other.prompt_ids_C, task.prompt_ids_C):
            yield other_number


def _keyed(task: TeacherTask, key: int) -> TeacherTask:
    return replace(task, key=key)


def _answer_of(result: TeacherResult) -> Answer:
    if result.error is not None:
        return Answer(error=("teacher_failed", f"the teacher could not answer: {result.error}"))
    logprob = result.logprob if isinstance(result, GenerationResult) else float(result.logprobs_N.sum())
    if not math.isfinite(logprob):  # no step could compare it, and no corpus hold it
        message = f"the teacher answered with a log-probability of {logprob}; expected a finite one"
        return Answer(error=("teacher_failed", message))
    if isinstance(result, GenerationResult):
        return Answer(token_ids=result.token_ids_N.tolist(), text=result.text, finish=result.finish, logprob=logprob)
    return Answer(logprob=logprob, scored_tokens=len(result.logprobs_N))
