"""The work behind the generation routes: checks that need the service, and the object as callers see it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from logitcask_schemas.api.generation import (
    ChainedExtraction,
    GeneratedCorpus,
    Generation,
    GenerationCheck,
    GenerationPlan,
    GenerationProgress,
    GenerationRequest,
    RowCounts,
    StageProgress,
    StoredGeneration,
)
from logitcask_schemas.api.generation_steps import Demonstrations, Generate, Score, Step, Verify
from logitcask_schemas.api.objects import FINAL, Reason
from logitcask_schemas.api.requests import ExtractionPlan, is_cask_name
from logitcask_services.cask_places import CaskNameError
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.generation.compile import parsed_templates
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.recipes import ResolvedPlan
from logitcask_services.generation.rows import Row, Staged
from logitcask_services.generation.source import source_rows
from logitcask_services.generation.step_checks import check_steps
from logitcask_services.generation.templates import PromptTemplate
from logitcask_services.http import extraction_work
from logitcask_services.http.corpora import content_path
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.database.owners import JobAllowance
from logitcask_services.jobs.database.tables import GenerationRow, StageRow
from logitcask_services.jobs.generation_corpora import reader_of
from logitcask_services.jobs.live import Pace
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.service import Service

READ_LINES = 100_000
"""A field that none of so many lines has may still come in a longer corpus; nothing is said of it before it runs."""


def resolve(service: Service, request: GenerationRequest) -> StoredGeneration:
    """The request with its recipe resolved, and checked. Raises what `require_fits` raises."""
    corpus = service.corpora.get(request.corpus_id)
    stored = service.recipes.resolve(request)
    resolved = ResolvedPlan(steps=stored.steps, emit=stored.emit, templates=stored.templates)
    require_fits(service, resolved, request, _rows_of(service, corpus.id), own_corpus_id=corpus.id)
    return stored


def check_plan(service: Service, plan: GenerationPlan, *, corpus_bytes: int = 0) -> GenerationCheck:
    """What a plan comes to, for a corpus of so many bytes that is not here yet; 0: not known.

    Raises what `require_fits` raises.
    """
    resolved = service.recipes.plan(plan)
    require_fits(service, resolved, plan, None)
    for where, demonstrations in _shown_by(resolved.steps):
        if demonstrations.corpus_id is None:
            service.demonstrations.require_fits(corpus_bytes, where=where)
    facts = service.facts_of(plan.teacher)
    return GenerationCheck(
        recipe=plan.recipe,
        steps=resolved.steps,
        emit=resolved.emit,
        templates={name: template.sha256 for name, template in resolved.templates.items()},
        teacher=facts.model if facts is not None else None,
    )


def require_fits(
    service: Service,
    resolved: ResolvedPlan,
    plan: GenerationPlan,
    rows: Iterable[Staged] | None,
    *,
    own_corpus_id: str | None = None,
) -> None:
    """Whether a generation can be made of a corpus: the same for one that begins, a plan, and a dry run.

    Args:
        service: Whose teacher and casks.
        resolved: What is to be made.
        plan: Who makes it, and the capture that follows.
        rows: Of the corpus; None where they are not here.
        own_corpus_id: Of the corpus, where the service has it.

    Raises:
        RecipeError: Steps do not fit together, the teacher, or the fields that rows have.
        NotFoundError: A corpus of demonstrations is not there.
        TeacherNameError, ModelError: Nobody has the teacher's name, or its folder is no model.
        Problem, CaskError, CaskNameError: There is no room, or the capture cannot be.
    """
    extraction_work.require_room(service)
    service.require_teacher(plan.teacher, "generate")
    require_demonstrations(service, resolved.steps, own_corpus_id)
    parsed = parsed_templates(resolved.templates)
    check_steps(resolved.steps, resolved.emit, parsed, None)
    if rows is not None:
        _require_fields(resolved, parsed, rows)
    if (facts := service.facts_of(plan.teacher)) is not None:
        _require_chat_template(facts.tokenizer, parsed)
    if plan.extraction is not None:
        reader = reader_of(plan)
        for suffix in dict.fromkeys(row.suffix for row in resolved.emit):
            extraction_work.check_plan(service, _plan_of(plan.extraction, suffix, reader))
        _require_same_tokens(facts, service.facts_of(reader), service.teacher_name(reader))


def _require_same_tokens(writer: TeacherFacts | None, reader: TeacherFacts | None, name: str) -> None:
    """Raise Problem 422 where the token ids that are written are others to the one that captures them."""
    if writer is None or reader is None or writer.tokenizer_fingerprint == reader.tokenizer_fingerprint:
        return
    raise Problem(
        422,
        "other_tokens",
        f"what {writer.model} writes are other tokens to the teacher {name}, which is to capture them: their "
        "tokenizers differ. Leave `extraction` out, or name a teacher in it that has this tokenizer",
        param="extraction.teacher",
    )


def _require_fields(resolved: ResolvedPlan, parsed: Mapping[str, PromptTemplate], rows: Iterable[Staged]) -> None:
    """Raise RecipeError where a field is needed that none of the rows has, nor a step makes.

    Most corpora show with their first line that all is there; `READ_LINES` lines are read at most, and what is in none
    of those might still come.
    """
    fields = set[str]()
    for number, row in enumerate(rows):
        if number == READ_LINES:
            return
        fields |= row.fields.keys() if isinstance(row, Row) else set()
        if number & (number + 1) == 0:  # behind 1, 2, 4, 8 ... lines
            with contextlib.suppress(RecipeError):
                check_steps(resolved.steps, resolved.emit, parsed, fields)
                return
    check_steps(resolved.steps, resolved.emit, parsed, fields)


def require_demonstrations(service: Service, steps: Sequence[Step], own_corpus_id: str | None) -> None:
    """Whether demonstrations can be shown: from a corpus named by a step, else from the job's own, where it is known.

    Raises:
        NotFoundError: A corpus of demonstrations is not there.
        RecipeError: It has too few lines, or too many bytes.
    """
    for where, demonstrations in _shown_by(steps):
        corpus_id = demonstrations.corpus_id or own_corpus_id
        if corpus_id is None:
            continue
        corpus = service.corpora.get(corpus_id)
        service.demonstrations.require_fits(corpus.bytes, where=where)
        # Of the job's own corpus a row's own line is no demonstration.
        lines = corpus.lines - (demonstrations.corpus_id is None)
        if lines < demonstrations.k and demonstrations.choose != "field":
            raise RecipeError(
                f"{where}: `k` is {demonstrations.k}, and the corpus of demonstrations {corpus_id} has "
                f"{corpus.lines} lines; lower k, or give more"
            )
        if demonstrations.choose == "bm25" and demonstrations.corpus_id is not None:
            _require_field(_rows_of(service, corpus_id), demonstrations.query, where)


def _require_field(rows: Iterable[Staged], name: str, where: str) -> None:
    """Raise RecipeError where none of the demonstrations has the field that they are compared by."""
    fields = set[str]()
    for row in rows:
        fields |= row.fields.keys() if isinstance(row, Row) else set()
        if name in fields:
            return
    raise RecipeError(
        f"{where}: demonstrations are chosen by their field {name!r} (`query`), which none of them has; there are "
        f"{', '.join(sorted(fields)[:32]) or 'none'}"
    )


def _shown_by(steps: Sequence[Step]) -> Iterator[tuple[str, Demonstrations]]:
    """What steps show, and which step that is."""
    for number, step in enumerate(steps):
        where = f"step {number} ({step.kind})"
        if isinstance(step, Generate | Score | Verify) and step.demonstrations is not None:
            yield where, step.demonstrations
        if isinstance(step, Score) and step.candidates is not None:
            yield where, step.candidates


def _rows_of(service: Service, corpus_id: str) -> Iterator[Staged]:
    corpus = service.corpora.get(corpus_id)
    return source_rows(content_path(service, corpus), corpus.sha256, service.settings.max_line_bytes)


def _require_chat_template(tokenizer: DocumentTokenizer, templates: Mapping[str, PromptTemplate]) -> None:
    """Raise RecipeError where a template is a chat, and the teacher has no chat template to render it with."""
    chats = sorted(name for name, template in templates.items() if template.kind == "chat")
    if not chats:
        return
    tried = tokenizer.chat_prompt([{"role": "user", "content": "?"}], prefix="")
    if isinstance(tried, LineProblem) and tried.code == "no_chat_template":
        raise RecipeError(
            f"template {chats[0]} is of kind chat, and the teacher's tokenizer has no chat template; use a template of "
            "kind text, or a teacher that was trained to chat"
        )


def _plan_of(chained: ChainedExtraction, suffix: str, teacher: str | None) -> ExtractionPlan:
    """The extraction of the corpus with this suffix. Raises CaskNameError."""
    cask = f"{chained.cask}.{suffix}" if suffix else chained.cask
    if not is_cask_name(cask):
        raise CaskNameError(f"the cask {chained.cask!r} with the suffix of a corpus, {cask!r}, has too long a name")
    return ExtractionPlan(
        cask=cask,
        teacher=teacher,
        capture=chained.capture,
        carrier=chained.carrier,
        max_length=chained.max_length,
        overflow="skip",
        # Prompts are not recorded, which the cask's version must allow.
        loss_on="completion",
    )


def cancel(service: Service, generation_id: str) -> GenerationRow:
    """Ask a generation to end. Raises NotFoundError, IllegalTransitionError."""
    row = service.generations.cancel(generation_id)
    if row.status not in FINAL:
        service.signals.cancel(row.id)
    return row


def resume(service: Service, generation_id: str, allowance: JobAllowance) -> GenerationRow:
    """Take a failed or paused generation up again.

    Raises NotFoundError, IllegalTransitionError, TooManyJobsError, QueueFullError.
    """
    with service.pausing:
        row = service.generations.resume(generation_id, allowance=allowance)
        service.signals.release(row.id)
    return row


def present(service: Service, row: GenerationRow) -> Generation:
    """The object, with the live progress of a running one."""
    now = progress(service, row)
    request = row.request
    return Generation(
        id=row.id,
        corpus_id=row.corpus_id,
        recipe=request.recipe,
        parameters=request.parameters,
        steps=request.steps,
        emit=request.emit,
        seed=request.seed,
        budget=request.budget,
        on_error=request.on_error,
        extraction=request.extraction,
        metadata=request.metadata,
        priority=row.priority,
        templates={name: template.sha256 for name, template in request.templates.items()},
        # The time of a state is that of its last entry; the log begins with the first.
        created_at=int(service.log.events(row, after=0, limit=1)[0].created_at),
        **{f"{status}_at": int(at) for status, at in row.timestamps.items()},
        lines=row.lines,
        bad_lines=row.bad_lines,
        rows=RowCounts.model_validate(row.rows or {}),
        corpora=[GeneratedCorpus.model_validate(corpus) for corpus in row.corpora or []],
        **{name: getattr(now, name) for name in GenerationProgress.model_fields},
        teacher=row.teacher,
        teacher_name=request.teacher,
        waiting=Reason.model_validate(row.waiting) if row.waiting else None,
        error=Reason.model_validate(row.error) if row.error else None,
    )


def progress(service: Service, row: GenerationRow) -> GenerationProgress:
    """How far a generation is."""
    pace = service.progress.pace(row.id) if row.status == "in_progress" else None
    begun = service.generations.stages(row.id)
    stages = [
        StageProgress(
            stage=stage.name,
            kind=stage.kind,
            template=stage.template,
            requests_total=stage.requests,
            requests_done=stage.requests_done,
            failed=stage.failed,
            generated_tokens=stage.generated_tokens,
        )
        for stage in begun
    ]
    uncommitted = pace.uncommitted_tokens if pace else 0
    if stages:
        stages[-1].generated_tokens += uncommitted
    rate = pace.tokens_per_second if pace else None
    if rate is None and row.generation_seconds > 0 and row.generated_tokens:
        rate = row.generated_tokens / row.generation_seconds
    return GenerationProgress(
        status=row.status,
        stages=stages,
        generated_tokens=row.generated_tokens + uncommitted,
        throughput_tps=round(rate, 2) if rate is not None else None,
        eta_seconds=_eta(begun[-1], pace, rate) if begun and pace and rate else None,
    )


def _eta(stage: StageRow, pace: Pace, rate: float) -> float | None:
    """Seconds of the stage that runs, where its requests go on to give as many tokens as those that are answered."""
    if not stage.requests_done or not stage.generated_tokens:
        return None
    left = (stage.requests - stage.requests_done) * stage.generated_tokens / stage.requests_done
    return round(max(left - pace.uncommitted_tokens, 0.0) / rate, 1)
