"""From the steps of a request to steps that can run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from logitcask_schemas.api.generation import StoredTemplate
from logitcask_schemas.api.generation_steps import (
    Check,
    Dedupe,
    Demonstrations,
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
from logitcask_services.generation.patterns import Pattern
from logitcask_services.generation.prompting import Prompter
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import CompiledStep, Refusal, Row, request_seed
from logitcask_services.generation.step_checks import check_steps
from logitcask_services.generation.teacher_steps import Asking, GenerateStep, ScoreStep, VerifyStep
from logitcask_services.generation.templates import PromptTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResources:
    """What steps need besides themselves."""

    tokenizer: DocumentTokenizer
    max_model_len: int
    templates: Mapping[str, StoredTemplate]
    """As the job began with them."""
    rows_of: Callable[[str | None], Sequence[Row]]
    """The rows of a corpus, by its id; None: the job's own. Called where a step shows demonstrations."""
    job_seed: int
    sandbox: Sequence[str] | None = None
    """Program and arguments that run programs which are more than arithmetic; None: these are refused."""


def parsed_templates(stored: Mapping[str, StoredTemplate]) -> dict[str, PromptTemplate]:
    """Templates by name. Raises RecipeError where one cannot be used, or its text is not that of its digest."""
    parsed = {name: PromptTemplate.parse(name, template.text) for name, template in stored.items()}
    for name, template in parsed.items():
        if template.sha256 != stored[name].sha256:
            raise RecipeError(
                f"template {name}: its text has the digest {template.sha256[:12]}, and {stored[name].sha256[:12]} is "
                "noted beside it; start the generation anew"
            )
    return parsed


def compile_steps(steps: Sequence[Step], resources: StepResources) -> list[CompiledStep]:
    """Steps that can run, in order. Pure: equal arguments give steps that ask and answer alike.

    Raises:
        RecipeError: the steps do not fit together, see `check_steps`, or a template cannot be used.
    """
    templates = parsed_templates(resources.templates)
    check_steps(steps, (), templates, None)
    prompter = Prompter(resources.tokenizer, resources.max_model_len)
    return [_compiled(step, number, templates, prompter, resources) for number, step in enumerate(steps)]


def _compiled(
    step: Step,
    number: int,
    templates: Mapping[str, PromptTemplate],
    prompter: Prompter,
    resources: StepResources,
) -> CompiledStep:
    def chooser(wanted: Demonstrations | None) -> DemonstrationChooser | None:
        if wanted is None:
            return None
        rows = resources.rows_of(wanted.corpus_id)
        return DemonstrationChooser(wanted=wanted, candidates=rows, job_seed=resources.job_seed)

    def asking(template: str, demonstrations: Demonstrations | None) -> Asking:
        return Asking(
            step=number,
            kind=step.kind,
            template=templates[template],
            chooser=chooser(demonstrations),
            prompter=prompter,
            job_seed=resources.job_seed,
        )

    match step:
        case Generate():
            return "teacher", GenerateStep(step=step, asking=asking(step.template, step.demonstrations))
        case Score():
            return "teacher", ScoreStep(
                step=step, asking=asking(step.template, step.demonstrations), candidates=chooser(step.candidates)
            )
        case Verify():
            accept = Pattern(step.accept, f"step {number} (verify): `accept`")
            return "teacher", VerifyStep(step=step, asking=asking(step.template, step.demonstrations), accept=accept)
        case Grow():
            request = _request_maker(step, number, templates[step.template], prompter, resources.job_seed)
            return "grow", GrowingStep(step, number, request, resources.job_seed)
        case Parse() | Check() | Vote() | Keep() | Dedupe():
            return "row", compile_row_step(step, number, sandbox=resources.sandbox)


def _request_maker(
    step: Grow, number: int, template: PromptTemplate, prompter: Prompter, job_seed: int
) -> Callable[[Mapping[str, object], str], TeacherTask | Refusal]:
    sampling = step.sampling.model_copy(update={"stop": tuple(dict.fromkeys((*template.stop, *step.sampling.stop)))})

    def request(values: Mapping[str, object], row_id: str) -> TeacherTask | Refusal:
        """A text of the pool's next round."""
        where = f"step {number} (grow), request {row_id[:12]}"
        prompt = prompter.prompt(template, values, room=sampling.max_tokens, where=where)
        if isinstance(prompt, Refusal):
            return prompt
        return GenerationTask(key=row_id, prompt_ids_C=prompt, sampling=sampling, seed=request_seed(row_id, job_seed))

    return request
