"""Rows of a generation as they stand behind a step, computed from its answers so far while it runs.

Rows are not stored, so a page costs going through all rows before it. Whoever asks for page after page does not pay
that for each: where a page ended, the reader waits for whoever comes for the next one.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from logitcask_schemas.api.generation import GeneratedRow, GeneratedRowList
from logitcask_schemas.api.generation_steps import Step
from logitcask_schemas.api.objects import Reason
from logitcask_services.generation.pipeline import StageOpenError
from logitcask_services.generation.rows import Dropped, Row, Staged, Written
from logitcask_services.http.previews import loaded_facts
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.answer_files import AnswerFolder
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.generation_work import GenerationWork
from logitcask_services.service import Service

TEACHER_STEPS = frozenset({"generate", "score", "verify", "grow"})
MAX_READERS: Final = 8
"""So many wait for their next page; the one that has waited longest makes room. Each holds a file, and what its steps
hold while they run (demonstrations, texts that a dedupe has seen)."""
PASSED_AT_ONCE: Final = 100
MAX_IDLE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePlace:
    """Where a page begins."""

    generation_id: str
    step: int
    dropped: bool
    after: int


@dataclass(slots=True)
class RowReader:
    """Rows behind a step, from some place on. For one thread at a time."""

    rows: Iterator[Staged]
    """Ends with StageOpenError where the next row waits for the teacher."""
    ahead: list[Staged] = field(default_factory=list)
    """Taken, and not yet given: a row at most."""
    is_open: bool = False
    """Whether the teacher was waited for. Such a reader has come to its end."""
    idle_since: float = 0.0

    def take(self, count: int) -> list[Staged]:
        """The next rows, fewer only at the end."""
        taken, self.ahead = self.ahead[:count], self.ahead[count:]
        try:
            for row in islice(self.rows, count - len(taken)):
                taken.append(row)
        except StageOpenError:
            self.is_open = True
        return taken

    def has_more(self) -> bool:
        """Whether there is another row now."""
        self.ahead = self.ahead or self.take(1)
        return bool(self.ahead)


class RowReaders:
    """Readers that wait for their next page, by its place. For all threads; what is taken is nobody else's."""

    def __init__(self, most: int = MAX_READERS, idle_seconds: float = MAX_IDLE_SECONDS) -> None:
        """At most so many, and none that has waited longer."""
        self._most = most
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._waiting: OrderedDict[PagePlace, RowReader] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take(self, place: PagePlace) -> RowReader | None:
        """The reader that stands there, if any."""
        with self._lock:
            self._forget_old()
            return self._waiting.pop(place, None)

    def put(self, place: PagePlace, reader: RowReader) -> None:
        """Let a reader wait."""
        reader.idle_since = time.monotonic()
        with self._lock:
            self._waiting[place] = reader
            self._waiting.move_to_end(place)
            self._forget_old()

    def _forget_old(self) -> None:
        oldest = time.monotonic() - self._idle_seconds
        while self._waiting:
            place, reader = next(iter(self._waiting.items()))
            if len(self._waiting) <= self._most and reader.idle_since >= oldest:
                return
            del self._waiting[place]


def rows_page(
    service: Service,
    readers: RowReaders,
    row: GenerationRow,
    *,
    step: int | None,
    after: int,
    limit: int,
    dropped: bool,
) -> GeneratedRowList:
    """A page of the rows behind a step.

    Args:
        service: Whose generation it is.
        readers: Those that wait for their next page.
        row: The generation.
        step: Number of the step; -1: the corpus; None: the last one behind which there are rows.
        after: So many rows are passed over.
        limit: Most rows of the page.
        dropped: Whether rows that were left out are shown, too; they count for `after` then.

    Raises:
        Problem: 503 while the teacher loads, 422 where there is no such step.
        TeacherNameError, ModelError: The service does not have the teacher any more.
        RecipeError: The steps do not fit the teacher.
        AnswersDamagedError, OSError: The answers cannot be read.
    """
    facts = loaded_facts(service, row.request.teacher, "generate")
    steps = row.request.steps
    if step is None:
        step = _last_shown(service, row)
    if step >= len(steps):
        raise Problem(
            422,
            "invalid_request",
            f"step {step}: expected -1 (the lines as they came) to {len(steps) - 1}",
            param="step",
        )
    place = PagePlace(generation_id=row.id, step=step, dropped=dropped, after=after)
    if (reader := readers.take(place)) is None:
        work = GenerationWork(service, row, facts.tokenizer, facts.max_model_len)
        staged = work.pipeline.rows_behind(step)
        reader = RowReader(staged if dropped else (entry for entry in staged if isinstance(entry, Row)))
        _pass_over(reader, after)
    page = reader.take(limit)
    has_more = reader.has_more()
    if has_more:
        readers.put(replace(place, after=after + len(page)), reader)
    return GeneratedRowList(
        data=[_presented(staged, steps) for staged in page], has_more=has_more, step=step, is_open=reader.is_open
    )


def _pass_over(reader: RowReader, count: int) -> None:
    """Go past so many rows, and hold none of them."""
    while count > 0 and (passed := len(reader.take(min(count, PASSED_AT_ONCE)))):
        count -= passed


def _last_shown(service: Service, row: GenerationRow) -> int:
    """The last step behind which the answers so far give rows."""
    steps = row.request.steps
    if row.status in ("finalizing", "completed"):
        return len(steps) - 1
    answers = AnswerFolder(service.folders.answers(row.id))
    begun = [int(stage.name.partition("-")[0]) for stage in service.generations.stages(row.id)]
    for number, step in enumerate(steps):
        is_answered = answers.has(str(number), 0) or any(other > number for other in begun)
        if step.kind in TEACHER_STEPS and not is_answered:
            return number - 1
    return len(steps) - 1


def _presented(staged: Staged, steps: Sequence[Step]) -> GeneratedRow:
    row, dropped = (staged.row, staged) if isinstance(staged, Dropped) else (staged, None)
    reason = None
    if dropped is not None:
        where = "" if dropped.step < 0 else f"step {dropped.step} ({steps[dropped.step].kind}): "
        reason = Reason(code=dropped.code, message=f"{where}{dropped.message}")
    return GeneratedRow(
        id=row.id,
        line=row.line,
        custom_id=row.custom_id,
        fields=dict(row.fields),
        written={name: _written(text) for name, text in row.written.items()},
        checks=dict(row.checks),
        dropped=reason,
    )


def _written(written: Written) -> dict[str, object]:
    return {
        "text": written.text,
        "tokens": len(written.token_ids),
        "token_ids": list(written.token_ids),
        "finish": written.finish,
        "mean_logprob": written.mean_logprob,
        "sample": written.sample,
        "seed": written.seed,
        "template": written.template,
    }
