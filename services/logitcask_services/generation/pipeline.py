"""All steps of a generation as one stream of rows, computed from the corpus and the answers that there are.

Nothing of it is stored: whoever wants the rows behind a step goes through the steps before it anew, in flat memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from logitcask_schemas.api.generation_steps import Step
from logitcask_services.engines.generator import TeacherTask
from logitcask_services.generation.errors import AnswersMisplacedError
from logitcask_services.generation.rows import (
    Answer,
    CompiledStep,
    GrowStep,
    Refusal,
    Row,
    Staged,
    TeacherStep,
    row_tag,
)


class StageOpenError(Exception):
    """An answer that is needed is not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The requests of one teacher step, or of one round of a step that grows."""

    number: int
    """In the order in which stages run."""
    name: str
    """Number of the step, with the round: `2`, `0-r3`."""
    kind: str
    template: str | None
    count: Callable[[], int]
    requests: Callable[[], Iterator[tuple[str, Callable[[], TeacherTask | Refusal]]]]
    """In order: the tag of its row (see `row_tag`), and what renders it."""
    row_of: Callable[[int], Row | None]
    """The row that a request is made for; None where it is made from several."""


class Pipeline:
    """The steps of one generation.

    Args:
        steps: As asked for.
        compiled: The same steps, ready to run.
        source: The rows of the corpus, from the first on each call.
        answers: The answers of a stage by its name, in order. Raises StageOpenError where the next one is missing.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        compiled: Sequence[CompiledStep],
        source: Callable[[], Iterator[Staged]],
        answers: Callable[[str], Iterator[Answer]],
    ) -> None:
        self._steps = steps
        self._compiled = compiled
        self._source = source
        self._answers = answers

    @property
    def num_steps(self) -> int:
        """How many steps there are."""
        return len(self._compiled)

    def rows_behind(self, step: int) -> Iterator[Staged]:
        """Rows behind a step, from 0; -1: those of the corpus. Raises StageOpenError where an answer is missing."""
        stream = self._source()
        for number in range(step + 1):
            stream = self._through(number, stream)
        return stream

    def stages(self) -> Iterator[Stage]:
        """All stages in order. The next one may be asked for only when the answers of the one before are there."""
        number = 0
        for index, compiled in enumerate(self._compiled):
            if compiled[0] == "teacher":
                yield self._teacher_stage(number, index, compiled[1])
                number += 1
            elif compiled[0] == "grow":
                for stage in self._rounds(number, index, compiled[1]):
                    yield stage
                    number += 1

    def _through(self, number: int, stream: Iterator[Staged]) -> Iterator[Staged]:
        compiled = self._compiled[number]
        if compiled[0] == "row":
            return compiled[1].apply(stream)
        if compiled[0] == "teacher":
            return self._joined(number, compiled[1], stream)
        return self._grown(number, compiled[1], stream)

    def _joined(self, number: int, step: TeacherStep, stream: Iterator[Staged]) -> Iterator[Staged]:
        answers, at = self._answers(str(number)), 0
        for row in stream:
            if isinstance(row, Row):
                own = _exactly(answers, step.requests_per_row)
                _require_own(str(number), at, own, [row_tag(row.id)] * len(own))
                at += len(own)
                yield from step.join(row, own)
            else:
                yield row

    def _grown(self, number: int, step: GrowStep, stream: Iterator[Staged]) -> Iterator[Staged]:
        seeds = list[Row]()
        for row in stream:
            if isinstance(row, Row):
                seeds.append(row)
            else:
                yield row
        pool = step.begin(seeds)
        for round_number in range(step.rounds_max):
            if pool.is_full:
                break
            requests = pool.requests(round_number)
            pool.accept(round_number, self._of_round(f"{number}-r{round_number}", requests))
        yield from pool.result()

    def _of_round(self, stage: str, requests: Sequence[TeacherTask | Refusal]) -> list[Answer]:
        answers = _exactly(self._answers(stage), len(requests))
        _require_own(stage, 0, answers, [_tag_of(request) for request in requests])
        return answers

    def _teacher_stage(self, number: int, index: int, step: TeacherStep) -> Stage:
        def rows() -> Iterator[Row]:
            return (row for row in self.rows_behind(index - 1) if isinstance(row, Row))

        def request(row: Row, at: int) -> tuple[str, Callable[[], TeacherTask | Refusal]]:
            return row_tag(row.id), lambda: step.request(row, at)

        return Stage(
            number=number,
            name=str(index),
            kind=self._steps[index].kind,
            template=getattr(self._steps[index], "template", None),
            count=lambda: step.requests_per_row * sum(1 for _ in rows()),
            requests=lambda: (request(row, at) for row in rows() for at in range(step.requests_per_row)),
            row_of=lambda request_number: next(islice(rows(), request_number // step.requests_per_row, None), None),
        )

    def _rounds(self, number: int, index: int, step: GrowStep) -> Iterator[Stage]:
        pool = step.begin([row for row in self.rows_behind(index - 1) if isinstance(row, Row)])

        def given(request: TeacherTask | Refusal) -> tuple[str, Callable[[], TeacherTask | Refusal]]:
            return _tag_of(request), lambda: request

        for round_number in range(step.rounds_max):
            if pool.is_full:
                return
            requests = pool.requests(round_number)
            yield Stage(
                number=number + round_number,
                name=f"{index}-r{round_number}",
                kind=self._steps[index].kind,
                template=getattr(self._steps[index], "template", None),
                count=lambda requests=requests: len(requests),  # type: ignore[misc]  # bound now, not when called
                requests=lambda requests=requests: iter([given(request) for request in requests]),  # type: ignore[misc]
                row_of=lambda _: None,
            )
            pool.accept(round_number, self._of_round(f"{index}-r{round_number}", requests))


def _tag_of(request: TeacherTask | Refusal) -> str:
    """Of a request that is made from several rows: its key is the id of the row that it may become."""
    return "" if isinstance(request, Refusal) else row_tag(str(request.key))


def _require_own(stage: str, first: int, answers: Sequence[Answer], tags: Sequence[str]) -> None:
    """Raise AnswersMisplacedError where an answer is another row's."""
    for number, (answer, tag) in enumerate(zip(answers, tags, strict=True), first):
        if answer.row and answer.row != tag:
            raise AnswersMisplacedError(stage, number)


def _exactly(answers: Iterator[Answer], count: int) -> list[Answer]:
    taken = list(islice(answers, count))
    if len(taken) < count:
        raise StageOpenError
    return taken
