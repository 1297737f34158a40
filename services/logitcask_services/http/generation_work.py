"""The work behind the generation routes: checks that need the service, and the object as callers see it."""

from collections.abc import Mapping, Sequence

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
    StoredTemplate,
)
from logitcask_schemas.api.generation_steps import EmitRow, Generate, Score, Step, Verify
from logitcask_schemas.api.objects import FINAL, Reason
from logitcask_schemas.api.requests import ExtractionPlan, is_cask_name
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.folders import CaskNameError
from logitcask_services.generation.compile import parsed_templates
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.rows import Row
from logitcask_services.generation.source import source_rows
from logitcask_services.generation.step_checks import check_steps
from logitcask_services.generation.templates import PromptTemplate
from logitcask_services.http import extraction_work
from logitcask_services.jobs.database.tables import GenerationRow, StageRow
from logitcask_services.jobs.live import Pace
from logitcask_services.service import Service

READ_LINES = 1000
"""Of a corpus with more lines, the fields are not looked at before it runs."""


def resolve(service: Service, request: GenerationRequest) -> StoredGeneration:
    """The request with its recipe resolved, and checked. Raises what `check_plan` raises, and NotFoundError."""
    service.corpora.get(request.corpus_id)
    stored = service.recipes.resolve(request)
    _check(service, stored.steps, stored.emit, stored.templates, request.extraction, request.corpus_id)
    return stored


def check_plan(service: Service, plan: GenerationPlan) -> GenerationCheck:
    """What a plan comes to, without a corpus. Raises RecipeError, NotFoundError, Problem, CaskError, CaskNameError."""
    resolved = service.recipes.plan(plan)
    _check(service, resolved.steps, resolved.emit, resolved.templates, plan.extraction, None)
    facts = service.teacher.facts
    return GenerationCheck(
        recipe=plan.recipe,
        steps=resolved.steps,
        emit=resolved.emit,
        templates={name: template.sha256 for name, template in resolved.templates.items()},
        teacher=facts.identity.model if facts is not None else None,
    )


def _check(
    service: Service,
    steps: Sequence[Step],
    emit: Sequence[EmitRow],
    templates: dict[str, StoredTemplate],
    chained: ChainedExtraction | None,
    corpus_id: str | None,
) -> None:
    extraction_work.require_room(service)
    require_demonstrations(service, steps)
    parsed = parsed_templates(templates)
    check_steps(steps, emit, parsed, _fields_of(service, corpus_id))
    if (facts := service.teacher.facts) is not None:
        _require_chat_template(facts.tokenizer, parsed)
    if chained is not None:
        for suffix in dict.fromkeys(row.suffix for row in emit):
            extraction_work.check_plan(service, _plan_of(chained, suffix))


def require_demonstrations(service: Service, steps: Sequence[Step]) -> None:
    """Raise NotFoundError where a corpus of demonstrations is not there, RecipeError where it has too few lines."""
    for number, step in enumerate(steps):
        shown = [step.demonstrations] if isinstance(step, Generate | Score | Verify) else []
        shown += [step.candidates] if isinstance(step, Score) else []
        for demonstrations in shown:
            if demonstrations is not None and demonstrations.corpus_id is not None:
                lines = service.corpora.get(demonstrations.corpus_id).lines
                if lines < demonstrations.k and demonstrations.choose != "field":
                    raise RecipeError(
                        f"step {number} ({step.kind}): `k` is {demonstrations.k}, and the corpus of demonstrations "
                        f"{demonstrations.corpus_id} has {lines} lines; lower k, or give more"
                    )


def _fields_of(service: Service, corpus_id: str | None) -> frozenset[str] | None:
    """Fields that the lines of a corpus have; None where there is none, or it is too long to be read here."""
    if corpus_id is None:
        return None
    sha256 = service.corpora.get(corpus_id).sha256
    rows = source_rows(service.storage.path(sha256), sha256, service.settings.max_line_bytes)
    fields = set[str]()
    for number, row in enumerate(rows):
        if number == READ_LINES:
            return None
        fields |= row.fields.keys() if isinstance(row, Row) else set()
    return frozenset(fields)


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


def _plan_of(chained: ChainedExtraction, suffix: str) -> ExtractionPlan:
    """The extraction of the corpus with this suffix. Raises CaskNameError."""
    cask = f"{chained.cask}.{suffix}" if suffix else chained.cask
    if not is_cask_name(cask):
        raise CaskNameError(f"the cask {chained.cask!r} with the suffix of a corpus, {cask!r}, has too long a name")
    return ExtractionPlan(
        cask=cask,
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
