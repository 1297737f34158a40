"""One run of one stage of a generation: ask what has no answer yet, keep what comes back, publish whole chunks."""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from logitcask_schemas.api.objects import Failure
from logitcask_services.engines.generator import GenerationResult, Generator, TeacherResult, TeacherTask
from logitcask_services.generation.errors import AnswersMisplacedError
from logitcask_services.generation.pipeline import Stage
from logitcask_services.generation.rows import Answer, Refusal
from logitcask_services.jobs.answer_files import AnswerFolder, Journal
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.generations import AnswerChunk
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.extraction import is_isolated, segments
from logitcask_services.jobs.guests import Guests
from logitcask_services.jobs.setbacks import TeacherDiedError
from logitcask_services.jobs.stage_chunks import StageChunks
from logitcask_services.jobs.stage_requests import (
    StageRequest,
    StageRequests,
    numbers_like,
    place_of,
    request_key,
    task_of,
)
from logitcask_services.jobs.teacher_streams import TeacherStreams
from logitcask_services.jobs.waiting import Waiter


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

    @property
    def numbers(self) -> range:
        return _numbers_of(self.chunk)


class StageRun:
    """Use once: `go`."""

    def __init__(
        self,
        context: JobContext,
        row: GenerationRow,
        stage: Stage,
        *,
        answers: AnswerFolder,
        generator: Generator,
        streams: TeacherStreams[TeacherResult],
        waiter: Waiter,
        guests: Guests | None,
    ) -> None:
        """`guests`: whom the teacher serves between chunks; None: nobody can be, or nobody comes."""
        self._context = context
        self._row = row
        self._stage = stage
        self._generator = generator
        self._streams = streams
        self._waiter = waiter
        self._guests = guests
        self._chunks = StageChunks(context.generations, row, stage, answers, waiter)
        self._requests = StageRequests(stage)
        self._open: dict[int, _OpenChunk] = {}
        self._fault: Exception | None = None
        """What went wrong while the generator drew tasks; kept, so that it is not taken for the teacher's death."""
        self._tags: dict[int, str] = {}
        """Of requests that are with the teacher, the rows."""
        self.failure: Failure | None = None
        """The request that ended the generation, where one did."""

    @property
    def number(self) -> int:
        """Of the stage."""
        return self._stage.number

    @property
    def open_chunks(self) -> list[int]:
        """Chunks that are with the teacher."""
        return list(self._open)

    def go(self) -> None:
        """Answer every request, until there is a failure or the job ends.

        Raises TeacherDiedError, OSError, RecipeError, AnswersDamagedError.
        """
        pending = self._chunks.pending()
        self._try_suspect(pending)
        # Under a budget, which is looked at before each, chunks are not answered together.
        for together in segments(pending, each_alone=self._row.request.budget.generated_tokens is not None):
            if self._chunks.is_budget_spent():
                self._chunks.leave_out(together)
                continue
            if is_isolated(together[0]):
                self._one_by_one(together)
            else:
                self._together(deque(together))
            if self._fault is not None:
                raise self._fault
            if self._ends():
                return

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: leave a request out on which the teacher hangs again and again."""
        if (culprit := self._streams.culprit) is None:
            return
        text = f"the teacher did not come back from this request alone ({reason}); it is left out"
        _, number = place_of(culprit)
        for entry in list(self._open.values()):
            if number in entry.numbers:
                entry.journal.append(number, Answer(error=("teacher_died", text)))

    # -- what the teacher is asked -------------------------------------------------------------------------------

    def _together(self, left: deque[AnswerChunk]) -> None:
        """Chunks in one stream, or in several, with guests in between."""
        while left and not self._ends() and self._fault is None:
            self._stream(self._excused(self._tasks(left)))
            if self._guests is not None and self._guests.wait():
                self._guests.serve()

    def _stream(self, tasks: Iterator[TeacherTask]) -> None:
        """Run the generator over a stream of tasks and take what comes back."""
        self._streams.take_each(self._generator.generate(tasks), self._take, stops=self._ends)
        waiting = sum(entry.waiting for entry in self._open.values())
        if waiting and self._fault is None and not self._ends():
            raise TeacherDiedError(f"the generator ended its stream without {waiting} of the requests it took")

    def _tasks(self, chunks: deque[AnswerChunk]) -> Iterator[TeacherTask]:
        """The tasks of these chunks, which are taken off.

        Ends early where guests wait, when the run should end, or when its own work fails (see `_fault`).
        """
        try:
            while chunks:
                chunk = chunks.popleft()
                yield from self._tasks_of(chunk, self._requests.of(chunk))
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

    def _tasks_of(self, chunk: AnswerChunk, requests: Iterator[StageRequest]) -> Iterator[TeacherTask]:
        journal = self._waiter.run(lambda: self._chunks.journal(chunk))
        entry = self._open[chunk.number] = _OpenChunk(chunk=chunk, journal=journal)
        number = chunk.first_request - 1
        for number, (tag, make) in enumerate(requests, chunk.first_request):
            known = journal.answers.get(number)
            if known is not None and not self._is_asked_again(known):
                if known.row not in ("", tag):
                    raise AnswersMisplacedError(self._stage.name, number)
                if known.error is None or self._row.request.on_error == "skip":
                    continue
                self.failure = self._describe(number, *known.error)
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
            yield self._keyed(task, number)
        if number != chunk.first_request + chunk.requests - 1:  # there are fewer rows than when they were counted
            raise AnswersMisplacedError(self._stage.name, number + 1)
        entry.fed = True
        self._release_ready()

    def _is_asked_again(self, answer: Answer) -> bool:
        """Whether a request failed in an earlier run which that ended: whoever resumes it wants another try."""
        failed = answer.error is not None and answer.error[0] != "teacher_died"
        return failed and self._row.request.on_error == "fail"

    def _keyed(self, task: TeacherTask, number: int) -> TeacherTask:
        return replace(task, key=request_key(self._stage.number, number))

    # -- what comes back -----------------------------------------------------------------------------------------

    def _take(self, result: TeacherResult) -> None:
        assert isinstance(result.key, int)
        _, number = place_of(result.key)
        entry = next(open_chunk for open_chunk in self._open.values() if number in open_chunk.numbers)
        answer = replace(_answer_of(result), row=self._tags.pop(number))
        self._keep(entry, number, answer)
        entry.waiting -= 1
        if answer.error is None:
            self._streams.came_back()
            self._context.progress.captured(len(answer.token_ids))
        self._release_ready()

    def _keep(self, entry: _OpenChunk, number: int, answer: Answer) -> None:
        with self._context.heartbeat.excused():  # a slow disk is no fault of the teacher's
            self._waiter.run(lambda: entry.journal.append(number, answer))
        if answer.error is not None and self._row.request.on_error == "fail" and self.failure is None:
            code, message = answer.error
            self.failure = self._describe(number, code, message)

    def _describe(self, number: int, code: str, message: str) -> Failure:
        row = self._stage.row_of(number)
        line, custom_id = (0, None) if row is None else (row.line, row.custom_id)
        return Failure(stage="generation", line=line, custom_id=custom_id, code=code, message=message)

    def _release_ready(self) -> None:
        for number, entry in list(self._open.items()):
            if not entry.ready or self.failure is not None:
                continue
            answers = [entry.journal.answers[at] for at in entry.numbers]
            with self._context.heartbeat.excused():
                self._chunks.publish(entry.chunk, answers, time.monotonic() - entry.since)
            del self._open[number]
            self._context.progress.committed(sum(len(answer.token_ids) for answer in answers))
            self._context.teacher.progressed()

    def _ends(self) -> bool:
        return self.failure is not None or self._context.signals.ends(self._row.id)

    # -- requests on which the teacher dies ----------------------------------------------------------------------

    def _one_by_one(self, chunks: Sequence[AnswerChunk]) -> None:
        """Every request alone with the teacher, so that it is known on which one it dies."""
        self._streams.one_by_one(
            self._tasks(deque(chunks)),
            deaths=max(chunk.deaths for chunk in chunks),
            stream=lambda task: self._stream(iter([task])),
            stops=self._ends,
        )

    def _try_suspect(self, pending: Sequence[AnswerChunk]) -> None:
        """Give a suspected request to the fresh teacher before anything else; leave it out if that dies too."""
        if (suspect := self._streams.suspect) is None:
            return
        stage_number, number = place_of(suspect)
        if stage_number != self._stage.number:
            return
        self._streams.drop_suspect()
        chunk = next((at for at in pending if number in _numbers_of(at)), None)
        if chunk is None:
            return
        task = task_of(self._stage, number)
        if isinstance(task, Refusal):
            return
        results = self._generator.generate(iter([self._keyed(task, number)]))
        try:
            self._streams.try_suspect(results)
        except TeacherDiedError as error:
            text = f"the teacher died on this prompt alone, twice ({error}); it is left out"
            journal = self._chunks.journal(chunk)
            answer = Answer(error=("teacher_died", text))
            for same in numbers_like(self._stage, chunk, number, task):
                if same not in journal.answers or journal.answers[same].error is not None:
                    self._waiter.run(partial(journal.append, same, answer))
            self._streams.blame()
            raise


def _numbers_of(chunk: AnswerChunk) -> range:
    return range(chunk.first_request, chunk.first_request + chunk.requests)


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
