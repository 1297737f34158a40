"""From the steps of a request to steps that run, once it is known that they fit together.

What no row can change is refused before anything runs: templates that are not there, fields that nobody makes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from logitcask_schemas.api.generation import StoredTemplate
from logitcask_schemas.api.generation_steps import (
    Check,
    Dedupe,
    Demonstrations,
    EmitRow,
    Generate,
    Grow,
    Keep,
    Parse,
    Score,
    Step,
    Verify,
    Vote,
)
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.generator import GenerationTask, TeacherTask
from logitcask_services.generation.demonstrations import DemonstrationChooser
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.growth import GrowingStep
from logitcask_services.generation.prompting import Prompter
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import CompiledStep, Refusal, Row, request_seed
from logitcask_services.generation.teacher_steps import Asking, GenerateStep, ScoreStep, VerifyStep
from logitcask_services.generation.templates import PromptTemplate

OF_GROWTH = frozenset({"examples", "parent", "method", "method_name", "round"})
"""What a `grow` step gives its template, in place of a row's fields."""


@dataclass(frozen=True, kw_only=True)
class StepResources:
    """What steps need beside themselves."""

    tokenizer: DocumentTokenizer
    max_model_len: int
    templates: Mapping[str, StoredTemplate]
    rows_of: Callable[[str | None], Sequence[Row]]
    """The rows of a corpus by its id; None: the job's own."""
    job_seed: int
    sandbox: Sequence[str] | None = None
    """Program and arguments that run programs which are more than arithmetic."""

    @cached_property
    def prompter(self) -> Prompter:
        """Renders templates for this teacher."""
        return Prompter(tokenizer=self.tokenizer, max_model_len=self.max_model_len)

    @cached_property
    def parsed(self) -> dict[str, PromptTemplate]:
        """The templates. Raises RecipeError."""
        return parse_templates(self.templates)


def parse_templates(templates: Mapping[str, StoredTemplate]) -> dict[str, PromptTemplate]:
    """The templates of a job. Raises RecipeError."""
    return {name: PromptTemplate.parse(name, stored.text) for name, stored in templates.items()}


def compile_steps(steps: Sequence[Step], resources: StepResources) -> list[CompiledStep]:
    """The steps, ready to run. Raises RecipeError where one cannot be followed."""
    return [_compiled(number, step, resources) for number, step in enumerate(steps)]


def check_steps(
    steps: Sequence[Step],
    emit: Sequence[EmitRow],
    templates: Mapping[str, PromptTemplate],
    fields: frozenset[str] | None = None,
) -> None:
    """Raise RecipeError where the steps do not fit together.

    Args:
        steps: of a request.
        emit: what is made of the rows at its end.
        templates: by name.
        fields: those that the rows begin with; None: not known, so that any field may be one of the corpus.
    """
    known = None if fields is None else set(fields)
    written = set[str]()
    samples = False
    for number, step in enumerate(steps):
        where = f"step {number} ({step.kind})"
        _check_templates(step, where, templates, known)
        _check_fields(step, where, known, written, samples=samples)
        if isinstance(step, Generate | Verify):
            written.add(step.into)
        samples = samples or (isinstance(step, Generate) and step.sampling.n > 1)
        if known is not None:
            known |= _made(step)
    if not emit:
        raise RecipeError("`emit` is empty: nothing would be written; say which field is the completion")
    for number, row in enumerate(emit):
        where = f"emit row {number}"
        if row.completion is not None and row.completion not in written:
            raise RecipeError(
                f"{where}: `completion` {row.completion!r} is no text that a step has the teacher write; there are "
                f"{_listed(written)}. For a text that a template makes, use `completion_template`"
            )
        for name in filter(None, (row.prompt, row.completion_template)):
            template = _template(name, where, templates)
            _require_no_demonstrations(template, where)
            _require(template.fields, known, f"{where}: template {name} needs")


def _compiled(number: int, step: Step, resources: StepResources) -> CompiledStep:
    def asking(name: str, wanted: Demonstrations | None) -> Asking:
        return Asking(
            step=number,
            kind=step.kind,
            template=_template(name, f"step {number} ({step.kind})", resources.parsed),
            chooser=None if wanted is None else _chooser(wanted, resources),
            prompter=resources.prompter,
            job_seed=resources.job_seed,
        )

    match step:
        case Generate():
            return "teacher", GenerateStep(step=step, asking=asking(step.template, step.demonstrations))
        case Score():
            candidates = None if step.candidates is None else _chooser(step.candidates, resources)
            scoring = ScoreStep(step=step, asking=asking(step.template, step.demonstrations), candidates=candidates)
            return "teacher", scoring
        case Verify():
            accept = _expression(step.accept, f"step {number} (verify): `accept`")
            verifying = VerifyStep(step=step, asking=asking(step.template, step.demonstrations), accept=accept)
            return "teacher", verifying
        case Grow():
            try:
                return "grow", GrowingStep(step, number, _grow_request(number, step, resources), resources.job_seed)
            except ValueError as error:
                raise RecipeError(str(error)) from error
        case _:
            try:
                return "row", compile_row_step(step, number, sandbox=resources.sandbox)
            except (ValueError, re.error) as error:
                raise RecipeError(f"step {number} ({step.kind}): {error}") from error


def _chooser(wanted: Demonstrations, resources: StepResources) -> DemonstrationChooser:
    return DemonstrationChooser(
        wanted=wanted, candidates=resources.rows_of(wanted.corpus_id), job_seed=resources.job_seed
    )


def _grow_request(
    number: int, step: Grow, resources: StepResources
) -> Callable[[Mapping[str, object], str], TeacherTask | Refusal]:
    template = _template(step.template, f"step {number} (grow)", resources.parsed)
    stops = tuple(dict.fromkeys((*template.stop, *step.sampling.stop)))
    sampling = step.sampling.model_copy(update={"stop": stops})

    def request(values: Mapping[str, object], row_id: str) -> TeacherTask | Refusal:
        where = f"step {number} (grow), request {row_id[:12]}"
        ids = resources.prompter.prompt(template, values, room=sampling.max_tokens, where=where)
        if isinstance(ids, Refusal):
            return ids
        return GenerationTask(
            key=row_id, prompt_ids_C=ids, sampling=sampling, seed=request_seed(row_id, resources.job_seed)
        )

    return request


# -- whether steps fit ---------------------------------------------------------------------------------------------


def _check_templates(step: Step, where: str, templates: Mapping[str, PromptTemplate], known: set[str] | None) -> None:
    if not isinstance(step, Generate | Score | Verify | Grow):
        return
    template = _template(step.template, where, templates)
    if isinstance(step, Grow):
        _require_no_demonstrations(template, where)
        if unknown := sorted(template.fields - OF_GROWTH):
            raise RecipeError(
                f"{where}: template {step.template} needs {_listed(unknown)}; one of a `grow` step has "
                f"{_listed(OF_GROWTH)}"
            )
        return
    _require(template.fields, known, f"{where}: template {step.template} needs")
    given = step.demonstrations is not None or (isinstance(step, Score) and step.candidates is not None)
    if template.needs_demonstrations and not given:
        raise RecipeError(f"{where}: template {step.template} shows `demonstrations`, and the step has none; give them")
    if given and not template.needs_demonstrations:
        raise RecipeError(
            f"{where}: template {step.template} does not show the `demonstrations` that the step gives; take another "
            "template, or leave them out"
        )
    wanted = step.demonstrations
    if wanted is not None and wanted.choose in ("bm25", "field"):
        _require({wanted.query}, known, f"{where}: `demonstrations.query` names")


def _check_fields(step: Step, where: str, known: set[str] | None, written: set[str], *, samples: bool) -> None:
    match step:
        case Score():
            _require({step.of}, known, f"{where}: `of` names")
        case Verify():
            _expression(step.accept, f"{where}: `accept`")
        case Parse():
            _require({step.of}, known, f"{where}: `of` names")
            if step.pattern is not None:
                _expression(step.pattern, f"{where}: `pattern`")
        case Check():
            _require({step.of, step.against}, known, f"{where}: `of` and `against` name")
        case Vote():
            _require({step.by}, known, f"{where}: `by` names")
            if not samples:
                raise RecipeError(
                    f"{where}: a vote is among the samples of a row; generate with `n` of 2 or more before"
                )
        case Keep():
            _check_keep(step, where, known, written)
        case Dedupe():
            _require({step.field}, known, f"{where}: `field` names")
        case _:
            pass


def _check_keep(step: Keep, where: str, known: set[str] | None, written: set[str]) -> None:
    bounds = ("finish", "min_tokens", "max_tokens", "min_mean_logprob")
    asked = [name for name in bounds if getattr(step, name) is not None]
    if asked and step.of not in written:
        raise RecipeError(
            f"{where}: {_listed(asked)} look at a text that the teacher wrote, and `of` {step.of!r} is none; there are "
            f"{_listed(written)}"
        )
    if step.matches is not None:
        _expression(step.matches, f"{where}: `matches`")
        _require({step.of}, known, f"{where}: `of` names")
    _require({name for name in (step.more, step.than) if name is not None}, known, f"{where}: `more` and `than` name")


def _made(step: Step) -> set[str]:
    """Fields that a step adds."""
    match step:
        case Generate() | Verify():
            return {step.into}
        case Score():
            return {step.into, f"{step.into}_scores"} if step.candidates is not None else {step.into}
        case Parse():
            return {step.into} | ({step.rationale} if step.rationale is not None else set())
        case Vote():
            return {step.into, f"{step.into}_share"}
        case Grow():
            return {step.field, "round"}
        case _:
            return set()


def _template(name: str, where: str, templates: Mapping[str, PromptTemplate]) -> PromptTemplate:
    if (template := templates.get(name)) is None:
        raise RecipeError(f"{where}: there is no template {name!r}; there are {_listed(templates)}")
    return template


def _require_no_demonstrations(template: PromptTemplate, where: str) -> None:
    if template.needs_demonstrations:
        raise RecipeError(f"{where}: template {template.name} shows `demonstrations`, which are not given here")


def _require(needed: set[str] | frozenset[str], known: set[str] | None, sentence: str) -> None:
    if known is not None and (unknown := sorted(needed - known)):
        raise RecipeError(
            f"{sentence} {_listed(unknown)}, which no line of the corpus has and no step before makes; there are "
            f"{_listed(known)}"
        )


def _expression(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"{where} {pattern!r} is no regular expression: {error}") from error


def _listed(names: Sequence[str] | set[str] | frozenset[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names)[:40]) or "none"
