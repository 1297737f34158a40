"""Scoring now: callers wait for the records of a few sequences, the worker lets them in among a job's documents.

A call is some sequences under one capture spec. Calls for one teacher wait in one line; all lines together are
bounded. While an extraction runs, the stream of tasks of each of its engines takes sequences from its teacher's line in
between; while none runs, the worker streams a line alone, and whoever comes meanwhile joins it. None of it is durable.

An engine that dies takes with it what was in flight. Where other engines stream, they try it again, once; else the call
is told so and may come again. A sequence that was there at two deaths waits until it can be alone with the teacher, and
one that was alone at two deaths is refused.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_services.engines.engine import CaptureResult, CaptureTask, Engine, EngineError
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.scoring_call import (
    RefusalCode,
    ScoringCall,
    ScoringCounts,
    ScoringLimits,
    ScoringRefusedError,
    stopping,
)
from logitcask_services.jobs.scoring_sequence import DeathRecord, Flight, ScoringSequence
from logitcask_services.jobs.setbacks import TeacherDiedError

_SHARE: Final = 3
"""Tokens of callers that may pass for each token of a job's, while both wait."""
_MOST_CREDIT: Final = 1 << 13
"""Tokens of callers that may pass before the first of a job's."""
_LEAST_COST: Final = 64
"""Tokens that a shorter sequence counts as: it takes a place of the engine, too."""


class Scoring:
    """The line. `among` is for each engine of the teacher at once, `alone` for one of them; the rest is for all.

    Args:
        wake: tells the worker that somebody waits.
        heartbeat: of the teacher.
        progressed: hears of every sequence that came back.
        dying: hears that the only engine that streams has raised, before those who wait for it do.
        limits: what may wait.
    """

    def __init__(
        self,
        *,
        wake: Callable[[], None],
        heartbeat: Heartbeat,
        progressed: Callable[[], None],
        dying: Callable[[], None] = lambda: None,
        limits: ScoringLimits | None = None,
    ) -> None:
        self.limits = limits or ScoringLimits()
        self._wake = wake
        self._heartbeat = heartbeat
        self._progressed = progressed
        self._dying = dying
        self._lock = threading.Lock()
        self._lines: defaultdict[str, deque[ScoringSequence]] = defaultdict(deque)
        """By teacher. Only that of the loaded one moves."""
        self.serving = ""
        """Name of the teacher that is loaded; the worker says so before it streams."""
        self._suspects: deque[ScoringSequence] = deque()
        """Those that wait to be alone with the teacher."""
        self._waiting_tokens = 0
        self._record = DeathRecord()
        self._streams = 0  # open ones, each of an engine
        self._closed = self._came_back = False
        self.counts = ScoringCounts()
        self.blocked_by: str | None = None
        """The generation that has the teacher to itself, loaded to write alone; nobody is let in before it ends."""

    @property
    def waiting_tokens(self) -> int:
        """Tokens of sequences that are not yet with the teacher."""
        return self._waiting_tokens

    @property
    def waiting_sequences(self) -> int:
        """Sequences that are not yet with the teacher."""
        return sum(map(len, [*self._lines.values()])) + len(self._suspects)

    @property
    def is_waited_for(self) -> bool:
        """Whether any sequence is not yet with the teacher."""
        return any([*self._lines.values()]) or bool(self._suspects)

    def wanted(self, loaded: str, *, resting: Callable[[str], bool]) -> str | None:
        """The teacher to score with next: the loaded one while anybody waits for it; None where nobody waits.

        Args:
            loaded: name of the teacher that is loaded, or was last.
            resting: whether a teacher cannot be loaded just now.
        """
        with self._lock:
            names = [name for name, line in self._lines.items() if line] + [each.teacher for each in self._suspects]
        names = [name for name in names if not resting(name)]
        return loaded if loaded in names else next(iter(names), None)

    def refuse(self, teacher: str, code: RefusalCode, message: str) -> None:
        """Whoever waits for a teacher that will not be loaded is told."""
        with self._lock:
            waiting = [*self._lines.pop(teacher, ()), *(each for each in self._suspects if each.teacher == teacher)]
            self._suspects = deque(each for each in self._suspects if each.teacher != teacher)
            self._waiting_tokens -= sum(each.tokens for each in waiting)
        for each in waiting:
            each.call.fail(ScoringRefusedError(code, message))

    @property
    def _line(self) -> deque[ScoringSequence]:
        return self._lines[self.serving]

    def submit(self, tasks: Sequence[CaptureTask], spec: CaptureSpec, teacher: str = "") -> ScoringCall:
        """Put sequences into a teacher's line; the keys of the tasks do not matter.

        Raises:
            ScoringRefusedError: too large, too much waits already, or one of them has killed the teacher.
        """
        tokens = [len(task.token_ids_L) + task.shift for task in tasks]
        self.limits.require_size(len(tasks), sum(tokens))
        call = ScoringCall(len(tasks))
        sequences = [
            ScoringSequence(
                call=call,
                index=index,
                identity=document_id(task.token_ids_L, task.extent),
                tokens=tokens[index],
                teacher=teacher,
                plain=replace(task, spec=spec),
            )
            for index, task in enumerate(tasks)
        ]
        with self._lock:
            if self._closed:
                raise stopping()
            if killer := next((each for each in sequences if self._record.is_killer(each)), None):
                raise killer.refusal()
            self.limits.require_room(sum(tokens), self._waiting_tokens)
            self._lines[teacher].extend(sequences)
            self._waiting_tokens += sum(tokens)
            idle = not self._streams
        if idle:
            self._wake()
        return call

    def drop(self, call: ScoringCall) -> None:
        """Nobody waits for it any more: what has not begun is not begun."""
        call.fail(ScoringRefusedError("stopping", "nobody waits for it"))
        with self._lock:
            for line in (*self._lines.values(), self._suspects):
                self._waiting_tokens -= sum(each.tokens for each in line if each.call is call)
                kept = [each for each in line if each.call is not call]
                line.clear()
                line.extend(kept)

    def close(self) -> None:
        """The service stops: whoever waits is told, whoever comes is refused."""
        with self._lock:
            self._closed = True
            waiting = [*chain(*self._lines.values()), *self._suspects]
            self._lines.clear()
            self._suspects.clear()
            self._waiting_tokens = 0
        for each in waiting:
            each.call.fail(stopping())

    def among(
        self, engine: Engine, tasks: Iterable[CaptureTask | None], spec: CaptureSpec
    ) -> Generator[CaptureResult, None, None]:
        """`engine.capture(tasks, spec)`, with callers' sequences let in; yields the results of `tasks` alone."""
        flight = Flight()
        yield from self._stream(engine, self._merged(tasks, flight), spec, flight)

    def alone(self, engine: Engine, ends: Callable[[], bool]) -> bool:
        """Score what waits, and what comes meanwhile, until nothing waits or `ends` says so.

        Returns:
            Whether anything was scored, or waits still.

        Raises:
            TeacherDiedError: the engine raised, or ended its stream without what it had taken.
        """
        served = False
        if self._line:
            flight = Flight()
            served = self._drain(engine, self._stream(engine, self._waiting(flight, ends), CaptureSpec(), flight))
        if ends() or (suspect := self._next_suspect()) is None:
            return served or bool(self._line)
        flight = Flight()

        def just_one() -> Iterator[CaptureTask]:
            flight.ours[suspect] = None
            suspect.call.begin()
            yield suspect.task

        self._drain(engine, self._stream(engine, just_one(), CaptureSpec(), flight))
        return True

    def _drain(self, engine: Engine, results: Iterator[CaptureResult]) -> bool:
        self._came_back = False
        try:
            with self._heartbeat.expected():
                for result in results:
                    engine.interrupt()  # nobody works with it again
                    raise TeacherDiedError(f"the engine returned a result for {result.key!r}, which nobody asked for")
        except TeacherDiedError:
            raise
        except Exception as error:  # the protocol: an engine that raises is dead, whatever it raises
            raise TeacherDiedError(f"{type(error).__name__}: {error}") from error
        return self._came_back

    # -- what the engine draws -----------------------------------------------------------------------------------

    def _merged(self, tasks: Iterable[CaptureTask | None], flight: Flight) -> Iterator[CaptureTask | None]:
        """A job's tasks with callers' sequences in front, as far as the job is not held up."""
        source, credit = iter(tasks), _MOST_CREDIT
        while True:
            while credit > 0 and (sequence := self._draw(flight)) is not None:
                credit -= max(sequence.tokens, _LEAST_COST)
                yield sequence.task
            try:
                task = next(source)
            except StopIteration:
                return
            if task is None:  # the job has none just now: nobody holds it up
                credit = _MOST_CREDIT
                yield None
                continue
            credit = min(credit + _SHARE * len(task.token_ids_L), _MOST_CREDIT)
            flight.others += 1
            yield task

    def _waiting(self, flight: Flight, ends: Callable[[], bool]) -> Iterator[CaptureTask | None]:
        while not ends():
            if (sequence := self._draw(flight)) is not None:
                yield sequence.task
            elif flight.ours:
                yield None
            else:
                return

    def _draw(self, flight: Flight) -> ScoringSequence | None:
        """The next of the line, which is then in flight."""
        with self._lock:
            while self._line:
                sequence = self._line.popleft()
                if self._record.is_killer(sequence) or sequence.call.ended:
                    sequence.call.fail(sequence.refusal())
                elif self._record.is_suspect(sequence):
                    self._suspects.append(sequence)
                    continue
                else:
                    self._waiting_tokens -= sequence.tokens
                    flight.ours[sequence] = None
                    sequence.call.begin()
                    return sequence
                self._waiting_tokens -= sequence.tokens
        return None

    def _next_suspect(self) -> ScoringSequence | None:
        with self._lock:
            while mine := [each for each in self._suspects if each.teacher == self.serving]:
                sequence = mine[0]
                self._suspects.remove(sequence)
                self._waiting_tokens -= sequence.tokens
                if self._record.is_killer(sequence):
                    sequence.call.fail(sequence.refusal())
                elif not sequence.call.ended:
                    return sequence
        return None

    # -- what comes back -----------------------------------------------------------------------------------------

    def _stream(
        self, engine: Engine, tasks: Iterable[CaptureTask | None], spec: CaptureSpec, flight: Flight
    ) -> Generator[CaptureResult, None, None]:
        """Results of others; ours go to their callers."""
        results = engine.capture(tasks, spec)
        with self._lock:
            self._streams += 1
        try:
            for result in results:
                if isinstance(result.key, ScoringSequence) and result.key in flight.ours:
                    del flight.ours[result.key]
                    self._deliver(result.key, result, engine.identity.vocab_size)
                else:
                    flight.others -= 1
                    yield result
            if flight.ours:
                raise EngineError("the engine ended its stream without what it had taken")
        except (GeneratorExit, CaptureSpecError):
            self._put_back(flight)  # the job has ended, or cannot be; its guests are no part of that
            raise
        except Exception as error:
            if self._streams == 1:
                self._dying()
            self._died(flight, f"{type(error).__name__}: {error}")
            raise
        else:
            self._put_back(flight)
        finally:
            with self._lock:
                self._streams -= 1
            if isinstance(results, Generator):
                results.close()

    def _deliver(self, sequence: ScoringSequence, result: CaptureResult, vocab_size: int) -> None:
        self._heartbeat.beat()
        self._came_back = True
        with self._lock:
            self._record.clear(sequence)
        fault = result.error
        if result.document is not None:
            fault = sequence.fault_of(result.document, vocab_size)
        if result.document is None or fault is not None:
            sequence.call.fail(
                ScoringRefusedError("capture_failed", f"the teacher could not score sequence {sequence.index}: {fault}")
            )
            return
        self.counts.scored(sequence.tokens)
        self._progressed()
        sequence.call.take(sequence.index, result.document)

    def _put_back(self, flight: Flight) -> None:
        with self._lock:
            again = [each for each in flight.ours if not each.call.ended]
            self._line.extendleft(reversed(again))
            self._waiting_tokens += sum(each.tokens for each in again)
            flight.ours.clear()
        if self._closed:
            self.close()

    def _died(self, flight: Flight, reason: str) -> None:
        """What was in flight is remembered; other engines try it again, or whoever waits for it is told."""
        was_alone = len(flight.ours) == 1 and not flight.others
        with self._lock:
            for sequence in flight.ours:
                self._record.died(sequence, alone=was_alone)
            told = [each for each in flight.ours if self._streams == 1 or self._record.is_suspect(each)]
        for sequence in told:
            del flight.ours[sequence]
            text = f"the teacher died while it scored this request ({reason})"
            sequence.call.fail(ScoringRefusedError("teacher_died", text))
        self._put_back(flight)
