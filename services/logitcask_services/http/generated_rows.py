"""Rows of a generation as they stand behind a step, computed from its answers so far while it runs."""

from collections.abc import Iterator, Sequence
from itertools import islice

from logitcask_schemas.api.generation import GeneratedRow, GeneratedRowList
from logitcask_schemas.api.generation_steps import Step
from logitcask_schemas.api.objects import Reason
from logitcask_services.generation.pipeline import StageOpenError
from logitcask_services.generation.rows import Dropped, Row, Staged, Written
from logitcask_services.http.previews import loaded_facts
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.generation_work import GenerationWork
from logitcask_services.service import Service

TEACHER_STEPS = frozenset({"generate", "score", "verify", "grow"})


def rows_page(
    service: Service, row: GenerationRow, *, step: int | None, after: int, limit: int, dropped: bool
) -> GeneratedRowList:
    """A page of the rows behind a step.

    Args:
        service: Whose generation it is.
        row: The generation.
        step: Number of the step; -1: the corpus; None: the last one behind which there are rows.
        after: So many rows are passed over.
        limit: Most rows of the page.
        dropped: Whether rows that were left out are shown, too; they count for `after` then.

    Raises:
        Problem: 503 while the teacher loads, 422 where there is no such step.
        RecipeError: The steps do not fit the teacher.
        AnswersDamagedError, OSError: The answers cannot be read.
    """
    facts = loaded_facts(service)
    work = GenerationWork(service, row, facts.tokenizer, facts.max_model_len)
    steps = row.request.steps
    if step is None:
        step = _last_shown(service, row, work)
    if step >= len(steps):
        raise Problem(
            422, "invalid_request", f"step {step}: expected -1 (the corpus) to {len(steps) - 1}", param="step"
        )
    is_open = False

    def shown() -> Iterator[Staged]:
        nonlocal is_open
        try:
            for staged in work.pipeline.rows_behind(step):
                if dropped or isinstance(staged, Row):
                    yield staged
        except StageOpenError:
            is_open = True

    page = list(islice(islice(shown(), after, None), limit + 1))
    return GeneratedRowList(
        data=[_presented(staged, steps) for staged in page[:limit]],
        has_more=len(page) > limit,
        step=step,
        is_open=is_open,
    )


def _last_shown(service: Service, row: GenerationRow, work: GenerationWork) -> int:
    """The last step behind which the answers so far give rows."""
    steps = row.request.steps
    if row.status in ("finalizing", "completed"):
        return len(steps) - 1
    begun = [int(stage.name.partition("-")[0]) for stage in service.generations.stages(row.id)]
    for number, step in enumerate(steps):
        is_answered = work.answers.has(str(number), 0) or any(other > number for other in begun)
        if step.kind in TEACHER_STEPS and not is_answered:
            return number - 1
    return len(steps) - 1


def _presented(staged: Staged, steps: Sequence[Step]) -> GeneratedRow:
    row, dropped = (staged.row, staged) if isinstance(staged, Dropped) else (staged, None)
    reason = None
    if dropped is not None:
        where = "the line" if dropped.step < 0 else f"step {dropped.step} ({steps[dropped.step].kind})"
        reason = Reason(code=dropped.code, message=f"{where}: {dropped.message}")
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
        "finish": written.finish,
        "mean_logprob": written.mean_logprob,
        "sample": written.sample,
        "seed": written.seed,
        "template": written.template,
    }
