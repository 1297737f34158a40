"""A dry run of a generation: the prompts of its first teacher step, and their cost. The teacher is not asked."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from secrets import token_hex

from logitcask_schemas.api.generation import GenerationPlan, GenerationPreview, PreviewedLoss, RenderedPrompt
from logitcask_schemas.api.objects import Reason
from logitcask_services.engines.generator import GenerationTask, TeacherTask
from logitcask_services.generation.compile import StepResources, compile_steps
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.pipeline import Pipeline, StageOpenError
from logitcask_services.generation.recipes import ResolvedPlan
from logitcask_services.generation.rows import Answer, CompiledStep, Dropped, Refusal, Row, Staged
from logitcask_services.generation.source import source_rows
from logitcask_services.http.corpora import content_path
from logitcask_services.http.generation_work import require_fits
from logitcask_services.http.previews import loaded_facts
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.service import Service


def preview(
    service: Service, plan: GenerationPlan, lines: bytes, *, prompts: int, is_whole: bool = True
) -> GenerationPreview:
    """Go through these JSON lines as far as no answer of the teacher is needed.

    Args:
        service: Whose teacher and recipes are used.
        plan: What to make.
        lines: A corpus, or whole lines from its beginning.
        prompts: So many are shown.
        is_whole: Whether there are no further lines. Then a field that no line has is refused, as when it begins.

    Raises:
        Problem: 503 while the teacher loads, or when the service stops.
        RecipeError, NotFoundError, TeacherNameError, ModelError: As `generation_work.check_plan`.
    """
    facts = loaded_facts(service, plan.teacher, "generate")
    # Beside the answers: what a crash leaves there is swept at the next start.
    scratch = service.folders.generations / f"preview-{token_hex(8)}"
    try:
        scratch.mkdir()
        corpus = scratch / "corpus.jsonl"
        corpus.write_bytes(lines)
        return _Preview(service, plan, corpus, hashlib.sha256(lines).hexdigest(), facts, is_whole).go(prompts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Preview:
    def __init__(
        self, service: Service, plan: GenerationPlan, corpus: Path, sha256: str, facts: TeacherFacts, is_whole: bool
    ) -> None:
        resolved = service.recipes.plan(plan)
        self._service = service
        self._facts = facts
        self._corpus = corpus
        self._sha256 = sha256
        self._steps = resolved.steps
        self._note = self._misfit(resolved, plan, is_whole=is_whole)
        resources = StepResources(
            tokenizer=facts.tokenizer,
            max_model_len=facts.max_model_len,
            templates=resolved.templates,
            rows_of=self._rows_of,
            job_seed=plan.seed,
        )
        self._compiled = compile_steps(resolved.steps, resources)
        self._pipeline = Pipeline(resolved.steps, self._compiled, self._source, _no_answers)

    def go(self, prompts: int) -> GenerationPreview:
        """Render all requests of the first teacher step, and count."""
        figures = GenerationPreview(
            lines=0,
            bad_lines=0,
            requests=0,
            prompt_tokens=0,
            generated_tokens_at_most=0,
            shown=[],
            teacher=self._facts.model,
            note=self._note,
        )
        for row in self._source():
            figures.lines += 1
            if isinstance(row, Dropped):
                figures.bad_lines += 1
                _add(figures.bad, row.code, row.message)
        first = next((at for at, compiled in enumerate(self._compiled) if compiled[0] != "row"), None)
        if first is None:
            return figures
        for line, request, times in self._requests(first, self._compiled[first]):
            if self._service.signals.stopping.is_set():
                raise Problem(503, "stopping", "the service stops; try again when it is back")
            self._count(figures, request, times)
            if len(figures.shown) < prompts:
                figures.shown.append(self._rendered(line, request))
        return figures

    def _misfit(self, resolved: ResolvedPlan, plan: GenerationPlan, *, is_whole: bool) -> str | None:
        """What no line so far has; raises RecipeError where there are no others, and for all else that does not fit."""
        require_fits(self._service, resolved, plan, None)
        try:
            require_fits(self._service, resolved, plan, self._source())
        except RecipeError as error:
            if is_whole:
                raise
            return f"{error}. So it is in the lines that were read; further ones may have it"
        return None

    def _requests(self, number: int, compiled: CompiledStep) -> Iterator[tuple[int, TeacherTask | Refusal, int]]:
        """Line, request, and how often it is asked, with other seeds."""
        rows = (row for row in self._pipeline.rows_behind(number - 1) if isinstance(row, Row))
        if compiled[0] == "grow":
            for request in compiled[1].begin(list(rows)).requests(0):
                yield 0, request, 1
        elif compiled[0] == "teacher":
            step, is_same = compiled[1], self._steps[number].kind == "generate"
            for row in rows:
                for at in range(1 if is_same else step.requests_per_row):
                    yield row.line, step.request(row, at), step.requests_per_row if is_same else 1

    @staticmethod
    def _count(figures: GenerationPreview, request: TeacherTask | Refusal, times: int) -> None:
        if isinstance(request, Refusal):
            figures.refused += times
            _add(figures.refusals, request.code, request.message, times)
            return
        figures.requests += times
        if isinstance(request, GenerationTask):
            figures.prompt_tokens += times * len(request.prompt_ids_C)
            figures.generated_tokens_at_most += times * request.sampling.max_tokens
        else:
            figures.prompt_tokens += times * len(request.token_ids_L)

    def _rendered(self, line: int, request: TeacherTask | Refusal) -> RenderedPrompt:
        if isinstance(request, Refusal):
            return RenderedPrompt(
                line=line, text="", tokens=0, error=Reason(code=request.code, message=request.message)
            )
        ids = request.prompt_ids_C if isinstance(request, GenerationTask) else request.token_ids_L
        return RenderedPrompt(line=line, text=self._facts.tokenizer.decode(ids.tolist()), tokens=len(ids))

    def _source(self) -> Iterator[Staged]:
        return source_rows(self._corpus, self._sha256, self._service.settings.max_line_bytes)

    def _rows_of(self, corpus_id: str | None) -> Sequence[Row]:
        path, sha256 = self._corpus, self._sha256
        if corpus_id is not None:
            corpus = self._service.corpora.get(corpus_id)
            path, sha256 = content_path(self._service, corpus), corpus.sha256
        return self._service.demonstrations.rows(path, sha256)


def _add(losses: list[PreviewedLoss], code: str, message: str, count: int = 1) -> None:
    """Count one more of a code, of which the first message is kept."""
    for loss in losses:
        if loss.code == code:
            loss.count += count
            return
    losses.append(PreviewedLoss(code=code, count=count, message=message))


def _no_answers(_: str) -> Iterator[Answer]:
    raise StageOpenError
