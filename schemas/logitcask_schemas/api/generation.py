"""Generations: what a caller asks of the service, and what it answers with."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from logitcask_schemas.api.generation_steps import EmitRow, Step
from logitcask_schemas.api.objects import ApiObject, Reason, Seconds, Status
from logitcask_schemas.api.requests import CarrierName, CaskName, Metadata, OnError, Priority, TeacherName
from logitcask_schemas.record.capture_spec import CaptureSpec

RecipeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Budget(BaseModel):
    """What a generation may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generated_tokens: Annotated[
        int | None,
        Field(ge=1, description="No chunk of requests begins once so many are written; rows left over are dropped."),
    ] = None


class ChainedExtraction(BaseModel):
    """The extraction that follows: the teacher's distributions over what was kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cask: CaskName
    teacher: Annotated[
        TeacherName | None,
        Field(description="By whom; default: the one that writes, or where a student does the first of the service's."),
    ] = None
    capture: CaptureSpec = CaptureSpec()
    carrier: CarrierName = "arrow"
    max_length: Annotated[int | None, Field(ge=4, le=2**31 - 1)] = None
    """Longer documents are skipped: a cut answer is another answer."""


class GenerationPlan(BaseModel):
    """What to make: all of a request but the corpus."""

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[Literal["generate"], Field(description="What is made of the corpus.")] = "generate"
    recipe: Annotated[RecipeName | None, Field(description="A built-in recipe, or one of the operator's.")] = None
    parameters: Annotated[dict[str, JsonValue], Field(max_length=32, description="Of the recipe.")] = {}
    teacher: Annotated[TeacherName | None, Field(description="Who writes; default: the first of the service's.")] = None
    steps: Annotated[list[Step] | None, Field(max_length=64, description="Instead of a recipe.")] = None
    emit: Annotated[list[EmitRow] | None, Field(max_length=8, description="Instead of the recipe's.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    budget: Budget = Budget()
    on_error: Annotated[
        OnError, Field(description="`skip` lists bad lines and rows and goes on; `fail` ends it at the first.")
    ] = "skip"
    extraction: Annotated[
        ChainedExtraction | None, Field(description="Capture what was kept; null: the corpus is all.")
    ] = None
    metadata: Annotated[Metadata, Field(max_length=16)] = {}
    priority: Priority = 0

    @field_validator("parameters")
    @classmethod
    def _can_be_sent(cls, parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Python reads as JSON what is none: NaN, Infinity, halves of surrogate pairs."""
        try:
            json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode()
        except ValueError as error:
            raise ValueError(f"the values must be JSON, with finite numbers and whole characters ({error})") from error
        return parameters


class GenerationRequest(GenerationPlan):
    """What to generate, from which corpus. The job database stores it as it is, recipe and templates resolved."""

    corpus_id: Annotated[str, Field(max_length=64)]

    def canonical(self) -> bytes:
        """Bytes that are equal for equal requests; an Idempotency-Key is tied to their digest."""
        # Requests had neither a priority nor a teacher when the first keys were made.
        without = set() if self.priority else {"priority"}
        fields = self.model_dump(mode="json", exclude=without)
        for part in (fields, fields["extraction"] or {}):
            if part.get("teacher") is None:
                part.pop("teacher", None)
        return json.dumps(fields, sort_keys=True).encode()


class StoredTemplate(BaseModel):
    """A template as a job began with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    sha256: str


class StoredGeneration(GenerationRequest):
    """A request with its recipe and templates resolved, so that a changed file does not change a job that has begun."""

    steps: list[Step] = []
    emit: list[EmitRow] = []
    templates: dict[str, StoredTemplate] = {}


class StageProgress(ApiObject):
    """One teacher step (a round of one, where it grows) and how far it is."""

    stage: str
    """Number of the step from 0, with the round: `2`, `0-r3`."""
    kind: str
    template: str | None
    requests_total: int
    requests_done: int
    failed: int
    generated_tokens: int


class StepDrops(ApiObject):
    """Rows that one step left out for one reason."""

    step: int
    """From 0; -1: the line itself; one above the last: as it was written."""
    code: str
    rows: int


class RowCounts(ApiObject):
    """Rows of the whole generation; known when it has ended."""

    source: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict, description="Code to number of rows.")
    dropped_by_step: list[StepDrops] = Field(default_factory=list, description="The same, by step.")


class GeneratedCorpus(ApiObject):
    """A corpus that was written, and the extraction that follows."""

    suffix: str
    corpus_id: str
    rows: int
    documents: int | None = None
    """Different ones among the rows: so many a cask will hold. Null in corpora of earlier versions."""
    sha256: str
    cask: str | None = None
    extraction_id: str | None = None


class Generation(ApiObject):
    """A generation: what was asked, and how far it is."""

    object: Literal["generation"] = "generation"
    id: str
    corpus_id: str
    recipe: str | None
    parameters: dict[str, Any]
    steps: list[Step]
    emit: list[EmitRow]
    seed: int
    budget: Budget
    on_error: OnError
    extraction: ChainedExtraction | None
    metadata: dict[str, str]
    priority: int = 0
    templates: dict[str, str]
    """Name to SHA-256 (hex) of the text."""
    status: Status
    created_at: int
    queued_at: Seconds = None
    in_progress_at: Seconds = None
    finalizing_at: Seconds = None
    pausing_at: Seconds = None
    paused_at: Seconds = None
    completed_at: Seconds = None
    failed_at: Seconds = None
    cancelling_at: Seconds = None
    cancelled_at: Seconds = None
    lines: int
    bad_lines: int
    stages: list[StageProgress]
    rows: RowCounts
    corpora: list[GeneratedCorpus]
    generated_tokens: int
    throughput_tps: Annotated[float | None, Field(description="Generated tokens per second: now, or over the run.")]
    eta_seconds: Annotated[float | None, Field(description="Of the stage that runs.")]
    teacher: dict[str, Any] | None
    """Identity of who wrote."""
    teacher_name: str | None = None
    """As it was asked for; null: the first of the service's."""
    waiting: Reason | None
    error: Reason | None


class GenerationProgress(ApiObject):
    """How far a running generation is, between two entries of its log."""

    status: Status
    stages: list[StageProgress]
    generated_tokens: int
    throughput_tps: float | None
    eta_seconds: float | None


class GenerationList(ApiObject):
    """A page of generations."""

    object: Literal["list"] = "list"
    data: list[Generation]
    has_more: bool


class GenerationCheck(ApiObject):
    """The request could be started now: what it resolves to."""

    object: Literal["generation.check"] = "generation.check"
    recipe: str | None
    steps: list[Step]
    emit: list[EmitRow]
    templates: dict[str, str]
    teacher: str | None


class GeneratedRow(ApiObject):
    """A row as it stands behind a step."""

    id: str
    line: int
    custom_id: str | None
    fields: dict[str, Any]
    written: dict[str, dict[str, Any]]
    """Generated field to {text, tokens, token_ids, finish, mean_logprob, sample, seed, template}."""
    checks: dict[str, Any]
    dropped: Reason | None = None


class GeneratedRowList(ApiObject):
    """A page of rows."""

    object: Literal["list"] = "list"
    data: list[GeneratedRow]
    has_more: bool
    step: int
    """Number of the step behind which they stand; -1: the corpus."""
    is_open: bool
    """Whether further rows wait for answers of the teacher."""


class RenderedPrompt(ApiObject):
    """What the teacher would be asked."""

    line: int
    text: str
    tokens: int
    error: Reason | None = None


class PreviewedLoss(ApiObject):
    """Lines or requests that would be left out for one reason."""

    code: str
    count: int
    message: str
    """Of the first of them."""


class GenerationPreview(ApiObject):
    """What a generation would ask, and what that may cost; rows behind the first teacher step are not known yet."""

    object: Literal["generation.preview"] = "generation.preview"
    lines: int
    bad_lines: int
    requests: int
    refused: int = 0
    """Requests that cannot be made, such as prompts that are too long; not among `requests`."""
    prompt_tokens: int
    generated_tokens_at_most: int
    shown: list[RenderedPrompt]
    teacher: str
    note: str | None = None
    """A field that is needed and that none of the lines has, where there are further lines."""
    bad: list[PreviewedLoss] = Field(default_factory=list)
    """Why lines are bad, a code each; their counts are `bad_lines` together."""
    refusals: list[PreviewedLoss] = Field(default_factory=list)
    """Why requests cannot be made, a code each; their counts are `refused` together."""


class RecipeSummary(ApiObject):
    """A recipe that can be asked for."""

    name: str
    description: str
    lines: str = ""
    """The fields of lines that it reads, in words; empty where its author does not say."""
    parameters: dict[str, Any]
    """Name to default; null for those without."""
    required: list[str] = Field(default_factory=list)
    """Parameters that must be given."""
    source: Literal["built-in", "operator"]


class RecipeList(ApiObject):
    """All recipes."""

    object: Literal["list"] = "list"
    data: list[RecipeSummary]
    has_more: bool = False
